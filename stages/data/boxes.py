"""Boxes between a set's files and the network's frame: what is wrong with them, and where they land."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_demo.image import Geometry
from stages.data.annotated import Boxes, Problems, SizeWh

CROWDED = 1000
"""More boxes than this in one picture are counted as a trouble (and kept): usually an annotation tool's accident."""
SLACK = 0.01  # pixels that rounding in a text file may put a box outside


def cleaned(boxes: Boxes, size_wh: SizeWh, item: str, num_labels: int, problems: Problems) -> Boxes:
    """The usable boxes of a picture, clipped to it; every other one is counted under its trouble.

    Args:
        boxes: As the set states them, in pixels of the picture.
        size_wh: The picture's size.
        item: The picture's id, for the list of places.
        num_labels: Class ids from here on are unknown.
        problems: Gets what was found.
    """
    problems.add("more than 1,000 boxes in one picture (kept)", item, int(len(boxes) > CROWDED))
    broken: NDArray[np.bool_] = ~np.isfinite(np.abs(boxes.xyxy).max(axis=1, initial=0.0))
    boxes = _without(boxes, broken, "box with a coordinate that is no number", item, problems)
    unknown: NDArray[np.bool_] = (boxes.classes < 0) | (boxes.classes >= num_labels)
    boxes = _without(boxes, unknown, "box of an unknown class", item, problems)
    boxes = _without(boxes, _empty(boxes.xyxy), "box without area", item, problems)
    inside = clip(boxes.xyxy, size_wh)
    outside = _empty(inside)
    moved = (np.abs(inside - boxes.xyxy) > SLACK).any(axis=1) & ~outside
    problems.add("box partly outside its picture (clipped)", item, int(moved.sum()))
    clipped = Boxes(xyxy=inside, classes=boxes.classes, flags=boxes.flags)
    return _without(clipped, outside, "box outside its picture", item, problems)


def on_network(boxes: Boxes, geometry: Geometry, size_wh: SizeWh) -> tuple[Boxes, int]:
    """Boxes in pixels of the network-size frame, clipped to it, and how many a `crop` cut away whole."""
    inside = clip(geometry.to_network(boxes.xyxy), size_wh)
    keep = ~_empty(inside)
    placed = Boxes(xyxy=inside, classes=boxes.classes, flags=boxes.flags).at(keep)
    return placed, int((~keep).sum())


def clip(xyxy: NDArray[np.float64], size_wh: SizeWh) -> NDArray[np.float64]:
    """Boxes (N, 4) cut to a frame."""
    width, height = size_wh
    return np.clip(xyxy, 0.0, [width, height, width, height])


def _empty(xyxy: NDArray[np.float64]) -> NDArray[np.bool_]:
    empty: NDArray[np.bool_] = (xyxy[:, 2] <= xyxy[:, 0]) | (xyxy[:, 3] <= xyxy[:, 1])
    return empty


def _without(boxes: Boxes, bad: NDArray[np.bool_], what: str, item: str, problems: Problems) -> Boxes:
    problems.add(what, item, int(bad.sum()))
    return boxes.at(~bad)
