"""Segmentation on the device: `classes`, the class of every pixel, as the graph's own argmax gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from edge_demo.image import Xyxy, place
from edge_demo.manifest import Resize
from edge_demo.tasks import segment_metric
from edge_demo.tasks.colours import colour_of
from edge_demo.tasks.listing import list_labels

OUTPUTS = ("classes",)
DEFAULTS: dict[str, Any] = {"opacity": 0.45, "runs": False}
BACKGROUND = "background"  # a label of this name is not coloured
SAME_SHARE = 0.995  # of the pixels

Raw = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ClassMap:
    """One frame's answer.

    `classes` uint8 (H, W); `at_xyxy` where it lies in the frame in pixels, None for a map of the network's own input;
    `runs`: whether JSON holds the map itself.
    """

    classes: NDArray[np.uint8]
    at_xyxy: Xyxy | None = None
    runs: bool = False


def check_params(params: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Complete and check the decode parameters.

    `opacity` in [0, 1] of the colours over the picture; `runs` true: JSON holds the class map as runs, row after row.

    Raises:
        InputError: an unknown key, a value out of range, or more labels than a byte can name.
    """
    unknown = sorted(set(params) - set(DEFAULTS))
    if unknown:
        raise InputError(f"decode.{unknown[0]}: unknown parameter for segment", f"known: {', '.join(DEFAULTS)}")
    if len(labels) > segment_metric.VOID:
        raise InputError(
            f"labels: {len(labels)} are too many for segment", f"at most {segment_metric.VOID}: 255 is void"
        )
    merged = {**DEFAULTS, **params}
    opacity, runs = merged["opacity"], merged["runs"]
    if isinstance(opacity, bool) or not (isinstance(opacity, int | float) and 0 <= opacity <= 1):
        raise InputError(f"decode.opacity: {opacity!r} is not in [0, 1]", "0.45 is usual")
    if not isinstance(runs, bool):
        raise InputError(f"decode.runs: {runs!r} is not true or false", "false leaves the map out of JSON")
    return {"opacity": float(opacity), "runs": runs}


def check_outputs(outputs: Mapping[str, tuple[str, tuple[int, ...]]], labels: Sequence[str]) -> str:
    """What is wrong with the graph's outputs, name -> (dtype, shape); empty when nothing is."""
    dtype, shape = outputs["classes"]
    return (
        ""
        if dtype == "uint8" and len(shape) == 3
        else f"output 'classes' is {dtype} {list(shape)}, not uint8 (N, H, W)"
    )


def region(frame: NDArray[Any], params: Mapping[str, Any]) -> Xyxy:
    """The whole frame."""
    return 0, 0, frame.shape[1], frame.shape[0]


def decode(raw: Raw, params: Mapping[str, Any]) -> list[ClassMap]:
    """`classes` uint8 (N, H, W) -> one `ClassMap` per frame."""
    return [ClassMap(classes, None, params["runs"]) for classes in raw["classes"]]


def to_frame(result: ClassMap, region_xyxy: Xyxy, resize: Resize, size_wh: tuple[int, int]) -> ClassMap:
    """The part of the map that shows the frame (not a letterbox's border), and where in the frame it lies.

    The map keeps its own resolution: enlarging it is left to whoever draws it.
    """
    x0, y0, x1, y1 = region_xyxy
    geometry = place((x1 - x0, y1 - y0), size_wh, resize.mode)
    left, top, right, bottom = geometry.network_xyxy
    sx0, sy0, sx1, sy1 = geometry.source_xyxy
    return ClassMap(result.classes[top:bottom, left:right], (x0 + sx0, y0 + sy0, x0 + sx1, y0 + sy1), result.runs)


def align(got: Raw, want: Raw) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """`got` with the pixels of `want` in every frame where so few differ that the answer is the same (`SAME_SHARE`).

    A pixel between two classes may go to either in another runtime, and the distance of class numbers says nothing.
    """
    ours, theirs = got["classes"], want["classes"]
    if ours.shape != theirs.shape:
        return dict(got), dict(want)
    alike = (ours == theirs).mean(axis=(1, 2)) >= SAME_SHARE
    return {**got, "classes": np.where(alike[:, None, None], theirs, ours)}, dict(want)


def score(results: Sequence[ClassMap], truths: Sequence[Any]) -> dict[str, float]:
    """`miou`, `pixel_accuracy`, and `iou.<class id>` of every class that a true pixel has; void (255) left out.

    Args:
        results: Maps of the network's input.
        truths: uint8 (H, W) of the same size, as an array, nested lists or runs; see `segment_metric.as_map`.

    Raises:
        ValueError: no results, or a truth of another size.
    """
    if not results:
        raise ValueError("no results to score")
    pairs = zip(results, truths, strict=True)
    matrix = segment_metric.total((result.classes, segment_metric.as_map(truth)) for result, truth in pairs)
    counted = int(matrix.sum())
    accuracy = float(np.trace(matrix) / counted) if counted else 1.0
    per_class = {f"iou.{class_id}": value for class_id, value in segment_metric.ious(matrix).items()}
    return {"miou": segment_metric.mean_iou(matrix), "pixel_accuracy": accuracy, **per_class}


def correct(results: Sequence[ClassMap], truths: Sequence[Any]) -> NDArray[np.float64]:
    """Quality of each frame in [0, 1]: the mean IoU of the classes in its own truth; 1.0 where all of it is void.

    Not the summands of the set's mIoU, which has none; for paired tests.
    """
    pairs = zip(results, truths, strict=True)
    found = [segment_metric.confusion(result.classes, segment_metric.as_map(truth)) for result, truth in pairs]
    return np.array([segment_metric.mean_iou(matrix) for matrix in found], dtype=np.float64)


def interval(results: Sequence[ClassMap], truths: Sequence[Any]) -> tuple[float, float]:
    """95 % interval of `miou`; see `segment_metric.mean_iou_interval`."""
    pairs = zip(results, truths, strict=True)
    return segment_metric.mean_iou_interval((result.classes, segment_metric.as_map(truth)) for result, truth in pairs)


def same(a: ClassMap, b: ClassMap) -> bool:
    """Whether at least 99.5 % of the pixels have the same class."""
    return a.classes.shape == b.classes.shape and bool((a.classes == b.classes).mean() >= SAME_SHARE)


def draw(
    frame: NDArray[np.uint8], result: ClassMap, labels: Sequence[str], params: Mapping[str, Any]
) -> NDArray[np.uint8]:
    """A copy of the BGR frame with every class but the background blended in, and the list of those classes."""
    import cv2

    out = frame.copy()
    height, width = out.shape[:2]
    x0, y0, x1, y1 = result.at_xyxy or (0, 0, width, height)
    table = np.array([colour_of(class_id) for class_id in range(256)], dtype=np.uint8)
    large = cv2.resize(result.classes, (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST)
    part = out[y0:y1, x0:x1]
    blended = cv2.addWeighted(part, 1 - params["opacity"], table[large], params["opacity"], 0)
    bare = [class_id for class_id, label in enumerate(labels) if label == BACKGROUND]
    part[:] = np.where(np.isin(large, bare)[..., None], part, blended)
    list_labels(out, _areas(result, labels), labels)
    return out


def _areas(result: ClassMap, labels: Sequence[str]) -> dict[str, float]:
    """Label -> share of the map, the largest first; the background and what is not there are left out."""
    counts = np.bincount(result.classes.reshape(-1), minlength=len(labels))
    seen = [index for index in np.argsort(-counts, kind="stable") if counts[index] and labels[index] != BACKGROUND]
    return {labels[index]: float(counts[index] / result.classes.size) for index in seen}


def to_json(result: ClassMap, labels: Sequence[str]) -> dict[str, Any]:
    """`{"areas": {label: share of the picture}}`, the largest first, without the background.

    With the parameter `runs` also `"map": {"size", "runs", "xyxy"}`: the class map at the network's resolution, and
    the rectangle of the frame it covers (null for the network's own input).
    """
    shown: dict[str, Any] = {"areas": {label: round(share, 6) for label, share in _areas(result, labels).items()}}
    if result.runs:
        at = list(result.at_xyxy) if result.at_xyxy else None
        shown["map"] = {**segment_metric.to_runs(result.classes), "xyxy": at}
    return shown
