"""Running figures against numpy and hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_demo.stats import Rate, Recent, WholeRun, percentile

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=300)


@given(VALUES)
def test_median_is_numpys(values: list[float]) -> None:
    assert percentile(values, 50) == pytest.approx(np.percentile(values, 50))


@pytest.mark.parametrize(("q", "enough"), [(95, 20), (99, 100), (5, 20)])
def test_a_tail_percentile_needs_a_value_beyond_it(q: float, enough: int) -> None:
    assert percentile([1.0] * (enough - 1), q) is None
    assert percentile([1.0] * enough, q) == 1.0
    assert percentile([], 50) is None


@given(VALUES, st.floats(0.1, 10))
def test_recent_knows_only_its_window(values: list[float], window_s: float) -> None:
    recent = Recent(window_s)
    for second, value in enumerate(values):
        recent.add(value, float(second))
    now = float(len(values) - 1)
    kept = [value for second, value in enumerate(values) if second >= now - window_s]
    assert recent.percentile(50, now) == pytest.approx(np.percentile(kept, 50))
    assert recent.percentile(50, now + window_s + len(values)) is None


def test_rate_counts_intervals_and_falls_in_a_stall() -> None:
    rate = Rate(window_s=5)
    assert rate.per_s(0) is None
    for frame in range(61):
        rate.tick(frame / 30)
    assert rate.per_s(2.0) == pytest.approx(30.0)
    assert rate.per_s(4.0) == pytest.approx(15.0, rel=0.02)  # 60 intervals, the last two seconds without any
    assert rate.per_s(20.0) is None


@given(VALUES)
def test_a_whole_run_is_exact_while_it_fits(values: list[float]) -> None:
    run = WholeRun(kept=300)
    for value in values:
        run.add(value)
    assert run.n == len(values)
    assert run.percentile(50) == pytest.approx(np.percentile(values, 50))


def test_a_longer_run_keeps_a_uniform_sample() -> None:
    run = WholeRun(kept=1000)
    for value in range(50_000):
        run.add(float(value))
    # Standard error of a sample median here: 50000 / (2 * sqrt(1000)) = 790.
    assert run.percentile(50) == pytest.approx(25_000, abs=4 * 790)
    with pytest.raises(ValueError, match="finite"):
        run.add(float("nan"))
