"""What the report says of boxes: average precision of every class, what is taken for what, the worst frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edge_demo.boxes import iou
from edge_demo.tasks import TASKS, detect_metric
from edge_demo.tasks.detect import Boxes
from pipeline.report_frames import FrameShown, jpeg_uri, test_frames
from stages.spec import DataResult

FROZEN = ConfigDict(extra="forbid", frozen=True)
ARRAYS = frozenset({"found_xyxy", "found_score", "found_class", "found_item", "true_xyxy", "true_class", "true_crowd"})
MATRIX_CLASSES = 30  # a wider confusion matrix is no longer readable
WORST_SHARE = 2 / 3  # of the frames shown; the others are drawn from the rest, so that both are seen
SAME_PLACE = 0.5  # IoU from which a shown and a true box are about the same thing, whatever their classes
LARGE = 480  # px; smaller frames are enlarged by whole factors up to it, so that labels can be read


class ClassBoxes(BaseModel):
    """One class on test; null where it has no true box, or none is shown."""

    model_config = FROZEN
    label: str
    boxes: int
    """True ones, crowds left out."""
    ap50: float | None
    ap50_95: float | None
    found: float | None
    """Share of its true boxes that a shown box of the class overlaps by half."""
    right: float | None
    """Share of its shown boxes that are that."""
    precision: tuple[float, ...]
    """At recall 0, 1, ... 100 %, IoU 0.5; empty without a true box."""


class Detection(BaseModel):
    """Boxes of test, of the shipped precision in ONNX Runtime."""

    model_config = FROZEN
    frames: int
    boxes: int
    shown: int
    threshold: float
    """Score from which boxes are shown; average precision looks at all of them."""
    classes: tuple[ClassBoxes, ...]
    matrix: tuple[tuple[int, ...], ...] | None
    """Shown against true boxes in one place: row = truth, column = answer, the last of each is nothing; null for more
    classes than can be read."""


def is_told_by(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the predictions are those of boxes."""
    return set(arrays) >= ARRAYS


def results_of(arrays: Mapping[str, NDArray[Any]], frames: int) -> tuple[list[Boxes], list[dict[str, Any]]]:
    """Answers and truths of every frame, as evaluate had them."""
    threshold = float(arrays["shown"])
    items = np.arange(frames + 1)
    found, true = (np.searchsorted(arrays[f"{name}_item"], items) for name in ("found", "true"))
    results, truths = [], []
    for item in range(frames):
        own, theirs = slice(found[item], found[item + 1]), slice(true[item], true[item + 1])
        scores = arrays["found_score"][own]
        results.append(
            Boxes(arrays["found_xyxy"][own], scores, arrays["found_class"][own], scores >= threshold, threshold)
        )
        truths.append({name: arrays[f"true_{of}"][theirs] for name, of in
                       (("boxes", "xyxy"), ("classes", "class"), ("crowd", "crowd"))})  # fmt: skip
    return results, truths


def facts_of(data: DataResult, arrays: Mapping[str, NDArray[Any]]) -> Detection:
    """Everything the page says in numbers."""
    results, truths = results_of(arrays, data.counts["test"])
    curves = detect_metric.curves([(r.xyxy, r.scores, r.class_ids) for r in results], truths)
    column = {int(class_id): place for place, class_id in enumerate(curves.class_ids)}
    ap, counts = curves.ap(), confusion(results, truths, len(data.labels))
    true, shown, same = counts[:-1].sum(axis=1), counts[:, :-1].sum(axis=0), np.diag(counts)
    rows = []
    for index, label in enumerate(data.labels):
        at = column.get(index)
        rows.append(
            ClassBoxes(
                label=label,
                boxes=int(true[index]),
                ap50=None if at is None else float(ap[0, at]),
                ap50_95=None if at is None else float(ap[:, at].mean()),
                found=float(same[index] / true[index]) if true[index] else None,
                right=float(same[index] / shown[index]) if shown[index] else None,
                precision=() if at is None else tuple(map(float, curves.precision[0, :, at])),
            )
        )
    return Detection(
        frames=data.counts["test"],
        boxes=int(true.sum()),
        shown=int(shown.sum()),
        threshold=float(arrays["shown"]),
        classes=tuple(rows),
        matrix=tuple(tuple(map(int, row)) for row in counts) if len(data.labels) <= MATRIX_CLASSES else None,
    )


def confusion(results: list[Boxes], truths: list[dict[str, Any]], num_labels: int) -> NDArray[np.int64]:
    """int64 (C + 1, C + 1): row = truth, column = what is shown there; the last row and column are nothing.

    Pairs of a shown and a true box go together by falling IoU, from `SAME_PLACE` on, each box once. What is shown
    inside of a crowd and has no partner counts for nothing.
    """
    counts = np.zeros((num_labels + 1, num_labels + 1), np.int64)
    for result, truth in zip(results, truths, strict=True):
        shown, crowd = result.only(result.shown), np.asarray(truth["crowd"], bool)
        boxes, classes = np.reshape(truth["boxes"], (-1, 4))[~crowd], np.asarray(truth["classes"])[~crowd]
        near = iou(np.asarray(shown.xyxy, np.float64), np.asarray(boxes, np.float64))
        is_free, is_missed = np.ones(len(shown.scores), bool), np.ones(len(boxes), bool)
        ours, theirs = np.nonzero(near >= SAME_PLACE)
        for pair in np.argsort(-near[ours, theirs], kind="stable"):
            a, b = ours[pair], theirs[pair]
            if is_free[a] and is_missed[b]:
                is_free[a] = is_missed[b] = False
                counts[classes[b], shown.class_ids[a]] += 1
        is_free &= ~_inside(shown.xyxy, np.reshape(truth["boxes"], (-1, 4))[crowd])
        np.add.at(counts[num_labels], shown.class_ids[is_free], 1)
        np.add.at(counts, (classes[is_missed], num_labels), 1)
    return counts


def _inside(xyxy: NDArray[Any], crowds: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether half of a box or more lies in one of the crowds."""
    sides = np.minimum(xyxy[:, None, 2:], crowds[None, :, 2:]) - np.maximum(xyxy[:, None, :2], crowds[None, :, :2])
    shared = np.clip(sides, 0, None).prod(axis=2)
    own = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
    inside: NDArray[np.bool_] = (shared >= SAME_PLACE * own[:, None]).any(axis=1)
    return inside


def frames_shown(
    data: DataResult, arrays: Mapping[str, NDArray[Any]], samples: int
) -> tuple[list[FrameShown], list[FrameShown]]:
    """(the frames of lowest quality, others, evenly spread over better ones), together at most `samples`.

    Raises:
        Error: predictions of another test split.
    """
    frames, quality = test_frames(data, arrays["quality"]), arrays["quality"]
    results, truths = results_of(arrays, len(frames))
    order = np.argsort(quality, kind="stable")
    worst, rest = order[: round(samples * WORST_SHARE)], order[round(samples * WORST_SHARE) :]
    wanted = min(samples - len(worst), len(rest))
    others = rest[np.linspace(0, len(rest) - 1, wanted).astype(int)] if wanted else rest[:0]

    def shown(item: int) -> FrameShown:
        picture = beside(np.asarray(frames[item]), truths[item], results[item], data.labels)
        counts = np.bincount(np.asarray(truths[item]["classes"], np.int64), minlength=len(data.labels))
        seen = [f"{count} {label}" for label, count in zip(data.labels, counts, strict=True) if count]
        size_wh = (picture.shape[1], picture.shape[0])
        return FrameShown(jpeg_uri(picture), size_wh, float(quality[item]), ", ".join(seen) or "nothing")

    return [shown(int(item)) for item in worst], [shown(int(item)) for item in others]


def beside(
    frame: NDArray[np.uint8], truth: Mapping[str, Any], result: Boxes, labels: tuple[str, ...]
) -> NDArray[np.uint8]:
    """A frame (H, W, 1 or 3) under its true boxes, and beside it under the shown ones: BGR, as the demo draws them."""
    factor = max(1, LARGE // max(frame.shape[:2]))
    bgr = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame
    bgr = np.ascontiguousarray(bgr.repeat(factor, axis=0).repeat(factor, axis=1))
    boxes, classes = np.reshape(truth["boxes"], (-1, 4)).astype(np.float32), np.asarray(truth["classes"], np.int64)
    true = Boxes(boxes * factor, np.ones(len(boxes), np.float32), classes, np.ones(len(boxes), bool), 0.0)
    ours = Boxes(result.xyxy * factor, result.scores, result.class_ids, result.shown, result.threshold)
    drawn = [TASKS["detect"].draw(bgr, answer, labels, {}) for answer in (true, ours)]
    return np.concatenate(drawn, axis=1)
