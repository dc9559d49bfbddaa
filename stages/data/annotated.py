"""What a reader of annotations returns: pictures with their boxes, masks or labels, every trouble named and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_demo.errors import InputError
from stages.spec import Split

CROWD, DIFFICULT = 1, 2
"""Bits of a box's flags."""
VOID = 255
"""The class id of a pixel that counts neither as right nor as wrong."""
LISTED = 20  # examples of each trouble that are kept

SizeWh = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """The boxes of one picture.

    Raises:
        ValueError: the three arrays do not belong together.
    """

    xyxy: NDArray[np.float64]
    """(M, 4), pixels, edges: a box over the whole picture is 0, 0, width, height."""
    classes: NDArray[np.int64]
    """(M,), indices into the set's labels."""
    flags: NDArray[np.uint8]
    """(M,), bit 0 crowd (ignored in the metric), bit 1 difficult."""

    def __post_init__(self) -> None:
        count = len(self.classes)
        if self.xyxy.shape != (count, 4) or self.flags.shape != (count,):
            raise ValueError(f"boxes {self.xyxy.shape}, classes {self.classes.shape}, flags {self.flags.shape}")

    def __len__(self) -> int:
        return len(self.classes)

    def at(self, keep: NDArray[np.bool_]) -> Boxes:
        """Those where `keep` (M,) is true."""
        return Boxes(xyxy=self.xyxy[keep], classes=self.classes[keep], flags=self.flags[keep])


def boxes_of(xyxy: ArrayLike, classes: ArrayLike, flags: ArrayLike) -> Boxes:
    """Lists as `Boxes`; empty lists give no boxes."""
    return Boxes(
        xyxy=np.asarray(xyxy, dtype=np.float64).reshape(-1, 4),
        classes=np.asarray(classes, dtype=np.int64).reshape(-1),
        flags=np.asarray(flags, dtype=np.uint8).reshape(-1),
    )


NO_BOXES = boxes_of([], [], [])


@dataclass(slots=True)
class Problems:
    """Trouble by its name -> the places where it was met, each once per case."""

    places: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, where: str, count: int = 1) -> None:
        """Notes `count` cases at one place; the first places are kept."""
        if count:
            self.counts[what] = self.counts.get(what, 0) + count
            kept = self.places.setdefault(what, [])
            if len(kept) < LISTED:
                kept.append(where)

    def stop_if(self, strict: bool) -> None:
        """With `data.strict`, any trouble ends the stage.

        Raises:
            InputError: names every trouble with its count, and the first place of the first.
        """
        if strict and self.counts:
            found = ", ".join(f"{count:,} x {what}" for what, count in self.counts.items())
            first = next(iter(self.places.values()))[0]
            raise InputError(
                f"data.strict: {found}; first: {first}",
                "type: pipeline data check, repair them, or data.strict = false",
            )


class Unusable(Exception):  # noqa: N818 - no error of the program: the caller counts it and goes on
    """An item's annotation cannot be used; the message is the trouble's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One annotated picture. Reads its annotation when the picture's size is known."""

    id: str
    file: Path
    declared_wh: SizeWh | None = None
    """The picture's size as the annotation states it; None where it states none."""
    boxes: Callable[[SizeWh], Boxes] | None = None
    """Picture size -> boxes in its pixels, as they are written; None for a set of masks."""
    mask: Callable[[SizeWh], NDArray[np.uint8]] | None = None
    """Picture size -> uint8 (H, W) class ids, 255 void; raises `Unusable`. None for a set of boxes."""
    tags: NDArray[np.uint8] | None = None
    """(num_labels,), 1 where the picture has the label; None for a set of boxes or masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """A set of boxes, masks or labels; one that brings no split lists has only `train`."""

    labels: tuple[str, ...]
    """Class names by id; for masks the first is the background."""
    splits: dict[Split, Sequence[Item]]
    problems: Problems
    notes: tuple[str, ...] = ()


def find_pictures(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Stem -> picture file, of the pictures directly inside a folder; names that start with a dot are left out.

    Raises:
        InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"data.path: {folder} is not a folder", "check data.path")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.name[0] != ".")
    return {file.stem: file for file in files}
