"""The stage for annotated pictures: each decoded once, checked against its annotation, brought to size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from edge_demo.image import Frame, read_frame
from stages.data.annotated import Annotated, Item, Problems
from stages.data.annotated_sets import open_set
from stages.data.annotated_write import Ready, SplitWriter, Written, write_items
from stages.data.labelled import content_hash
from stages.data.prepare import network_frame, normalization
from stages.data.splits import PRECEDENCE
from stages.data.truths import KINDS, truth_of
from stages.spec import DataConfig, DataResult, OnStep, Split, Step, ignore


def run(config: DataConfig, *, out_dir: Path, on_step: OnStep = ignore) -> DataResult:
    """Reads, splits and resizes a set of boxes or masks into `out_dir`; see `DataResult` for the files.

    Splits share no picture, as in `stages.data.prepare`: training gives up its duplicates first, test none. Every
    trouble of an annotation is counted in `dropped`, or with `strict` ends the stage.

    Raises:
        InputError: the set is missing or damaged, a split or a class of training stays empty, or `strict`.
    """
    task, data = open_set(config)
    for note in data.notes:
        on_step(Step("data", note=note))
    data.problems.stop_if(config.strict)
    seen: dict[str, Split] = {}
    dropped: Counter[str] = Counter()
    written: dict[Split, Written] = {}
    for split in PRECEDENCE:
        writer = SplitWriter(out_dir, split, task, config, len(data.labels))
        try:
            for ready in _frames(split, task, data, config, on_step):
                if seen.setdefault(ready.key, split) != split:
                    dropped[f"duplicate of {seen[ready.key]}"] += 1
                else:
                    writer.add(ready)
        finally:
            written[split] = writer.close()
    found = gaps(data, {split: part.class_counts for split, part in written.items()})
    for split, part in written.items():
        if not part.ids:
            raise InputError(f"data: {split} has no usable pictures", "type: pipeline data check")
    data.problems.stop_if(config.strict)
    troubles = [
        f"{count:,} x {what}; first: {data.problems.places[what][0]}." for what, count in data.problems.counts.items()
    ]
    for note in (*found, *troubles):
        on_step(Step("data", note=note))
    write_items(out_dir, written)
    return result(
        config, task, data.labels, written, out_dir, dropped | data.problems.counts, (*data.notes, *found, *troubles)
    )


def result(
    config: DataConfig,
    task: str,
    labels: tuple[str, ...],
    written: dict[Split, Written],
    out_dir: Path,
    dropped: dict[str, int],
    notes: tuple[str, ...],
) -> DataResult:
    """What later stages get. `dropped` also counts what was only clipped or listed; the reason says so."""
    normalized = normalization(written["train"].levels, config.colour)
    return DataResult(
        folder=out_dir,
        name=config.name,
        task=task,
        labels=labels,
        size_wh=config.size_wh,
        resize=config.resize,
        colour=config.colour,
        counts={split: len(part.ids) for split, part in written.items()},
        class_counts={split: tuple(part.class_counts.tolist()) for split, part in written.items()},
        digests={split: part.digest for split, part in written.items()},
        mean=normalized.mean,
        std=normalized.std,
        centre=normalized.centre,
        dropped=dropped,
        notes=notes,
    )


def _frames(split: Split, task: str, data: Annotated, config: DataConfig, on_step: OnStep) -> Iterator[Ready]:
    items = data.splits[split]
    for done, item in enumerate(items, start=1):
        picture = opened(item, data.problems)
        if picture is not None:
            size_wh = (picture.shape[1], picture.shape[0])
            truth = truth_of(task, item, size_wh, len(data.labels), data.problems)
            if truth is not None:
                placed = KINDS[task].placed(truth, size_wh, config, item.id, data.problems)
                frame = network_frame(picture, config)
                yield Ready(item.id, content_hash(picture), frame, size_wh, placed)
        if done % max(1, len(items) // 100) == 0 or done == len(items):
            on_step(Step(split, done, len(items)))


def opened(item: Item, problems: Problems) -> Frame | None:
    """The picture, BGR; None, and counted, when it cannot be read or is not of the size its annotation states."""
    try:
        picture = read_frame(item.file)
    except InputError as error:
        problems.add("picture that cannot be read (left out)", error.message)
        return None
    size_wh = (picture.shape[1], picture.shape[0])
    if item.declared_wh is not None and item.declared_wh != size_wh:
        stated, real = ("x".join(map(str, size)) for size in (item.declared_wh, size_wh))
        problems.add("annotation of another size than its picture (left out)", f"{item.id}: {stated}, is {real}")
        return None
    return picture


def gaps(data: Annotated, counts: dict[Split, NDArray[np.int64]]) -> tuple[str, ...]:
    """Sentences on the classes a split lacks, which are counted as a trouble, too.

    Raises:
        InputError: training shows no class at all.
    """
    sentences: list[str] = []
    for split, per_class in counts.items():
        missing = [label for label, count in zip(data.labels, per_class.tolist(), strict=True) if count == 0]
        if split == "train" and len(missing) == len(data.labels):
            raise InputError("data: train shows no object of any class", "type: pipeline data check")
        data.problems.add(f"class that {split} does not show", ", ".join(missing), len(missing))
        if missing:
            effect = "nothing is learned about them" if split == "train" else "its numbers say nothing about them"
            sentences.append(f"{split} shows no {', '.join(missing)}: {effect}.")
    return tuple(sentences)
