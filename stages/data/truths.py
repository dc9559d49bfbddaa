"""What the truth of an annotated picture is, by task, and what is done with it. Registry: `KINDS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.image import place
from stages.data.annotated import VOID, Boxes, Item, Problems, SizeWh, Unusable
from stages.data.boxes import cleaned, on_network
from stages.data.masks import fit_mask, without_unknown
from stages.spec import DataConfig

Mask = NDArray[np.uint8]
Tags = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of functions; a truth is `Boxes`, a mask uint8 (H, W), or uint8 (num_labels,) of 0 and 1."""

    usable: Callable[[Item, SizeWh, int, Problems], Any]
    """(item, size of its picture, number of labels, problems) -> truth, None and counted where there is none."""
    placed: Callable[[Any, SizeWh, DataConfig, str, Problems], Any]
    """(truth, size of its picture, config, item's id, problems) -> truth in the network's frame."""
    per_class: Callable[[Any, int], NDArray[np.int64]]
    """(truth, number of labels) -> int64 (num_labels,), what it adds to the counts of the classes."""
    shows: Callable[[Any], bool]
    """Whether it says that something is there."""
    unit: str
    """What `per_class` counts."""


def truth_of(task: str, item: Item, size_wh: SizeWh, num_labels: int, problems: Problems) -> Any:
    """The usable truth of a picture at its own size; None, and counted, when there is none."""
    return KINDS[task].usable(item, size_wh, num_labels, problems)


def _boxes(item: Item, size_wh: SizeWh, num_labels: int, problems: Problems) -> Boxes:
    if item.boxes is None:
        raise ValueError(f"item {item.id} has no boxes")
    return cleaned(item.boxes(size_wh), size_wh, item.id, num_labels, problems)


def _boxes_placed(boxes: Boxes, size_wh: SizeWh, config: DataConfig, item: str, problems: Problems) -> Boxes:
    found, lost = on_network(boxes, place(size_wh, config.size_wh, config.resize.mode), config.size_wh)
    problems.add("box cut away whole by data.resize.mode = 'crop'", item, lost)
    return found


def _boxes_per_class(boxes: Boxes, num_labels: int) -> NDArray[np.int64]:
    return np.bincount(boxes.classes, minlength=num_labels).astype(np.int64)


def _mask(item: Item, size_wh: SizeWh, num_labels: int, problems: Problems) -> Mask | None:
    if item.mask is None:
        raise ValueError(f"item {item.id} has no mask")
    try:
        mask, unknown = without_unknown(item.mask(size_wh), num_labels)
    except Unusable as trouble:
        problems.add(f"{trouble} (left out)", item.id)
        return None
    problems.add("mask with ids that are no class (made void)", f"{item.id}: {unknown} pixels", int(unknown > 0))
    problems.add("mask that is void everywhere (counts nowhere)", item.id, int((mask == VOID).all()))
    return mask


def _mask_placed(mask: Mask, size_wh: SizeWh, config: DataConfig, item: str, problems: Problems) -> Mask:
    return fit_mask(mask, config.size_wh, config.resize)


def _mask_per_class(mask: Mask, num_labels: int) -> NDArray[np.int64]:
    return np.minimum(np.bincount(mask.ravel(), minlength=VOID + 1)[:num_labels], 1).astype(np.int64)


def _mask_shows(mask: Mask) -> bool:
    """Whether there is a pixel that is neither background nor void."""
    return bool(((mask != 0) & (mask != VOID)).any())


def _tags(item: Item, size_wh: SizeWh, num_labels: int, problems: Problems) -> Tags:
    if item.tags is None:
        raise ValueError(f"item {item.id} has no labels")
    return item.tags


def _tags_placed(tags: Tags, size_wh: SizeWh, config: DataConfig, item: str, problems: Problems) -> Tags:
    return tags


def _tags_per_class(tags: Tags, num_labels: int) -> NDArray[np.int64]:
    return tags.astype(np.int64)


KINDS: dict[str, Kind] = {
    "detect": Kind(_boxes, _boxes_placed, _boxes_per_class, lambda boxes: len(boxes) > 0, "boxes"),
    "segment": Kind(_mask, _mask_placed, _mask_per_class, _mask_shows, "pictures that show each class"),
    "multilabel": Kind(
        _tags, _tags_placed, _tags_per_class, lambda tags: bool(tags.any()), "pictures that have each label"
    ),
}
"""Task -> what its truth is."""
