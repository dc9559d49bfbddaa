from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.bench import stats
from stages.bench.stats import Estimate, Status


@pytest.mark.parametrize(("p", "fewest"), [(90, 64), (95, 130), (99, 662)])
def test_a_percentile_needs_the_samples_of_the_exact_binomial_rule(p: int, fewest: int) -> None:
    q = 1 - p / 100

    def at_most_one_above(n: int) -> float:
        return sum(comb(n, k) * q**k * (1 - q) ** (n - k) for k in (0, 1))

    assert at_most_one_above(fewest) <= 0.01 < at_most_one_above(fewest - 1)
    samples = np.arange(fewest, dtype=np.int64)
    assert stats.percentile(samples[:-1], p) is None
    assert stats.percentile(samples, p) is not None


@given(st.integers(662, 2000), st.integers(1, 10**9), st.integers(0, 2**32))
def test_a_percentile_was_really_measured_and_has_that_share_at_or_below(n: int, largest: int, seed: int) -> None:
    laps = np.random.default_rng(seed).integers(0, largest, n)
    for p in (50, 90, 95, 99):
        value = stats.percentile(laps, p)
        assert value is not None
        assert value in laps
        assert np.mean(laps <= value) >= p / 100 > np.mean(laps < value)


def test_wilson_matches_a_published_case() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263 and 0/20.
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert stats.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_the_mean_of_shares_gets_wilson_and_of_other_scores_a_bootstrap() -> None:
    assert stats.mean_interval(np.array([1.0] * 81 + [0.0] * 182), seed=0) == stats.wilson(81, 263)
    scores = np.random.default_rng(1).uniform(0.4, 0.8, 400)
    low, high = stats.mean_interval(scores, seed=0)
    half = 1.96 * scores.std(ddof=1) / 20
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.2 * half)


def _rounds(rng: np.random.Generator, true: float, launch_sd: float, round_sd: float) -> NDArray[np.float64]:
    launches = rng.normal(0.0, launch_sd, (3, 1))
    return true * np.exp(launches + rng.normal(0.0, round_sd, (3, 20)))


def test_the_interval_covers_the_truth_when_rounds_scatter() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for run in range(200):
        _, low, high = stats.median_estimate(_rounds(rng, 1.3, 0.0, 0.05), seed=run)
        covered += low <= 1.3 <= high
    assert covered >= 186  # 93 %


def test_the_interval_covers_the_truth_when_launches_differ_by_a_third_of_what_rounds_do() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for run in range(200):
        _, low, high = stats.median_estimate(_rounds(rng, 1.3, 0.01, 0.03), seed=run)
        covered += low <= 1.3 <= high
    assert covered >= 174  # 87 %; 92 % over many more runs


def test_the_ratio_of_two_unpaired_medians_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for run in range(200):
        first, last = (mean * np.exp(rng.normal(0.0, 0.05, 60)) for mean in (1.2, 1.0))
        _, low, high = stats.two_medians(first, last, seed=run)
        covered += low <= 1.2 <= high
    assert 184 <= covered <= 199


def test_launches_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    values = _rounds(rng, 1.0, 0.05, 0.01)
    _, low, high = stats.median_estimate(values, seed=0)
    _, flat_low, flat_high = stats.median_estimate(values.reshape(1, -1), seed=0)
    assert high - low > 1.5 * (flat_high - flat_low)


def test_the_estimate_is_the_median_and_repeats_with_its_seed() -> None:
    values = np.array([[1.0, 2.0, 9.0], [1.5, 2.5, 0.1]])
    assert stats.median_estimate(values, seed=3)[0] == np.median(values)
    assert stats.median_estimate(values, seed=3) == stats.median_estimate(values, seed=3)


def _verdict(rng: np.random.Generator, true: float, run: int) -> str:
    same = stats.median_estimate(_rounds(rng, 1.0, 0.005, 0.03), seed=run)
    ratio = stats.median_estimate(_rounds(rng, true, 0.005, 0.03), seed=run)
    return stats.verdict(ratio, stats.noise_floor(same, "clean"))


def test_the_same_model_is_rarely_called_faster_or_slower() -> None:
    rng = np.random.default_rng(0)
    told = [_verdict(rng, 1.0, run) for run in range(200)]
    assert sum(word in ("faster", "slower") for word in told) <= 10  # 5 %


@pytest.mark.parametrize(("true", "word"), [(0.5, "slower"), (0.9, "slower"), (1.1, "faster"), (2.0, "faster")])
def test_a_planted_change_is_found(true: float, word: str) -> None:
    rng = np.random.default_rng(0)
    assert sum(_verdict(rng, true, run) == word for run in range(50)) >= 48


@pytest.mark.parametrize(
    ("ratio", "floor", "word"),
    [
        ((1.20, 1.10, 1.30), 0.05, "faster"),
        ((0.80, 0.70, 0.90), 0.05, "slower"),
        ((1.04, 1.01, 1.07), 0.05, "same"),
        ((1.00, 0.96, 1.04), 0.05, "same"),
        ((1.00, 0.50, 2.00), 0.05, "inconclusive"),
        ((1.20, 0.90, 1.50), 0.05, "inconclusive"),
        ((0.86, 0.80, 0.94), 0.15, "inconclusive"),
    ],
)
def test_verdicts(ratio: Estimate, floor: float, word: str) -> None:
    assert stats.verdict(ratio, floor) == word


@pytest.mark.parametrize(
    ("same", "status", "floor"),
    [
        ((1.0, 0.999, 1.001), "clean", 0.01),
        ((1.0, 0.999, 1.001), "noisy", 0.03),
        ((1.0, 0.999, 1.001), "contended", 0.05),
        ((0.92, 0.91, 0.93), "clean", 0.08),
        ((1.0, 0.9, 1.1), "clean", 0.10),
        (None, "clean", 0.05),
    ],
)
def test_the_noise_floor_is_the_worst_of_what_is_known(same: Estimate | None, status: Status, floor: float) -> None:
    assert stats.noise_floor(same, status) == pytest.approx(floor)


@pytest.mark.parametrize(
    ("wall", "cpu", "delay", "threads", "share"),
    [
        (1.0, 1.0, 0.0, 1, 0.0),
        (1.0, 0.9, 0.1, 1, 0.1),
        (1.0, 0.9, 0.02, 1, 0.1),  # the rest was stolen by the hypervisor
        (1.0, 1.1, 0.0, 1, 0.0),
        (1.0, 0.7, None, 1, 0.3),
        (1.0, 1.6, 0.2, 2, 0.1),
        (1.0, 1.6, None, 2, None),
    ],
)
def test_interference(wall: float, cpu: float, delay: float | None, threads: int, share: float | None) -> None:
    got = stats.interference(wall, cpu, delay, threads)
    assert got is None if share is None else got == pytest.approx(share)


@pytest.mark.parametrize(("share", "status"), [(0.0, "clean"), (0.02, "clean"), (0.05, "noisy"), (0.5, "contended")])
def test_host_status(share: float, status: str) -> None:
    assert stats.host_status(share) == status
