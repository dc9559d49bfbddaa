"""The calibration error against a hand-worked case, a loop over the definition, and networks whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.reliability import reliability


def test_by_hand() -> None:
    """Two bins of two and three answers.

    (0, 0.5] holds 0.5 and 0.3 with one right: |0.5 - 0.4| = 0.1; (0.5, 1] holds 0.6, 0.9, 0.9 with three
    right: |1 - 0.8| = 0.2. Together (2 x 0.1 + 3 x 0.2) / 5 = 0.16; mean score 0.64, right 0.8: 0.16 too modest.
    """
    found = reliability(np.array([0.5, 0.3, 0.6, 0.9, 0.9]), np.array([True, False, True, True, True]), bins=2)
    assert found.ece == pytest.approx(0.16)
    assert found.excess == pytest.approx(-0.16)
    assert [part.n for part in found.bins] == [2, 3]
    assert [(part.low, part.high) for part in found.bins] == [(0, 0.5), (0.5, 1)]
    assert [part.right for part in found.bins] == pytest.approx([0.5, 1.0])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_is_the_definition(items: list[tuple[float, bool]], bins: int) -> None:
    """Guo et al. 2017, equation 3, as a plain loop; score 0 belongs to the first bin."""
    want = 0.0
    for m in range(1, bins + 1):
        inside = [(s, r) for s, r in items if (np.ceil(s * bins) == m) or (m == 1 and s == 0)]
        if inside:
            want += abs(sum(r for _, r in inside) - sum(s for s, _ in inside)) / len(items)
    found = reliability(np.array([s for s, _ in items]), np.array([r for _, r in items]), bins)
    assert found.ece == pytest.approx(want, abs=1e-9)
    assert 0 <= found.ece <= 1


@pytest.mark.parametrize(("power", "says"), [(1.0, "On average"), (0.5, "It is surer"), (2.0, "It is less sure")])
def test_says_which_way_it_is_off(power: float, says: str) -> None:
    """20,000 seeded answers that are right with probability p and say p ** power."""
    rng = np.random.default_rng(1)
    p = rng.uniform(0.3, 1.0, 20_000)
    found = reliability(p**power, rng.random(20_000) < p)
    assert found.sentence.startswith(says)
    if power == 1:
        assert found.ece < 0.02
    else:
        assert found.excess == pytest.approx((p**power - p).mean(), abs=0.01)
