"""Detection on the device: `boxes`, `scores`, `classes` of K candidates -> the boxes that are left after NMS.

A result keeps every candidate from `CANDIDATE` on, because average precision is a statement about all of them; what is
drawn, counted and written as JSON are those from `score_threshold` on (`Boxes.shown`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.boxes import iou, nms
from edge_demo.errors import InputError
from edge_demo.image import Xyxy, place
from edge_demo.manifest import Resize
from edge_demo.tasks import detect_metric
from edge_demo.tasks.colours import colour_of, ink_on
from edge_demo.track import Tracker

OUTPUTS = ("boxes", "scores", "classes")
DEFAULTS: dict[str, Any] = {"score_threshold": 0.3, "nms_iou": 0.6, "max_boxes": 100}
CANDIDATE = 0.001  # the score from which the usual COCO evaluations keep boxes
SAME_IOU = 0.9
SLACK = 0.05  # of a score: a box just above the threshold here may be just below it there
TIE = 1e-6  # of a score in 0..1, as far as rounding moves it
TWIN_IOU = 0.5
TWIN_SIZE = 0.1  # of a side: boxes of two neighbouring cells for one thing are of one size
READABLE_FROM = 100  # px; on a smaller frame the text would hide what it names

Raw = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Boxes:
    """One frame's answer, by falling score. Pixels of the network's input, or of the frame after `to_frame`."""

    xyxy: NDArray[np.float32]
    """(n, 4); may reach outside the picture until `to_frame`."""
    scores: NDArray[np.float32]
    """(n,) in 0..1."""
    class_ids: NDArray[np.int64]
    """(n,)."""
    shown: NDArray[np.bool_]
    """(n,): score at the threshold or above."""
    threshold: float
    ids: NDArray[np.int64] | None = None
    """(n,) numbers of tracked objects; None without tracking."""

    def only(self, which: NDArray[Any]) -> Boxes:
        """Some of them, by mask or index."""
        ids = None if self.ids is None else self.ids[which]
        return replace(
            self,
            xyxy=self.xyxy[which],
            scores=self.scores[which],
            class_ids=self.class_ids[which],
            shown=self.shown[which],
            ids=ids,
        )


def check_params(params: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Complete and check the decode parameters.

    `score_threshold` in [0, 1]: boxes from there on are shown. `nms_iou` in (0, 1]: of two boxes of one class that
    overlap more, the one with the lower score goes; 1.0 keeps all. `max_boxes` >= 1: how many are kept per frame.

    Raises:
        InputError: an unknown key, or a value out of range.
    """
    unknown = sorted(set(params) - set(DEFAULTS))
    if unknown:
        raise InputError(f"decode.{unknown[0]}: unknown parameter for detect", f"known: {', '.join(DEFAULTS)}")
    merged = {**DEFAULTS, **params}
    threshold, nms_iou, most = merged["score_threshold"], merged["nms_iou"], merged["max_boxes"]
    if not (_is_number(threshold) and 0 <= threshold <= 1):
        raise InputError(f"decode.score_threshold: {threshold!r} is not in [0, 1]", "0.3 is usual")
    if not (_is_number(nms_iou) and 0 < nms_iou <= 1):
        raise InputError(f"decode.nms_iou: {nms_iou!r} is not in (0, 1]", "0.6 is usual, 1.0 keeps overlapping boxes")
    if not (isinstance(most, int) and not isinstance(most, bool) and most >= 1):
        raise InputError(f"decode.max_boxes: {most!r} is not a whole number from 1 on", "100 is usual")
    return {"score_threshold": float(threshold), "nms_iou": float(nms_iou), "max_boxes": most}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_outputs(outputs: Mapping[str, tuple[str, tuple[int, ...]]], labels: Sequence[str]) -> str:
    """What is wrong with the graph's outputs, name -> (dtype, shape); empty when nothing is."""
    boxes, scores, classes = (outputs[name] for name in OUTPUTS)
    for name, got, want in zip(OUTPUTS, (boxes, scores, classes), ("float32", "float32", "int64"), strict=True):
        if got[0] != want:
            return f"output {name!r} is {got[0]}, not {want}"
    if scores[1] != classes[1] or boxes[1] != (*scores[1], 4) or len(scores[1]) != 2:
        return f"boxes {list(boxes[1])}, scores {list(scores[1])} and classes {list(classes[1])} do not go together"
    return ""


def region(frame: NDArray[Any], params: Mapping[str, Any]) -> Xyxy:
    """The whole frame."""
    return 0, 0, frame.shape[1], frame.shape[0]


def decode(raw: Raw, params: Mapping[str, Any]) -> list[Boxes]:
    """`boxes` (N, K, 4) xyxy in pixels of the network's input, `scores`, `classes` (N, K) -> `Boxes` per frame.

    Candidates below `CANDIDATE` (and the graph's padding, score 0) are left out, then NMS within each class.
    """
    rows = zip(raw["boxes"], raw["scores"], raw["classes"], strict=True)
    return [_decode_one(boxes, scores, classes, params) for boxes, scores, classes in rows]


def _decode_one(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.int64], params: Mapping[str, Any]
) -> Boxes:
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= CANDIDATE]
    xyxy, kept_scores, class_ids = boxes[order], scores[order], classes[order]
    kept = nms(xyxy, class_ids, params["nms_iou"])[: params["max_boxes"]]
    threshold = params["score_threshold"]
    return Boxes(xyxy[kept], kept_scores[kept], class_ids[kept], kept_scores[kept] >= threshold, threshold)


def to_frame(result: Boxes, region_xyxy: Xyxy, resize: Resize, size_wh: tuple[int, int]) -> Boxes:
    """The same boxes in pixels of the frame, clipped to the region; one that lies outside of it is left out.

    Args:
        result: In pixels of the network's input.
        region_xyxy: Part of the frame the network looked at.
        resize: How it came to the network's size.
        size_wh: The network's.
    """
    x0, y0, x1, y1 = region_xyxy
    source = place((x1 - x0, y1 - y0), size_wh, resize.mode).to_source(result.xyxy)
    xyxy = (np.clip(source, 0, (x1 - x0, y1 - y0) * 2) + (x0, y0) * 2).astype(np.float32)
    inside: NDArray[np.bool_] = np.all(xyxy[:, 2:] > xyxy[:, :2], axis=1)
    return replace(result, xyxy=xyxy).only(inside)


def follower() -> Callable[[Boxes], Boxes]:
    """A tracker of one source: (the frame's boxes) -> the boxes of the objects followed, with `ids`, all shown."""
    tracker = Tracker()

    def follow(result: Boxes) -> Boxes:
        seen = tracker.update(result.xyxy, result.scores, result.class_ids, result.threshold)
        shown = np.ones(len(seen.ids), dtype=bool)
        return Boxes(seen.xyxy, seen.scores, seen.class_ids, shown, result.threshold, seen.ids)

    return follow


def align(got: Raw, want: Raw) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Both raw outputs with the candidates in one order, for a comparison number by number.

    Equal or nearly equal scores change places between runtimes, and the last of K candidates come and go; no answer
    depends on either. Each candidate of `want`, the best first, gets the one of `got` of its class that overlaps it
    most; what finds no partner is compared by its score alone, with the lowest of the other side, where it would have
    been cut off: an unimportant candidate matters little and an important one much. Where two neighbouring cells score
    alike, one runtime has one peak and the other two, or another one: neither is a difference. Other shapes are left as
    they are.
    """
    if any(got[name].shape != want[name].shape for name in OUTPUTS):
        return dict(got), dict(want)
    pairs = [_align_one({name: got[name][i] for name in OUTPUTS}, {name: want[name][i] for name in OUTPUTS})
             for i in range(len(want["scores"]))]  # fmt: skip
    ours, theirs = ({name: np.stack([pair[side][name] for pair in pairs]) for name in OUTPUTS} for side in (0, 1))
    other_peak = _other_peak(ours, theirs)
    # Chance, not a mistake in the boxes, which would move all of them (measured: 2 of 100,000 candidates).
    if np.count_nonzero(other_peak) <= max(1, want["scores"].size // 1000):
        ours["boxes"][other_peak] = theirs["boxes"][other_peak]
    return {**got, **ours}, {**want, **theirs}


def _other_peak(ours: Raw, theirs: Raw) -> NDArray[np.bool_]:
    """(N, rows): pairs of one score but for rounding whose boxes are of one size, in places clearly apart."""
    sides = [raw["boxes"][..., 2:].astype(np.float64) - raw["boxes"][..., :2] for raw in (ours, theirs)]
    one_size = (np.abs(sides[0] - sides[1]) <= TWIN_SIZE * np.maximum(*sides)).all(axis=-1)
    apart = np.abs(ours["boxes"].astype(np.float64) - theirs["boxes"]).reshape(*one_size.shape, 2, 2).max(axis=-2)
    clearly = (apart > (1 - SAME_IOU) * np.minimum(*sides)).any(axis=-1)
    found: NDArray[np.bool_] = one_size & clearly & (np.abs(ours["scores"] - theirs["scores"]) <= TIE)
    return found


def _align_one(got: Raw, want: Raw) -> tuple[Raw, Raw]:
    """One frame: (2K, ...) rows, K for the candidates of `want` and K for those of `got` that have no partner."""
    count = len(want["scores"])
    near = iou(want["boxes"].astype(np.float64), got["boxes"].astype(np.float64))
    near *= want["classes"][:, None] == got["classes"]
    partner = np.full(count, -1)
    for index in np.argsort(-want["scores"], kind="stable"):
        best = int(near[index].argmax())
        if near[index, best] > 0.5:
            partner[index] = best
            near[:, best] = 0
    alone = np.setdiff1d(np.arange(count), partner)
    ours = {name: np.concatenate([want[name], want[name]]) for name in OUTPUTS}
    theirs = {name: np.concatenate([want[name], want[name]]) for name in OUTPUTS}
    matched = partner >= 0
    for name in OUTPUTS:
        ours[name][:count][matched] = got[name][partner[matched]]
    lost = ~matched & ~_twins(want)
    ours["scores"][:count][lost] = np.minimum(want["scores"][lost], got["scores"].min())
    ours["scores"][count:], theirs["scores"][count:] = 0, 0
    ours["scores"][count : count + len(alone)] = got["scores"][alone]
    cut_off = np.minimum(got["scores"][alone], want["scores"].min())
    theirs["scores"][count : count + len(alone)] = np.where(_twins(got)[alone], got["scores"][alone], cut_off)
    return ours, theirs


def _twins(raw: Raw) -> NDArray[np.bool_]:
    """(K,): which candidates of a frame overlap another one of their class and, but for rounding, of their score."""
    boxes, scores, classes = raw["boxes"].astype(np.float64), raw["scores"], raw["classes"]
    alike = (np.abs(scores[:, None] - scores) <= TIE) & (classes[:, None] == classes) & (iou(boxes, boxes) > TWIN_IOU)
    np.fill_diagonal(alike, val=False)
    twins: NDArray[np.bool_] = np.any(alike, axis=1)
    return twins


def _found(results: Sequence[Boxes]) -> list[detect_metric.Found]:
    return [(result.xyxy, result.scores, result.class_ids) for result in results]


def score(results: Sequence[Boxes], truths: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`map50_95` and `map50` as pycocotools defines them, over all candidates; see `detect_metric`.

    Args:
        results: In pixels of the network's input.
        truths: `{"boxes": xyxy in the same pixels, "classes": ids, "crowd": flags}` per frame.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("no results to score")
    return detect_metric.mean_ap(curves(results, truths))


def curves(results: Sequence[Boxes], truths: Sequence[Mapping[str, Any]]) -> detect_metric.Curves:
    """Precision over recall per class and IoU level, for a report."""
    return detect_metric.curves(_found(results), truths)


def interval(results: Sequence[Boxes], truths: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """95 % interval of `map50_95`; see `detect_metric.map_interval`."""
    return detect_metric.map_interval(_found(results), truths)


def correct(results: Sequence[Boxes], truths: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Quality of each frame in [0, 1]: F1 of the boxes it shows, averaged over the IoU levels .50 to .95.

    F1 = 2 hits / (boxes shown + true boxes); boxes inside a crowd count for nothing. A frame without true boxes that
    shows none is worth 1.0. Average precision has no value per frame; this has one, for intervals and paired tests.
    """
    shown = [result.only(result.shown) for result in results]
    flat = detect_metric.flat_truths(truths)
    matches = detect_metric.match(_found(shown), flat)
    levels, count = len(detect_metric.IOU_LEVELS), len(results)
    hits, told = np.zeros((levels, count)), np.zeros((levels, count))
    for level in range(levels):
        hits[level] = np.bincount(matches.images[matches.hit[level]], minlength=count)
        told[level] = np.bincount(matches.images[~matches.ignored[level]], minlength=count)
    total = told + np.bincount(flat.images[~flat.crowd], minlength=count)
    quality: NDArray[np.float64] = np.divide(2 * hits, total, out=np.ones_like(hits), where=total > 0).mean(axis=0)
    return quality


def same(a: Boxes, b: Boxes) -> bool:
    """Whether each shown box of either has one of its class in the other, IoU at least 0.9.

    The partner may score up to 0.05 below the threshold: a score of 0.3001 here and 0.2999 there is the same answer.
    """
    return _covered(a, b) and _covered(b, a)


def _covered(a: Boxes, b: Boxes) -> bool:
    shown, near = a.only(a.shown), b.only(b.scores >= b.threshold - SLACK)
    alike = (iou(shown.xyxy, near.xyxy) >= SAME_IOU) & (shown.class_ids[:, None] == near.class_ids)
    return bool(alike.any(axis=1).all())


def draw(
    frame: NDArray[np.uint8], result: Boxes, labels: Sequence[str], params: Mapping[str, Any]
) -> NDArray[np.uint8]:
    """A copy of the BGR frame with every shown box, in the colour of its class, and `label score` at it."""
    import cv2

    out = frame.copy()
    height, width = out.shape[:2]
    unit = max(height, width) / 640
    thick, size = max(1, round(2 * unit)), max(0.4, 0.5 * unit)
    shown = result.only(result.shown)
    for index in reversed(range(len(shown.scores))):  # the surest on top
        x0, y0, x1, y1 = (round(float(value)) for value in shown.xyxy[index])
        colour = colour_of(int(shown.class_ids[index]))
        cv2.rectangle(out, (x0, y0), (max(x0, x1 - 1), max(y0, y1 - 1)), colour, thick)
        if min(height, width) < READABLE_FROM:
            continue
        number = "" if shown.ids is None else f" #{shown.ids[index]}"
        text = f"{labels[shown.class_ids[index]]} {shown.scores[index]:.0%}{number}"
        (text_width, text_height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
        tall = text_height + below + 2
        top = y0 - tall if y0 >= tall else y0  # inside, where there is no room above
        left = min(max(0, x0), max(0, width - text_width - 4))
        cv2.rectangle(out, (left, top), (left + text_width + 4, top + tall), colour, cv2.FILLED)
        at = (left + 2, top + text_height + 1)
        cv2.putText(out, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, ink_on(colour), 1, cv2.LINE_AA)
    return out


def to_json(result: Boxes, labels: Sequence[str]) -> dict[str, Any]:
    """`{"counts": {label: n}, "boxes": [{"label", "class_id", "score", "xyxy", "id"}, ...]}` of the shown boxes.

    The most frequent label first; `id` only where objects are tracked; coordinates rounded to 2 digits.
    """
    shown = result.only(result.shown)
    boxes = [
        {
            "label": labels[class_id],
            "class_id": int(class_id),
            "score": round(float(score), 6),
            "xyxy": [round(float(value), 2) for value in xyxy],
        }
        for xyxy, score, class_id in zip(shown.xyxy, shown.scores, shown.class_ids, strict=True)
    ]
    if shown.ids is not None:
        boxes = [{**box, "id": int(number)} for box, number in zip(boxes, shown.ids, strict=True)]
    return {"counts": dict(Counter(box["label"] for box in boxes).most_common()), "boxes": boxes}
