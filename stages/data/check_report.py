"""What `pipeline data check` reports: the numbers, and a sentence on each matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from stages.data.drift import THRESHOLD, Drift
from stages.data.drift import sentence as drift_sentence
from stages.spec import RESULT

IMBALANCE = 2.0
"""Our own choice: training images of the largest class per image of the smallest, up to which all is well."""


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


class Finding(BaseModel):
    """One thing that was looked for, in a sentence."""

    model_config = RESULT
    what: Literal[
        "corrupt files", "annotations", "duplicates", "labels", "class balance", "size", "brightness", "kinds"
    ]
    fine: bool
    sentence: str


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
    annotations: dict[str, tuple[str, ...]] = {}
    """Boxes and masks: trouble -> the first places; `left_out` has the counts, also of what was only clipped."""
    width: Sizes | None
    height: Sizes | None
    sizes: int
    """Distinct sizes (width x height) of the readable pictures."""
    commonest_size: float | None
    """Share of the readable pictures that have the commonest size."""
    gray: int
    """Readable pictures whose three channels are equal."""
    readable: int
    drift: tuple[Drift, ...]
    findings: tuple[Finding, ...]
    """Everything above in sentences, at least one on each matter."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


def findings(report: CheckReport) -> Iterator[Finding]:
    """The report in sentences; at least one on corrupt files, duplicates, labels, balance, sizes, brightness, kinds."""
    yield _corrupt(report)
    yield from _duplicates(report)
    yield _labels(report)
    yield from _balance(report)
    yield from _sizes(report)
    yield from _brightness(report)
    yield _kinds(report)


def _corrupt(report: CheckReport) -> Finding:
    if report.unreadable:
        text = f"{_pictures(report.unreadable)} cannot be read, first {report.unreadable_files[0]}: replace or remove."
        return Finding(what="corrupt files", fine=False, sentence=text)
    return Finding(what="corrupt files", fine=True, sentence=f"All {report.readable:,} pictures can be read.")


def _duplicates(report: CheckReport) -> Iterator[Finding]:
    for split, part in report.splits.items():
        if part.duplicates:
            text = f"{split}: {_pictures(part.duplicates)} repeat another one of the same split, pixel for pixel; kept."
            yield Finding(what="duplicates", fine=False, sentence=text)
    for pair, count in report.shared.items():
        text = f"{_pictures(count)} are in both {pair}; the run drops them from {pair.rsplit(maxsplit=1)[-1]}."
        yield Finding(what="duplicates", fine=False, sentence=text)
    if not report.shared and not any(part.duplicates for part in report.splits.values()):
        yield Finding(
            what="duplicates", fine=True, sentence="No picture appears twice (same pixels), within or across splits."
        )


def _labels(report: CheckReport) -> Finding:
    if report.conflicts:
        example = ", ".join(report.conflict_examples[0])
        text = f"{_pictures(report.conflicts)} appear under more than one class, e.g. {example}."
        return Finding(what="labels", fine=False, sentence=text)
    return Finding(what="labels", fine=True, sentence="No picture appears under two classes.")


def _balance(report: CheckReport) -> Iterator[Finding]:
    for split, part in report.splits.items():
        missing = [label for label, count in part.class_counts.items() if count == 0]
        if missing:
            text = f"{split} has no pictures of {', '.join(missing)}: its numbers say nothing about them."
            yield Finding(what="class balance", fine=False, sentence=text)
    train = report.splits["train"]
    if train.imbalance is not None:
        counts = train.class_counts
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        text = f"train: {_pictures(counts[most])} of every class."
        if counts[most] != counts[least]:
            text = (
                f"train: {counts[most]:,} pictures of {most} (most) against {counts[least]:,} of {least} (least), "
                f"{train.imbalance:.2f} to 1 (limit {IMBALANCE:g})."
            )
        yield Finding(what="class balance", fine=train.imbalance <= IMBALANCE, sentence=text)


def _sizes(report: CheckReport) -> Iterator[Finding]:
    if report.width is None or report.height is None or report.commonest_size is None:
        return
    if report.sizes == 1:
        text = f"All pictures are {report.width.smallest}x{report.height.smallest}."
    else:
        text = (
            f"{report.sizes:,} sizes in {_pictures(report.readable)}, {report.width.smallest} to {report.width.largest}"
            f" wide and {report.height.smallest} to {report.height.largest} high; the commonest one has "
            f"{report.commonest_size:.0%} of them."
        )
    yield Finding(what="size", fine=True, sentence=text)
    drifted = [drift for drift in report.drift if drift.flagged and drift.quantity in ("size", "aspect")]
    for drift in drifted:
        yield Finding(what="size", fine=False, sentence=drift_sentence(drift))


def _brightness(report: CheckReport) -> Iterator[Finding]:
    looked = [drift for drift in report.drift if drift.quantity in ("brightness", "contrast")]
    for drift in looked:
        if drift.flagged:
            yield Finding(what="brightness", fine=False, sentence=drift_sentence(drift))
    if looked and not any(drift.flagged for drift in looked):
        largest = max(abs(drift.difference or 0.0) for drift in looked)
        text = (
            "Brightness and contrast of val and test are like those of train: largest difference "
            f"{largest:.2f} standard deviations (limit {THRESHOLD}, and beyond chance)."
        )
        yield Finding(what="brightness", fine=True, sentence=text)


def _kinds(report: CheckReport) -> Finding:
    if 0 < report.gray < report.readable:
        text = f"{report.gray:,} of {_pictures(report.readable)} are gray, the others in colour."
    else:
        text = f"All pictures are {'gray' if report.gray else 'in colour'}."
    return Finding(what="kinds", fine=True, sentence=text)


def _pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"
