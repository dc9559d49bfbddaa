"""The arithmetic of the benchmark, pure: percentiles, intervals, ratios of interleaved rounds, verdicts."""

from __future__ import annotations

from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Estimate = tuple[float, float, float]
"""Point estimate, then the lower and upper end of its 95 % interval."""
Verdict = Literal["faster", "slower", "same", "inconclusive"]
Status = Literal["clean", "noisy", "contended"]

# Fewest samples for a percentile at 99 % confidence: the smallest n with P(Binomial(n, 1 - p) <= 1) <= 0.01.
# Source: MLPerf LoadGen, early stopping criterion (mlcommons/inference, loadgen/early_stopping.cc); 662 is its
# min_query_count for p99.
MIN_SAMPLES = {50: 1, 90: 64, 95: 130, 99: 662}

CLEAN_BELOW = 0.02  # share of the time a thread waited for a CPU; what a slice may have and still give absolute FPS
NOISY_BELOW = 0.10
MIN_CLEAN_SLICES = 5

# What two runs of the same model still differ by, however narrow the A/A interval of this run is.
# Source: the project's own repeated runs on a shared virtual machine, rounded up.
FLOOR: dict[Status, float] = {"clean": 0.01, "noisy": 0.03, "contended": 0.05}

SAME_WITHIN = 0.10  # a run too noisy to tell 10 % apart does not call anything the same

RESAMPLES = 2000
Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal


def percentile(samples: NDArray[np.int64], p: int) -> float | None:
    """The p-th percentile (nearest rank) in the unit of `samples`; None when there are too few samples to claim it.

    Nearest rank, so the value was really measured. `p` is a key of `MIN_SAMPLES`.
    """
    if len(samples) < MIN_SAMPLES[p]:
        return None
    return float(np.percentile(samples, p, method="inverted_cdf"))


def wilson(successes: float, n: int) -> Interval:
    """95 % Wilson score interval of a share. Source: E. B. Wilson, JASA 22 (1927), 209-212."""
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: NDArray[np.float64], seed: int) -> Interval:
    """95 % interval of the mean of per-item scores: Wilson where each is 0 or 1, else percentile bootstrap."""
    if bool(np.isin(values, (0.0, 1.0)).all()):
        return wilson(float(values.sum()), len(values))
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def median_estimate(rounds: NDArray[np.float64], seed: int) -> Estimate:
    """Median of float64 (launches, rounds) values with a 95 % hierarchical percentile bootstrap.

    Launches are resampled first, rounds within them second: two launches of one program differ by more than its
    rounds do (memory layout), and an interval over rounds alone would be too narrow.
    Source: A. C. Davison, D. V. Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """
    launches, per_launch = rounds.shape
    rng = np.random.default_rng(seed)
    launch = rng.integers(0, launches, (RESAMPLES, launches, 1))
    within = rng.integers(0, per_launch, (RESAMPLES, launches, per_launch))
    medians = np.median(rounds[launch, within].reshape(RESAMPLES, -1), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(np.median(rounds)), float(low), float(high)


def noise_floor(same_model: Estimate | None, status: Status) -> float:
    """The smallest relative effect this run may claim.

    `same_model` is the A/A ratio: the baseline measured against its own duplicate; None when that was not possible.
    """
    if same_model is None:
        return max(FLOOR.values())
    point, low, high = same_model
    return max(abs(point - 1.0), (high - low) / 2.0, FLOOR[status])


def verdict(ratio: Estimate, floor: float) -> Verdict:
    """What a speed ratio (> 1 is faster) allows to say.

    `faster` and `slower` need an interval without 1 *and* an effect beyond the noise floor; `same` an effect within
    the floor and an interval within twice the floor and within `SAME_WITHIN`; anything else is `inconclusive`.
    """
    point, low, high = ratio
    if low > 1.0 and point > 1.0 + floor:
        return "faster"
    if high < 1.0 and point < 1.0 - floor:
        return "slower"
    reach = min(2.0 * floor, SAME_WITHIN)
    narrow = low >= 1.0 - reach and high <= 1.0 + reach
    return "same" if abs(point - 1.0) <= floor and narrow else "inconclusive"


def host_status(interference: float) -> Status:
    """How far to trust times taken while threads waited that share of the time for a CPU."""
    if interference <= CLEAN_BELOW:
        return "clean"
    return "noisy" if interference <= NOISY_BELOW else "contended"


def interference(wall_s: float, cpu_s: float, run_delay_s: float | None, threads: int) -> float | None:
    """Share of a slice its threads were ready but not running; None where neither source can tell.

    The kernel's run-queue delay does not contain time stolen by a hypervisor; for one busy thread wall time that is not
    CPU time contains both, so the larger counts.
    """
    waits = [] if run_delay_s is None else [run_delay_s / (wall_s * threads)]
    if threads == 1:
        waits.append(1.0 - cpu_s / wall_s)
    return min(1.0, max(0.0, *waits)) if waits else None
