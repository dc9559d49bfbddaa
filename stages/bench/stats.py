"""The arithmetic of the benchmark, pure: percentiles, intervals, ratios of interleaved rounds, verdicts."""

from __future__ import annotations

from math import comb, expm1, log, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Estimate = tuple[float, float, float]
"""Point estimate, then the lower and upper end of its 95 % interval."""
Verdict = Literal["faster", "slower", "same", "inconclusive"]
Status = Literal["clean", "noisy", "drifting", "contended", "throttled"]

# Fewest samples for a percentile at 99 % confidence: the smallest n with P(Binomial(n, 1 - p) <= 1) <= 0.01.
# Source: MLPerf LoadGen, early stopping criterion (mlcommons/inference, loadgen/early_stopping.cc); 662 is its
# min_query_count for p99.
MIN_SAMPLES: dict[float, int] = {50: 1, 90: 64, 95: 130, 99: 662, 99.9: 6636}

CLEAN_BELOW = 0.02  # share of the time a thread waited for a CPU; what a slice may have and still give absolute FPS
NOISY_BELOW = 0.10
MIN_CLEAN_SLICES = 5

# What two runs of the same model still differ by, however narrow the A/A interval of this run is.
# Source: the project's own repeated runs on a shared virtual machine, rounded up.
FLOOR: dict[Status, float] = {"clean": 0.01, "noisy": 0.03, "drifting": 0.05, "contended": 0.05, "throttled": 0.05}

SAME_WITHIN = 0.10  # a run too noisy to tell 10 % apart does not call anything the same

RESAMPLES = 2000
Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal


def percentile(samples: NDArray[np.int64], p: float) -> float | None:
    """The p-th percentile (nearest rank) in the unit of `samples`; None when there are too few samples to claim it.

    Nearest rank, so the value was really measured. `p` is a key of `MIN_SAMPLES`.
    """
    if len(samples) < MIN_SAMPLES[p]:
        return None
    return float(np.percentile(samples, p, method="inverted_cdf"))


def early_stop(samples: NDArray[np.int64], p: int) -> float | None:
    """A value that is above the p-th percentile with 99 % confidence; None when there are too few samples for one.

    With t slow samples allowed, the t-th largest is reported; t is the largest for which P(Binomial(n, 1 - p) <= t) is
    at most 0.01. Source: MLPerf LoadGen, early stopping criterion (mlcommons/inference, loadgen/early_stopping.cc).
    """
    n, rest = len(samples), 1.0 - p / 100.0
    if n < MIN_SAMPLES[p]:
        return None
    k = np.arange(1, n + 1)
    log_terms = np.concatenate(([0.0], np.cumsum(np.log((n - k + 1) / k)))) + np.arange(n + 1) * log(rest)
    log_terms += (n - np.arange(n + 1)) * log(1.0 - rest)
    allowed = int(np.searchsorted(np.cumsum(np.exp(log_terms)), 0.01, side="right")) - 1
    return float(np.sort(samples)[n - allowed]) if allowed >= 1 else None


def histogram(samples: NDArray[np.int64], width: float = 0.05) -> list[tuple[float, int]]:
    """(upper edge in the unit of `samples`, how many) of bins that are `width` wide relatively; empty ones left out."""
    index = np.ceil(np.log(np.maximum(samples, 1)) / log(1.0 + width) - 1e-9).astype(np.int64)
    bins, counts = np.unique(index, return_counts=True)
    return [(float((1.0 + width) ** b), int(count)) for b, count in zip(bins, counts, strict=True)]


def drift(costs: NDArray[np.float64]) -> float | None:
    """By what share a series of costs moved from its first to its last; 0 when no trend is certain, None if too short.

    Theil-Sen slope of the logarithms times the length; certain by a Mann-Kendall test at |z| > 3.
    Source: P. K. Sen, JASA 63 (1968), 1379-1389; M. G. Kendall, Rank Correlation Methods (1975).
    """
    n = len(costs)
    if n < 10:
        return None
    logs = np.log(costs)
    i, j = np.triu_indices(n, 1)
    rises = logs[j] - logs[i]
    z = float(np.sign(rises).sum()) / sqrt(n * (n - 1) * (2 * n + 5) / 18.0)
    return float(expm1(np.median(rises / (j - i)) * (n - 1))) if abs(z) > 3.0 else 0.0


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact p of `better` against `worse` discordant pairs. Source: Q. McNemar, Psychometrika 12 (1947)."""
    n = better + worse
    tail = sum(comb(n, k) for k in range(min(better, worse) + 1)) / 2**n
    return float(min(1.0, 2.0 * tail))


def paired_share(better: int, worse: int, n: int, z: float) -> Interval:
    """Interval of (better - worse) / n, the difference of two shares on the same n items.

    Source: A. Agresti, Y. Min, Statistics in Medicine 24 (2005), 729-740: Wald after adding 1/2 to every cell.
    """
    b, c, m = better + 0.5, worse + 0.5, n + 2.0
    half = z * sqrt(b + c - (b - c) ** 2 / m) / m
    return (b - c) / m - half, (b - c) / m + half


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


def median_estimate(rounds: NDArray[np.float64], seed: int, level: float = 0.95) -> Estimate:
    """Median of float64 (launches, rounds) values with a 95 % (or `level`) hierarchical percentile bootstrap.

    Launches are resampled first, rounds within them second: two launches of one program differ by more than its
    rounds do (memory layout), and an interval over rounds alone would be too narrow.
    So few launches cannot tell how much launches differ: the interval covers the truth in 98 % of all runs (simulated,
    3 x 20) where they do not, in 92 % where they scatter a third as much as rounds do, in 80 % where as much. So a
    verdict asks for the noise floor, too.
    Source: A. C. Davison, D. V. Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """
    launches, per_launch = rounds.shape
    rng = np.random.default_rng(seed)
    launch = rng.integers(0, launches, (RESAMPLES, launches, 1))
    within = rng.integers(0, per_launch, (RESAMPLES, launches, per_launch))
    medians = np.median(rounds[launch, within].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, ((1.0 - level) / 2.0, (1.0 + level) / 2.0))
    return float(np.median(rounds)), float(low), float(high)


def two_medians(first: NDArray[np.float64], last: NDArray[np.float64], seed: int) -> Estimate:
    """median(first) / median(last) of two unpaired series, with a 95 % percentile bootstrap."""
    rng = np.random.default_rng(seed)

    def medians(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.median(values[rng.integers(0, len(values), (RESAMPLES, len(values)))], axis=1))

    low, high = np.percentile(medians(first) / medians(last), (2.5, 97.5))
    return float(np.median(first) / np.median(last)), float(low), float(high)


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


def paced_interference(cpu_s: float, run_delay_s: float | None) -> float | None:
    """The same where the process sleeps most of the time: waiting for a CPU as a share of wanting one."""
    if run_delay_s is None:
        return None
    return run_delay_s / (run_delay_s + cpu_s) if run_delay_s + cpu_s > 0 else 0.0


def interference(wall_s: float, cpu_s: float, run_delay_s: float | None, threads: int) -> float | None:
    """Share of a slice its threads were ready but not running; None where neither source can tell.

    The kernel's run-queue delay does not contain time stolen by a hypervisor; for one busy thread wall time that is not
    CPU time contains both, so the larger counts.
    """
    waits = [] if run_delay_s is None else [run_delay_s / (wall_s * threads)]
    if threads == 1:
        waits.append(1.0 - cpu_s / wall_s)
    return min(1.0, max(0.0, *waits)) if waits else None
