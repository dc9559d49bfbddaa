"""Looks at a set of boxes or masks before anything is trained on it: every trouble named, counted and listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stages.data.annotated import LISTED, Annotated
from stages.data.annotated_prepare import gaps, opened
from stages.data.annotated_sets import open_set
from stages.data.check_report import CheckReport, Finding, Sizes, SplitCheck, findings
from stages.data.drift import Looks, drifts
from stages.data.labelled import content_hash, without_repeats
from stages.data.splits import PRECEDENCE
from stages.data.truths import KINDS, truth_of
from stages.spec import DataConfig, OnStep, Split, Step, ignore

UNREADABLE = "picture that cannot be read (left out)"
SHARED: tuple[tuple[Split, Split], ...] = (("test", "val"), ("test", "train"), ("val", "train"))


class _Seen:
    """What one pass over every picture of a set collects."""

    def __init__(self, num_labels: int) -> None:
        self.counts: dict[Split, NDArray[np.int64]] = {split: np.zeros(num_labels, np.int64) for split in PRECEDENCE}
        self.items: Counter[Split] = Counter()
        self.empty: Counter[Split] = Counter()
        self.hashes: dict[Split, list[str]] = {split: [] for split in PRECEDENCE}
        self.looks = {split: Looks() for split in PRECEDENCE}
        self.sizes_wh: list[tuple[int, int]] = []
        self.gray = 0


def check(config: DataConfig, on_step: OnStep = ignore) -> CheckReport:
    """Decodes every picture and reads every annotation once; writes nothing, and lists with `strict` as without.

    Raises:
        InputError: the set is missing, or so broken that nothing of training is left.
    """
    task, data = open_set(config)
    seen = _Seen(len(data.labels))
    for split in PRECEDENCE:
        _look(split, task, data, seen, on_step)
    notes = (*data.notes, *gaps(data, seen.counts))
    unreadable = data.problems.places.get(UNREADABLE, [])
    sizes = Counter(seen.sizes_wh)
    widths, heights = ([size[side] for size in seen.sizes_wh] for side in (0, 1))
    distinct = {split: set(found) for split, found in seen.hashes.items()}
    shared = {f"{first} and {last}": len(distinct[first] & distinct[last]) for first, last in SHARED}
    report = CheckReport(
        name=config.name,
        labels=data.labels,
        splits={split: _split_check(split, data.labels, seen) for split in PRECEDENCE},
        shared={pair: count for pair, count in shared.items() if count},
        conflicts=0,
        conflict_examples=(),
        unreadable=data.problems.counts.get(UNREADABLE, 0),
        unreadable_files=tuple(unreadable[:LISTED]),
        left_out=dict(data.problems.counts),
        annotations={what: tuple(places) for what, places in data.problems.places.items()},
        width=_sizes(widths),
        height=_sizes(heights),
        sizes=len(sizes),
        commonest_size=max(sizes.values()) / len(seen.sizes_wh) if sizes else None,
        gray=seen.gray,
        readable=len(seen.sizes_wh),
        drift=drifts(seen.looks),
        findings=(),
        notes=notes,
    )
    own = _about(task, data, seen)
    others = (found for found in findings(report) if found.what not in ("labels", "class balance"))
    return report.model_copy(update={"findings": (*own, *others)})


def _look(split: Split, task: str, data: Annotated, seen: _Seen, on_step: OnStep) -> None:
    items = data.splits[split]
    for done, item in enumerate(items, start=1):
        on_step(Step(split, done, len(items)))
        picture = opened(item, data.problems)
        if picture is None:
            continue
        size_wh = (picture.shape[1], picture.shape[0])
        truth = truth_of(task, item, size_wh, len(data.labels), data.problems)
        if truth is None:
            continue
        per_class = KINDS[task].per_class(truth, len(data.labels))
        seen.counts[split] += per_class
        seen.items[split] += 1
        seen.empty[split] += not KINDS[task].shows(truth)
        bare = without_repeats(picture)
        seen.hashes[split].append(content_hash(bare))
        seen.looks[split].add(bare)
        seen.sizes_wh.append(size_wh)
        seen.gray += bare.shape[2] == 1


def _split_check(split: Split, labels: tuple[str, ...], seen: _Seen) -> SplitCheck:
    counts, hashes = seen.counts[split].tolist(), seen.hashes[split]
    return SplitCheck(
        items=seen.items[split],
        class_counts=dict(zip(labels, counts, strict=True)),
        imbalance=max(counts) / min(counts) if min(counts) else None,
        duplicates=len(hashes) - len(set(hashes)),
    )


def _about(task: str, data: Annotated, seen: _Seen) -> Iterator[Finding]:
    """Sentences on the annotations themselves."""
    unit = KINDS[task].unit
    for split in reversed(PRECEDENCE):
        counted = ", ".join(
            f"{label} {count:,}" for label, count in zip(data.labels, seen.counts[split].tolist(), strict=True)
        )
        empty = f"; {seen.empty[split]:,} pictures without an object, kept" if seen.empty[split] else ""
        text = f"{split}: {seen.items[split]:,} pictures; {unit}: {counted}{empty}."
        yield Finding(what="annotations", fine=True, sentence=text)
    for what, count in data.problems.counts.items():
        places = data.problems.places[what]
        more = "" if len(places) >= count or len(places) <= 3 else ", ..."
        text = f"{count:,} x {what}: {', '.join(places[:3])}{more}"
        yield Finding(what="annotations", fine=False, sentence=text)
    if not data.problems.counts:
        yield Finding(what="annotations", fine=True, sentence="Nothing is wrong with any annotation.")


def _sizes(values: list[int]) -> Sizes | None:
    if not values:
        return None
    return Sizes(smallest=min(values), median=float(np.median(values)), largest=max(values))
