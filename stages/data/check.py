"""Looks at a data set before anything is trained on it: counts, balance, duplicates, unreadable files, sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_demo.errors import InputError
from stages.data import annotated_check, scenes
from stages.data.annotated_sets import LAYOUTS
from stages.data.check_report import CheckReport, Finding, Sizes, SplitCheck, findings
from stages.data.drift import Looks, drifts
from stages.data.labelled import content_hash, without_repeats
from stages.data.sets import plan
from stages.data.splits import PRECEDENCE, SplitSet, read_and_split, walk
from stages.spec import DataConfig, OnStep, Split, ignore

__all__ = ["CheckReport", "Finding", "check"]

LISTED = 20  # examples of each kind of trouble kept in the report

Places = dict[Split, list[tuple[str, int]]]
"""Split -> (id, class id) of every item that is one and the same picture."""


@dataclass(slots=True)
class Seen:
    """What one pass over every picture collects."""

    unreadable: list[str] = field(default_factory=list)
    sizes_wh: Counter[tuple[int, int]] = field(default_factory=Counter)
    gray: int = 0
    looks: dict[Split, Looks] = field(default_factory=lambda: {split: Looks() for split in PRECEDENCE})
    pictures: dict[str, Places] = field(default_factory=dict)
    """Content hash -> where that picture appears."""


def check(config: DataConfig, on_step: OnStep = ignore) -> CheckReport:
    """Decodes every item once and reports; writes nothing.

    Duplicates are pictures with the same decoded pixels. Near-duplicates (another crop, another compression) are not
    looked for.

    Raises:
        InputError: the set is missing, or so broken that it has no classes or no items to look at. Single unreadable
            pictures are listed instead.
    """
    if config.name in LAYOUTS:
        return annotated_check.check(config, on_step)
    if config.name in scenes.TASKS:
        return check(scenes.glyph_config(config), on_step)  # composed: only what it is composed from can be wrong
    data = read_and_split(config, plan(config))
    seen = _look(data, on_step)
    conflicts = [tuple(ids) for ids in map(_conflicting, seen.pictures.values()) if ids]
    widths, heights = ({side: [size[side] for size in seen.sizes_wh.elements()] for side in (0, 1)}).values()
    readable = seen.sizes_wh.total()
    report = CheckReport(
        name=config.name,
        labels=data.labels,
        splits={
            split: _split_check(
                data.labels,
                selection.part.truth[selection.indices],
                sum(max(0, len(places.get(split, ())) - 1) for places in seen.pictures.values()),
            )
            for split, selection in data.splits.items()
        },
        shared=_shared(list(seen.pictures.values())),
        conflicts=len(conflicts),
        conflict_examples=tuple(conflicts[:LISTED]),
        unreadable=len(seen.unreadable),
        unreadable_files=tuple(seen.unreadable[:LISTED]),
        left_out=data.left_out,
        width=_sizes(widths),
        height=_sizes(heights),
        sizes=len(seen.sizes_wh),
        commonest_size=max(seen.sizes_wh.values()) / readable if readable else None,
        gray=seen.gray,
        readable=readable,
        drift=drifts(seen.looks),
        findings=(),
        notes=data.notes,
    )
    return report.model_copy(update={"findings": tuple(findings(report))})


def _look(data: SplitSet, on_step: OnStep) -> Seen:
    seen = Seen()
    for split in PRECEDENCE:
        part = data.splits[split].part
        for index in walk(split, data.splits[split], on_step):
            try:
                picture = without_repeats(part.picture(index))
            except InputError as error:
                seen.unreadable.append(error.message)
                continue
            seen.sizes_wh[picture.shape[1], picture.shape[0]] += 1
            seen.gray += picture.shape[2] == 1
            seen.looks[split].add(picture)
            places = seen.pictures.setdefault(content_hash(picture), {})
            places.setdefault(split, []).append((part.ids[index], int(part.truth[index])))
    return seen


def _split_check(labels: tuple[str, ...], truth: Any, duplicates: int) -> SplitCheck:
    counts = np.bincount(truth, minlength=len(labels)).tolist()
    return SplitCheck(
        items=len(truth),
        class_counts=dict(zip(labels, counts, strict=True)),
        imbalance=max(counts) / min(counts) if min(counts) else None,
        duplicates=duplicates,
    )


def _conflicting(items: Places) -> list[str]:
    """The ids of one picture that appears under different classes; empty when it does not."""
    everywhere = [entry for entries in items.values() for entry in entries]
    return [item for item, _ in everywhere] if len({truth for _, truth in everywhere}) > 1 else []


def _shared(pictures: list[Places]) -> dict[str, int]:
    pairs = (("test", "val"), ("test", "train"), ("val", "train"))
    counts = {
        f"{first} and {last}": sum(first in splits and last in splits for splits in pictures) for first, last in pairs
    }
    return {pair: count for pair, count in counts.items() if count}


def _sizes(values: list[int]) -> Sizes | None:
    if not values:
        return None
    return Sizes(smallest=min(values), median=float(np.median(values)), largest=max(values))
