"""Which item goes into which split: stratified and seeded; what the set or another set brings stays as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from stages.data.labelled import Labelled, Part
from stages.data.sets import Plan
from stages.spec import DataConfig, OnStep, Split, Step

Indices = NDArray[np.int64]
# Whoever comes later gives up its duplicates: the reported split stays what it is, then the one that choices rest on.
PRECEDENCE: tuple[Split, ...] = ("test", "val", "train")


@dataclass(frozen=True, slots=True)
class Selection:
    """The items of one split, before duplicates are dropped: `part` read at `indices`."""

    part: Part
    indices: Indices


@dataclass(frozen=True, slots=True)
class SplitSet:
    """A data set read and split, no picture decoded yet."""

    labels: tuple[str, ...]
    splits: dict[Split, Selection]
    left_out: dict[str, int]
    notes: tuple[str, ...]


def walk(split: Split, selection: Selection, on_step: OnStep) -> Iterator[int]:
    """The indices of a split, in order; progress is reported after each hundredth part, and at the end."""
    total = len(selection.indices)
    stride = max(1, total // 100)
    for done, index in enumerate(selection.indices.tolist(), start=1):
        yield index
        if done % stride == 0 or done == total:
            on_step(Step(split, done, total))


def read_and_split(config: DataConfig, chosen: Plan) -> SplitSet:
    """Reads what the plan names and splits it.

    Raises:
        InputError: a set is missing or damaged, the two sets' classes differ, or a split would stay empty.
    """
    own = chosen.own.read()
    parts, notes = dict(own.parts), [*chosen.notes, *own.notes]
    if chosen.test is not None:
        test = chosen.test.read()
        parts["test"] = _test_part(own, test, chosen.own.name, chosen.test.name)
        notes += test.notes
    indices = assign({split: part.truth for split, part in parts.items()}, config)
    splits = {
        split: Selection(parts[split] if split in parts else parts["train"], indices[split]) for split in PRECEDENCE
    }
    for split, selection in splits.items():
        if len(selection.indices) == 0:
            raise InputError(f"data: no images for {split}", f"add images, or raise data.{split}_fraction")
    return SplitSet(own.labels, splits, own.left_out, tuple(notes))


def _test_part(own: Labelled, test: Labelled, own_name: str, test_name: str) -> Part:
    if "test" not in test.parts:
        raise InputError(f"data.test_set: '{test_name}' brings no test split", "type data.test_set = 'own'")
    if own.labels != test.labels:
        raise InputError(
            f"data.test_set: the classes of '{test_name}' are not those of '{own_name}'", "type data.test_set = 'own'"
        )
    return test.parts["test"]


def assign(truths: Mapping[Split, NDArray[np.int64]], config: DataConfig) -> dict[Split, Indices]:
    """Indices into the brought split, or into `train` for a split that has to be cut from it; each sorted.

    Of every class a cut takes its share, rounded half up, but at least one image and never the last one.

    Args:
        truths: Class ids of each split the set brings; always with `train`.
        config: Fractions, seed and limit.

    Raises:
        InputError: the fractions leave nothing for training, or the limit is below one image per class.
    """
    cut = {
        "test": 0.0 if "test" in truths else config.test_fraction,
        "val": 0.0 if "val" in truths else config.val_fraction,
    }
    if sum(cut.values()) >= 1:
        raise InputError(
            "data.val_fraction, data.test_fraction: nothing is left for training", "lower them below 1 together"
        )
    rng = np.random.default_rng(config.seed)
    taken: dict[Split, list[Indices]] = {"train": [], "val": [], "test": []}
    for class_id in np.unique(truths["train"]):
        members = rng.permutation(np.flatnonzero(truths["train"] == class_id))
        n_test = _share(cut["test"], len(members), len(members) - 1)
        n_val = _share(cut["val"], len(members), len(members) - 1 - n_test)
        taken["test"].append(members[:n_test])
        taken["val"].append(members[n_test : n_test + n_val])
        taken["train"].append(members[n_test + n_val :])
    if config.limit:
        sizes = apportion([len(members) for members in taken["train"]], config.limit)
        # Members are in random order already, so the first ones are a random sample.
        taken["train"] = [members[:size] for members, size in zip(taken["train"], sizes, strict=True)]
    brought = {split: np.arange(len(truth)) for split, truth in truths.items() if split != "train"}
    return {split: np.sort(np.concatenate(members)) for split, members in taken.items()} | brought


def _share(fraction: float, count: int, most: int) -> int:
    if fraction == 0:
        return 0
    return min(most, max(1, math.floor(fraction * count + 0.5)))


def apportion(counts: list[int], limit: int) -> list[int]:
    """Shares of `limit` in proportion to `counts`, at least one each, adding up to `limit` (or to all there is).

    Source: the method of largest remainders (Hamilton), with the smallest classes lifted to one first.

    Raises:
        InputError: the limit is below one per class.
    """
    total = sum(counts)
    if limit >= total:
        return counts
    if limit < len(counts):
        raise InputError(f"data.limit: {limit} is below one image for each of the {len(counts)} classes", "raise it")
    exact = [count * limit / total for count in counts]
    shares = [max(1, math.floor(share)) for share in exact]
    while (missing := limit - sum(shares)) != 0:
        step = 1 if missing > 0 else -1
        # The share furthest below (or, when too many were lifted, above) its exact value; a single image stays.
        movable = [i for i, share in enumerate(shares) if step > 0 or share > 1]
        shares[max(movable, key=lambda i: step * (exact[i] - shares[i]))] += step
    return shares
