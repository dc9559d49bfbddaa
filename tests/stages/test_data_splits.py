"""Splits: stratified, seeded, complete; the limit is met exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_demo.errors import InputError
from stages.data.splits import apportion, assign
from stages.spec import DataConfig

COUNTS = st.lists(st.integers(1, 60), min_size=2, max_size=8)


def truth_of(counts: list[int]) -> np.ndarray:
    truth = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(1).permutation(truth)


@given(COUNTS, st.floats(0.05, 0.45), st.floats(0.05, 0.45), st.integers(0, 5))
def test_cuts_are_disjoint_complete_and_stratified(counts: list[int], val: float, test: float, seed: int) -> None:
    truth = truth_of(counts)
    config = DataConfig(val_fraction=val, test_fraction=test, seed=seed)
    got = assign({"train": truth}, config)
    assert sorted(np.concatenate(list(got.values())).tolist()) == list(range(len(truth)))
    for split, fraction in (("val", val), ("test", test)):
        per_class = np.bincount(truth[got[split]], minlength=len(counts))
        for taken, count in zip(per_class, counts, strict=True):
            both = max(1, val * count) + max(1, test * count)
            if count >= both + 2:  # each rounded up by half an item at most, and one is left for training
                assert abs(taken - max(1, fraction * count)) <= 0.5 + 1e-9
    assert np.bincount(truth[got["train"]], minlength=len(counts)).min() >= 1


def test_same_seed_same_split_other_seed_other_split() -> None:
    truth = truth_of([50, 50])
    first, again, other = (assign({"train": truth}, DataConfig(seed=seed)) for seed in (4, 4, 5))
    assert all(np.array_equal(first[split], again[split]) for split in first)
    assert not np.array_equal(first["test"], other["test"])


def test_what_the_set_brings_stays_whole() -> None:
    truths = {"train": truth_of([30, 30]), "test": truth_of([7, 5])}
    got = assign(truths, DataConfig(val_fraction=0.2))
    assert got["test"].tolist() == list(range(12))
    assert np.bincount(truths["train"][got["val"]]).tolist() == [6, 6]
    assert np.bincount(truths["train"][got["train"]]).tolist() == [24, 24]


def test_rounding_is_half_up_and_a_pair_keeps_one_for_training() -> None:
    got = assign({"train": truth_of([25, 2, 1])}, DataConfig(val_fraction=0.1, test_fraction=0.1))
    truth = truth_of([25, 2, 1])
    assert np.bincount(truth[got["test"]], minlength=3).tolist() == [3, 1, 0]
    assert np.bincount(truth[got["val"]], minlength=3).tolist() == [3, 0, 0]
    assert np.bincount(truth[got["train"]], minlength=3).tolist() == [19, 1, 1]


@given(COUNTS, st.integers(1, 300))
def test_apportion_adds_up_and_stays_near_proportion(counts: list[int], limit: int) -> None:
    if limit < len(counts) and limit < sum(counts):
        with pytest.raises(InputError, match=r"data\.limit"):
            apportion(counts, limit)
        return
    shares = apportion(counts, limit)
    assert sum(shares) == min(limit, sum(counts))
    for share, count in zip(shares, counts, strict=True):
        exact = min(1.0, limit / sum(counts)) * count
        assert 1 <= share <= count
        assert share >= np.floor(exact) - len(counts)
        assert share <= max(1, np.ceil(exact))


def test_apportion_by_hand() -> None:
    """10 seats for 47, 16, 15, 12, 10: quotas 4.7 1.6 1.5 1.2 1.0; the two largest remainders get one more."""
    assert apportion([47, 16, 15, 12, 10], 10) == [5, 2, 1, 1, 1]


def test_limit_is_met_and_stratified_and_only_for_training() -> None:
    truth = truth_of([500, 300, 200])
    got = assign({"train": truth}, DataConfig(limit=100))
    assert np.bincount(truth[got["train"]]).tolist() == [50, 30, 20]
    assert len(got["val"]) == len(got["test"]) == 100


def test_fractions_that_leave_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="nothing is left for training"):
        assign({"train": truth_of([9, 9])}, DataConfig(val_fraction=0.5, test_fraction=0.5))
