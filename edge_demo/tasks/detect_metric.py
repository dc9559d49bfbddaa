"""Average precision as pycocotools computes it, for all images at once: no loop over images, boxes or thresholds.

Source: the COCO detection evaluation (cocodataset.org, "Detection Evaluate", metrics AP and AP50, area `all`, at most
100 boxes per image and class) and its reference implementation, whose tie rules are kept: boxes of equal score stay in
their order, the last of equally good true boxes wins, a crowd matches any number of boxes and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

IOU_LEVELS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
RESAMPLES = 100  # for a standard error, which they give to within 7 %
Z_95 = 1.959963984540054  # the standard normal's 97.5 % point
MAX_PER_CLASS = 100  # boxes of one class in one image that count
NEVER, CROWD, ORDINARY = -1.0, 0.0, 2.0  # added to an IoU: an ordinary true box always goes before a crowd

Found = tuple[ArrayLike, ArrayLike, ArrayLike]
"""Of one image: boxes (n, 4) xyxy, scores (n,), class ids (n,)."""


@dataclass(frozen=True, slots=True)
class Truths:
    """All true boxes of a set, image after image: `xyxy` float64 (n, 4), `class_ids`, `images` int64, `crowd` bool."""

    xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    images: NDArray[np.int64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Matches:
    """What became of every box that counts, the best scores of an image and class first.

    `scores` float64, `class_ids`, `images` int64, all (n,); `hit` and `ignored` bool (10, n): matched to a true box at
    that IoU level, or to a crowd.
    """

    scores: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    images: NDArray[np.int64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Curves:
    """Precision over recall of the C classes that have a true box that is no crowd.

    `class_ids` int64 (C,); `precision` float64 (10, 101, C) at `IOU_LEVELS` and `RECALLS`, never rising with recall;
    `counts` int64 (C,): true boxes of each class.
    """

    class_ids: NDArray[np.int64]
    precision: NDArray[np.float64]
    counts: NDArray[np.int64]

    def ap(self) -> NDArray[np.float64]:
        """(10, C): average precision per IoU level and class."""
        means: NDArray[np.float64] = self.precision.mean(axis=1)
        return means


def flat_truths(truths: Sequence[Mapping[str, Any]]) -> Truths:
    """`{"boxes": (n, 4), "classes": (n,), "crowd": (n,)}` per image, `crowd` may be left out -> one struct.

    Raises:
        ValueError: an image has not as many classes or crowd flags as boxes.
    """
    boxes = [np.asarray(truth["boxes"], dtype=np.float64).reshape(-1, 4) for truth in truths]
    classes = [np.asarray(truth["classes"], dtype=np.int64).reshape(-1) for truth in truths]
    crowds = [
        np.asarray(truth.get("crowd", [False] * len(c)), dtype=bool) for truth, c in zip(truths, classes, strict=True)
    ]
    for number, rows in enumerate(zip(boxes, classes, crowds, strict=True)):
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"truth {number}: {[len(row) for row in rows]} boxes, classes and crowd flags")
    return Truths(_joined(boxes, (0, 4)), _joined(classes, (0,)), _numbers(boxes), _joined(crowds, (0,)))


def match(found: Sequence[Found], truths: Truths) -> Matches:
    """Assign the boxes of every image to its true boxes, greedily by falling score, per class and IoU level."""
    xyxy = _joined([np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes, _, _ in found], (0, 4))
    scores = _joined([np.asarray(values, dtype=np.float64).reshape(-1) for _, values, _ in found], (0,))
    class_ids = _joined([np.asarray(ids, dtype=np.int64).reshape(-1) for _, _, ids in found], (0,))
    images = np.repeat(np.arange(len(found)), [np.size(values) for _, values, _ in found])
    order = np.lexsort((-scores, class_ids, images))  # stable
    order = order[_rank(images[order], class_ids[order]) < MAX_PER_CLASS]
    xyxy, scores, class_ids, images = xyxy[order], scores[order], class_ids[order], images[order]
    box, true, iou = _pairs(xyxy, class_ids, images, truths)
    hit, ignored = _assign(box, true, iou, images, class_ids, truths.crowd)
    return Matches(scores, class_ids, images, hit, ignored)


def curves(found: Sequence[Found], truths: Sequence[Mapping[str, Any]]) -> Curves:
    """Precision over recall for every class and IoU level: what a report draws, and what the metrics average."""
    flat = flat_truths(truths)
    return curves_of(match(found, flat), flat)


def curves_of(matches: Matches, truths: Truths, times: NDArray[np.int64] | None = None) -> Curves:
    """As `curves`, of boxes that are matched already; `times` (images,): how often each image counts, else once."""
    ordinary = ~truths.crowd
    weights = None if times is None else times[truths.images[ordinary]]
    totals = np.bincount(truths.class_ids[ordinary], weights)
    class_ids = np.flatnonzero(totals)
    counts = totals[class_ids].astype(np.int64)
    precision = np.zeros((len(IOU_LEVELS), len(RECALLS), len(class_ids)))
    by_class = np.lexsort((-matches.scores, matches.class_ids))  # ties keep the order of the images
    starts = np.searchsorted(matches.class_ids[by_class], class_ids, "left")
    ends = np.searchsorted(matches.class_ids[by_class], class_ids, "right")
    for column, (start, end, count) in enumerate(zip(starts, ends, counts, strict=True)):
        own = by_class[start:end]
        each = 1 if times is None else times[matches.images[own]]
        hits, misses = matches.hit[:, own], ~matches.hit[:, own] & ~matches.ignored[:, own]
        precision[:, :, column] = _precision(hits * each, misses * each, int(count))
    return Curves(class_ids, precision, counts)


def mean_ap(curve: Curves) -> dict[str, float]:
    """`map50_95` and `map50`: mean over the classes that have a true box; 0.0 where no class has one."""
    if not len(curve.class_ids):
        return {"map50_95": 0.0, "map50": 0.0}
    ap = curve.ap()
    return {"map50_95": float(ap.mean()), "map50": float(ap[0].mean())}


def map_interval(found: Sequence[Found], truths: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """95 % interval of `map50_95` within 0..1: the metric, and the normal interval of its bootstrap error over images.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 6.4 and 12.3. A resample counts each
    image as often as it was drawn; boxes are matched once, because images do not take part in each other's matches.
    """
    flat = flat_truths(truths)
    matches = match(found, flat)
    value = mean_ap(curves_of(matches, flat))["map50_95"]
    rng, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, len(truths), len(truths)), minlength=len(truths))
        means.append(mean_ap(curves_of(matches, flat, times))["map50_95"])
    half = Z_95 * float(np.std(means))
    return max(0.0, value - half), min(1.0, value + half)


# --- parts -----------------------------------------------------------------------------------------------------------


def _pairs(
    xyxy: NDArray[np.float64], class_ids: NDArray[np.int64], images: NDArray[np.int64], truths: Truths
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(box, true box, IoU) of the same image and class with an IoU that some level accepts, by box, then true box."""
    classes = int(max(class_ids.max(initial=0), truths.class_ids.max(initial=0))) + 1
    groups = truths.images * classes + truths.class_ids
    by_group = np.argsort(groups, kind="stable")
    wanted = images * classes + class_ids
    first = np.searchsorted(groups[by_group], wanted, "left")
    many = np.searchsorted(groups[by_group], wanted, "right") - first
    box = np.repeat(np.arange(len(wanted)), many)
    within = np.arange(len(box)) - np.repeat(np.cumsum(many) - many, many)
    true = by_group[first[box] + within] if len(box) else np.zeros(0, dtype=np.int64)
    a, b = xyxy[box], truths.xyxy[true]
    sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0.0, None)
    shared = sides.prod(axis=1)
    own, other = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    union = np.where(truths.crowd[true], own, own + other - shared)  # of a crowd: the share of the box inside it
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    near = iou >= IOU_LEVELS[0]
    return box[near], true[near], iou[near]


def _assign(
    box: NDArray[np.int64],
    true: NDArray[np.int64],
    iou: NDArray[np.float64],
    images: NDArray[np.int64],
    class_ids: NDArray[np.int64],
    crowd: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """`hit` and `ignored` of every box: the n-th near box of each image and class at once, for all levels at once.

    Only boxes of the same image and class compete for a true box; those take turns, the better score first.
    """
    hit = np.zeros((len(IOU_LEVELS), len(images)), dtype=bool)
    ignored = np.zeros_like(hit)
    if not len(box):
        return hit, ignored
    starts = np.flatnonzero(np.diff(box, prepend=-1))
    near = box[starts]
    turn = _rank(images[near], class_ids[near])
    pair_turn = np.repeat(turn, np.diff(starts, append=len(box)))
    levels = np.minimum(IOU_LEVELS, 1 - 1e-10)
    taken = np.zeros((len(crowd), len(levels)), dtype=bool)
    by_turn = np.argsort(pair_turn, kind="stable")
    for rows in np.split(by_turn, np.flatnonzero(np.diff(pair_turn[by_turn])) + 1):
        first = np.flatnonzero(np.diff(box[rows], prepend=-1))
        own, lengths = true[rows], np.diff(first, append=len(rows))
        free = (iou[rows, None] >= levels) & (~taken[own] | crowd[own, None])
        worth = np.where(free, (iou[rows] + np.where(crowd[own], CROWD, ORDINARY))[:, None], NEVER)
        best = np.maximum.reduceat(worth, first, axis=0)
        is_best = worth == np.repeat(best, lengths, axis=0)
        last = np.maximum.reduceat(np.where(is_best, np.arange(len(rows))[:, None], -1), first, axis=0)
        chosen, matched = own[last], best > NEVER
        boxes = box[rows[first]]
        ignored[:, boxes] = (matched & crowd[chosen]).T
        hit[:, boxes] = (matched & ~crowd[chosen]).T
        level = np.broadcast_to(np.arange(len(levels)), chosen.shape)
        taken[chosen[matched], level[matched]] = True
    return hit, ignored


def _rank(images: NDArray[np.int64], class_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each row inside its run of equal (image, class)."""
    new = np.ones(len(images), dtype=bool)
    new[1:] = (np.diff(images) != 0) | (np.diff(class_ids) != 0)
    starts = np.flatnonzero(new)
    return np.arange(len(images)) - np.repeat(starts, np.diff(starts, append=len(images)))


def _precision(hits: NDArray[np.int64], misses: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(10, 101) precision at `RECALLS`, made falling from the right, of one class's boxes by falling score.

    `hits` and `misses` (10, n): how often each box counts as the one or the other.
    """
    true_positives = np.cumsum(hits, axis=1, dtype=np.float64)
    false_positives = np.cumsum(misses, axis=1, dtype=np.float64)
    recall = true_positives / count
    precision = true_positives / np.maximum(true_positives + false_positives, 1.0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    out = np.zeros((len(hits), len(RECALLS)))
    for level, row in enumerate(recall):
        at = np.searchsorted(row, RECALLS, "left")
        reached = at < len(row)
        out[level, reached] = envelope[level, at[reached]]
    return out


def _joined(arrays: Sequence[NDArray[Any]], empty: tuple[int, ...]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(empty)


def _numbers(rows: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(rows)), [len(row) for row in rows])
