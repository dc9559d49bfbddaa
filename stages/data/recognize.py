"""What a folder of data is: which layout, which task, and what its pictures look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edge_demo.errors import InputError
from edge_demo.image import read_frame
from stages.data import folder
from stages.data.annotated_sets import LAYOUTS, task_of
from stages.data.labelled import without_repeats

LOOKED_AT = 32  # pictures
ANNOTATED_STEP = 16  # both sides are multiples of it
SAME_SHAPE = 0.1  # how far ratios of sides may be from the median for all pictures to be of one shape
SMALLEST, LARGEST, STEP = 32, 128, 32
"""Side of a frame looked at as a whole, in pixels: half the pictures' median shorter side, within limits, in steps."""


SizeOf = Callable[[list[Path]], tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """What a config needs to say about a folder."""

    path: Path
    name: str
    """A value of `data.name`."""
    task: str
    size_wh: tuple[int, int]
    colour: Literal["gray", "rgb"]
    pictures: int
    sentence: str


def recognize(path: Path, task: str = "auto") -> Recognized:
    """Looks at names, and at a few pictures.

    Raises:
        InputError: no such folder, no known layout, or no truth for that task.
    """
    path = path.expanduser().resolve()
    if not path.is_dir():
        raise InputError(f"{path}: is not a folder", "type: pipeline init --data PATH")
    name = next((name for name, layout in LAYOUTS.items() if layout.recognized(path)), None)
    if name is None:
        return _classes(path, task)
    wanted = task_of(name, "segment" if task == "auto" and _only_masks(path) else task, LAYOUTS[name].tasks)[0]
    pictures = [file for file in LAYOUTS[name].files(path) if file.suffix.lower() in folder.PICTURES]
    pictures = [file for file in pictures if file.parent.name != "SegmentationClass"]
    if not pictures:
        raise InputError(f"{path}: no pictures in this {name} folder", "check the path")
    sentence = f"{LAYOUTS[name].items.split(', ', 1)[1]}, {len(pictures):,} pictures, used to {wanted}"
    return Recognized(
        path=path,
        name=name,
        task=wanted,
        size_wh=SIZES[wanted](pictures),
        colour=_colour(pictures),
        pictures=len(pictures),
        sentence=sentence,
    )


def _annotated_wh(pictures: list[Path], side: int) -> tuple[int, int]:
    """A frame of the pictures' shape where they share one, so that nothing is spent on padding; else a square."""
    shapes = [read_frame(file).shape[:2] for file in _some(pictures)]
    ratios = np.array([width / height for height, width in shapes])
    ratio = float(np.median(ratios))
    if np.abs(ratios / ratio - 1).max() > SAME_SHAPE:
        return side, side
    shorter = max(1, round(side * min(ratio, 1 / ratio) / ANNOTATED_STEP)) * ANNOTATED_STEP
    return (side, shorter) if ratio >= 1 else (shorter, side)


def _only_masks(path: Path) -> bool:
    """A VOC folder whose split lists are about masks alone."""
    lists = path / "ImageSets"
    return (path / "SegmentationClass").is_dir() and (lists / "Segmentation").is_dir() and not (lists / "Main").is_dir()


def _classes(path: Path, task: str) -> Recognized:
    try:
        pictures = folder.files(path, folder.SPLITS)
    except InputError as error:
        known = "VOC (JPEGImages), COCO (annotations/*.json), YOLO (data.yaml), labels.csv, a sub-folder per class"
        raise InputError(f"{path}: no layout that is known: {known}", error.message) from None
    task_of("folder", task, ("classify",))
    return Recognized(
        path=path,
        name="folder",
        task="classify",
        size_wh=SIZES["classify"](pictures),
        colour=_colour(pictures),
        pictures=len(pictures),
        sentence=f"a sub-folder per class, {len(pictures):,} pictures",
    )


def _whole_wh(pictures: list[Path]) -> tuple[int, int]:
    """A square for what is said of a whole picture."""
    shorter = float(np.median([min(read_frame(file).shape[:2]) for file in _some(pictures)]))
    side = min(LARGEST, max(SMALLEST, round(shorter / 2 / STEP) * STEP))
    return side, side


def _colour(pictures: list[Path]) -> Literal["gray", "rgb"]:
    """Gray only when every picture looked at is gray."""
    channels = {without_repeats(read_frame(file)).shape[2] for file in _some(pictures)}
    return "gray" if channels == {1} else "rgb"


def _some(pictures: list[Path]) -> list[Path]:
    return pictures[:: max(1, len(pictures) // LOOKED_AT)]


SIZES: dict[str, SizeOf] = {
    "classify": _whole_wh,
    "multilabel": _whole_wh,
    "detect": lambda pictures: _annotated_wh(pictures, 320),
    "segment": lambda pictures: _annotated_wh(pictures, 192),  # what covers an area may be coarser
}
"""Task -> width and height of its frames for these pictures."""
