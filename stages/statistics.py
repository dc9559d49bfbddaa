"""Intervals and tests behind the numbers: shares, paired answers, medians. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054  # the standard normal's 97.5 % point
RESAMPLES = 2000


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share of `n` items, within 0..1.

    Source: Wilson 1927, JASA 22(158), pages 209-212, doi:10.1080/01621459.1927.10502953.
    """
    share, square = successes / n, Z_95 * Z_95
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z_95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean: Wilson where every item is right or wrong, else a seeded percentile bootstrap.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(float(values.sum()), len(values))
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p that as uneven a split of the items two models disagree on is chance; 1.0 when there are none.

    Where items have qualities instead of right and wrong, these are the counts of worse and better ones, and this is
    the sign test. Source: McNemar 1947, Psychometrika 12, pages 153-157; the exact form is the binomial test at 1/2.
    """
    n = lost + won
    ways = total = 1  # n over k, and its sum over k: whole numbers, because 2.0 ** n overflows from n = 1024 on
    for k in range(min(lost, won)):
        ways = ways * (n - k) // (k + 1)
        total += ways
    return min(1.0, float(Fraction(2 * total, 2**n)))


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and an interval of at least 95 % for it between two of the values, whatever their distribution.

    With fewer than six values no such interval exists: it is then smallest to largest.
    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2 (binomial ranks of a quantile).
    """
    ordered, n = sorted(values), len(values)
    rank, tail = 0, 1 / 2**n
    while tail + math.comb(n, rank + 1) / 2**n <= 0.025:
        rank += 1
        tail += math.comb(n, rank) / 2**n
    return float(np.median(ordered)), ordered[rank], ordered[n - 1 - rank]
