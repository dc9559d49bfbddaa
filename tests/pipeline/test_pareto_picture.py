"""What of the trials the Pareto picture shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.sweep.picture import lowest_shown

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def test_a_failed_trial_does_not_press_the_front_into_a_line() -> None:
    values = [0.97, 0.975, 0.98, 0.985, 0.99, 0.41]
    assert 0.9 < lowest_shown(values, [0.98, 0.99]) <= 0.97


def test_trials_that_are_alike_are_all_shown() -> None:
    assert lowest_shown([0.97, 0.98, 0.99], [0.98, 0.99]) == 0.97


@given(SHARES, st.data())
def test_the_front_and_most_trials_are_inside(values: list[float], data: st.DataObject) -> None:
    front = [*data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=5)), max(values)]
    floor = lowest_shown(values, front)
    assert min(values) <= floor <= min(front)
    assert sum(value >= floor for value in values) >= 0.75 * len(values) - 1
