"""Looks at a data set before anything is trained on it: counts, balance, duplicates, unreadable files, sizes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from pydantic import BaseModel

from edge_demo.errors import InputError
from stages.data.labelled import content_hash
from stages.data.sets import plan
from stages.data.splits import PRECEDENCE, read_and_split, walk
from stages.spec import RESULT, DataConfig, OnStep, Split, ignore

LISTED = 20  # examples of each kind of trouble kept in the report


class Sizes(BaseModel):
    """Smallest, median and largest of one side, in pixels."""

    model_config = RESULT
    smallest: int
    median: float
    largest: int


class SplitCheck(BaseModel):
    """One split as `run` would make it, before duplicates are dropped."""

    model_config = RESULT
    items: int
    class_counts: dict[str, int]
    imbalance: float | None
    """Images of the largest class per image of the smallest; null where a class has none."""
    duplicates: int
    """Readable pictures that appeared before in the same split."""


class CheckReport(BaseModel):
    """What `pipeline data check` found."""

    model_config = RESULT
    name: str
    labels: tuple[str, ...]
    splits: dict[str, SplitCheck]
    shared: dict[str, int]
    """Pair of splits -> different pictures in both; the stage drops them from the one named last."""
    conflicts: int
    """Different pictures that appear under more than one class."""
    conflict_examples: tuple[tuple[str, ...], ...]
    unreadable: int
    unreadable_files: tuple[str, ...]
    """The error of each, the first ones."""
    left_out: dict[str, int]
    width: Sizes | None
    height: Sizes | None
    gray: int
    """Readable pictures whose three channels are equal."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


def check(config: DataConfig, on_step: OnStep = ignore) -> CheckReport:
    """Decodes every item once and reports; writes nothing.

    Raises:
        InputError: the set is missing, or so broken that it has no classes or no items to look at. Single unreadable
            pictures are listed instead.
    """
    data = read_and_split(config, plan(config))
    unreadable: list[str] = []
    shapes: list[tuple[int, int]] = []
    gray = 0
    seen: dict[str, dict[Split, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
    for split in PRECEDENCE:
        part = data.splits[split].part
        for index in walk(split, data.splits[split], on_step):
            try:
                picture = part.picture(index)
            except InputError as error:
                unreadable.append(error.message)
                continue
            shapes.append((picture.shape[1], picture.shape[0]))
            gray += bool((picture == picture[:, :, :1]).all())
            seen[content_hash(picture)][split].append((part.ids[index], int(part.truth[index])))
    width, height = (_sizes([shape[side] for shape in shapes]) for side in (0, 1))
    conflicts = [tuple(ids) for ids in map(_conflicting, seen.values()) if ids]
    return CheckReport(
        name=config.name,
        labels=data.labels,
        splits={
            split: _split_check(
                data.labels,
                selection.part.truth[selection.indices],
                sum(max(0, len(items[split]) - 1) for items in seen.values() if split in items),
            )
            for split, selection in data.splits.items()
        },
        shared=_shared(list(seen.values())),
        conflicts=len(conflicts),
        conflict_examples=tuple(conflicts[:LISTED]),
        unreadable=len(unreadable),
        unreadable_files=tuple(unreadable[:LISTED]),
        left_out=data.left_out,
        width=width,
        height=height,
        gray=gray,
        notes=data.notes,
    )


def _split_check(labels: tuple[str, ...], truth: Any, duplicates: int) -> SplitCheck:
    counts = np.bincount(truth, minlength=len(labels)).tolist()
    return SplitCheck(
        items=len(truth),
        class_counts=dict(zip(labels, counts, strict=True)),
        imbalance=max(counts) / min(counts) if min(counts) else None,
        duplicates=duplicates,
    )


def _conflicting(items: dict[Split, list[tuple[str, int]]]) -> list[str]:
    """The ids of one picture that appears under different classes; empty when it does not."""
    everywhere = [entry for entries in items.values() for entry in entries]
    return [item for item, _ in everywhere] if len({truth for _, truth in everywhere}) > 1 else []


def _shared(pictures: list[dict[Split, list[tuple[str, int]]]]) -> dict[str, int]:
    pairs = (("test", "val"), ("test", "train"), ("val", "train"))
    counts = {
        f"{first} and {last}": sum(first in splits and last in splits for splits in pictures) for first, last in pairs
    }
    return {pair: count for pair, count in counts.items() if count}


def _sizes(values: list[int]) -> Sizes | None:
    if not values:
        return None
    return Sizes(smallest=min(values), median=float(np.median(values)), largest=max(values))
