"""Drift between splits: measures against numpy and hand-worked numbers, flags against what chance does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.drift import QUANTITIES, THRESHOLD, Drift, Looks, drifts, sentence


def looks(**values: list[float]) -> Looks:
    """Brightness as given, everything else the same for every picture."""
    n = len(next(iter(values.values())))
    return Looks({name: values.get(name, [0.5] * n) for name in QUANTITIES})


def brightness(train: list[float], test: list[float]) -> Drift:
    rows = drifts({"train": looks(brightness=train), "val": looks(brightness=train), "test": looks(brightness=test)})
    return next(row for row in rows if (row.quantity, row.split) == ("brightness", "test"))


def test_a_pictures_measures() -> None:
    found = Looks()
    found.add(np.array([[[0], [255]], [[255], [0]]], np.uint8).repeat(2, axis=1))
    assert {name: values[0] for name, values in found.values.items()} == {
        "brightness": 0.5,
        "contrast": 0.5,
        "size": 3.0,
        "aspect": 1.0,
    }
    found.add(np.full((4, 4, 3), (255, 0, 0), np.uint8))  # pure blue: BT.601 gives it 0.114, rounded to 29 of 255
    assert found.values["brightness"][1] == pytest.approx(29 / 255)
    assert found.values["contrast"][1] == 0


@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_luma_is_numpys_within_half_a_level(seed: int, channels: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (9, 7, channels), np.uint8)
    luma = picture[:, :, 0] if channels == 1 else picture.astype(np.float64) @ [0.114, 0.587, 0.299]
    found = Looks()
    found.add(picture)
    assert found.values["brightness"][0] == pytest.approx(luma.mean() / 255, abs=0.51 / 255)
    assert found.values["contrast"][0] == pytest.approx(luma.std() / 255, abs=0.51 / 255)


def test_standardized_difference_by_hand() -> None:
    """Means 0.2 and 0.5, both variances 0.02: (0.5 - 0.2) / sqrt(0.02)."""
    row = brightness([0.1, 0.3], [0.4, 0.6])
    assert row.difference == pytest.approx(0.3 / math.sqrt(0.02))
    assert (row.train_mean, row.split_mean, row.n) == (pytest.approx(0.2), pytest.approx(0.5), (2, 2))
    # 1.96 sqrt(4 / 4 + 4.5 / 8)
    assert row.margin95 == pytest.approx(1.96 * math.sqrt(1.5625))
    assert not row.flagged  # two pictures each: 2.12 is within 2.45


def test_the_margin_is_what_chance_does() -> None:
    """Splits of one and the same distribution leave the interval around 0 in about 5 of 100 cases."""
    rng = np.random.default_rng(0)
    rows = [brightness(rng.normal(size=60).tolist(), rng.normal(size=40).tolist()) for _ in range(400)]
    outside = sum(abs(row.difference or 0) > (row.margin95 or 0) for row in rows)
    assert 8 <= outside <= 34  # 20 expected; three binomial standard deviations are 13


@pytest.mark.parametrize(("shift", "flagged"), [(0.1, False), (0.3, True), (-0.3, True)])
def test_flagged_only_beyond_the_threshold(shift: float, flagged: bool) -> None:
    """5,000 pictures each: chance does 0.04, so the threshold decides."""
    rng = np.random.default_rng(1)
    train = rng.normal(size=5000)
    row = brightness(train.tolist(), (rng.permutation(train) + shift).tolist())
    assert row.difference == pytest.approx(shift, abs=0.02)
    assert row.flagged is flagged
    assert row.flagged is (abs(row.difference) > THRESHOLD)


def test_splits_without_any_spread() -> None:
    """0.1 is no exact number: sums of it differ in their last digit, which must not count."""
    same = brightness([0.1] * 3, [0.1] * 7)
    assert (same.difference, same.flagged) == (0.0, False)
    other = brightness([0.1] * 3, [0.2] * 7)
    assert (other.difference, other.margin95, other.flagged) == (None, None, True)
    assert "brighter than those of train, though neither split varies" in sentence(other)


def test_a_single_picture_says_nothing() -> None:
    one, two = looks(brightness=[0.1]), looks(brightness=[0.1, 0.2])
    assert {row.split for row in drifts({"train": two, "val": one, "test": two})} == {"test"}
    assert drifts({"train": one, "val": two, "test": two}) == ()


def test_a_sentence_names_direction_amount_and_n() -> None:
    row = brightness(np.linspace(0.4, 0.6, 500).tolist(), np.linspace(0.3, 0.5, 400).tolist())
    said = sentence(row)
    assert said.startswith("Pictures of test are darker than those of train, by 1.7")
    assert "(limit 0.2)" in said
    assert "brightness 0.400 against 0.500" in said
    assert "n = 400 and 500" in said
