"""The intervals and tests behind the numbers, against published tables and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from stages.statistics import interval, mcnemar, median_interval, wilson


# Newcombe 1998, Statistics in Medicine 17(8), pages 857-872, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 20000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(case: tuple[int, int]) -> None:
    expected = binomtest(*case).proportion_ci(0.95, method="wilson")
    assert wilson(*case) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_interval_of_shares_is_wilson_and_of_the_rest_a_bootstrap() -> None:
    assert interval(np.array([1.0, 0.0, 1.0, 1.0])) == wilson(3, 4)
    values = np.random.default_rng(1).uniform(0, 1, 4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)
    assert interval(values) == interval(values)


@given(st.integers(0, 1500), st.integers(0, 1500))
def test_mcnemar_is_the_binomial_test_at_one_half(lost: int, won: int) -> None:
    expected = binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-6, abs=1e-290)
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(6, 0) == 2 / 64
    assert mcnemar(3, 1) == 2 * (1 + 4) / 16


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=60))
def test_the_interval_of_a_median_covers_95_percent(values: list[float]) -> None:
    ordered, (median, low, high) = sorted(values), median_interval(values)
    assert (median, low <= median <= high) == (float(np.median(values)), True)
    # As narrow as the binomial allows: the next pair of values inwards would cover less.
    outside = max(rank for rank in range(len(values)) if 2 * binom.cdf(rank, len(values), 0.5) <= 0.05)
    assert (low, high) == (ordered[outside + 1 - 1], ordered[-1 - outside])


def test_few_values_give_their_range() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert median_interval([2.0]) == (2.0, 2.0, 2.0)
