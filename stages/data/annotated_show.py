"""Boxes and masks drawn on frames as the network gets them, for people to check."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from edge_demo.image import Frame, load_cv2
from stages.data.annotated import CROWD, VOID, Boxes
from stages.data.annotated_prepare import opened
from stages.data.annotated_sets import open_set
from stages.data.prepare import network_frame
from stages.data.truths import KINDS, truth_of
from stages.spec import DataConfig, Split

GOLDEN = 0.618034  # steps of the golden section spread any number of hues
VOID_BGR = (255, 255, 255)


def colour_bgr(class_id: int) -> tuple[int, int, int]:
    """A colour for a class, the same everywhere."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * GOLDEN % 1.0, 0.85, 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def annotated(task: str, frame: Frame, truth: Any, labels: Sequence[str]) -> Frame:
    """A BGR copy of a frame (H, W, 1 or 3) with its boxes and class names, or its mask blended in, void white.

    Labels of a whole picture are not drawn: they are its name.
    """
    out = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame.copy()
    return DRAW[task](out, truth, labels) if task in DRAW else out


def _with_boxes(out: Frame, boxes: Boxes, labels: Sequence[str]) -> Frame:
    cv2 = load_cv2()
    for corners, class_id, flags in zip(boxes.xyxy, boxes.classes.tolist(), boxes.flags.tolist(), strict=True):
        # The drawn line is the outermost row and column of pixels inside the box.
        x0, y0, x1, y1 = np.floor(corners - np.array([0, 0, 1e-6, 1e-6])).astype(int).tolist()
        cv2.rectangle(out, (x0, y0), (x1, y1), VOID_BGR if flags & CROWD else colour_bgr(class_id), 1)
        cv2.putText(out, labels[class_id], (x0 + 2, y0 + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour_bgr(class_id), 1)
    return out


def _with_mask(out: Frame, mask: NDArray[np.uint8], labels: Sequence[str]) -> Frame:
    num_labels = len(labels)
    palette = np.zeros((VOID + 1, 3), np.float32)
    palette[:num_labels] = [(0, 0, 0), *(colour_bgr(class_id) for class_id in range(1, num_labels))]
    palette[VOID] = VOID_BGR
    shown = (mask > 0)[:, :, None] * np.float32(0.5)
    return (out * (1 - shown) + palette[mask] * shown).astype(np.uint8)


DRAW: dict[str, Callable[[Frame, Any, Sequence[str]], Frame]] = {"detect": _with_boxes, "segment": _with_mask}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Frames as the network gets them, not drawn on yet, and their truth in their own pixels."""

    task: str
    labels: tuple[str, ...]
    frames: Sequence[Frame]
    """uint8 (H, W, 1 or 3)."""
    truths: Sequence[Any]
    names: Sequence[str]


def drawn(shown: Shown) -> tuple[NDArray[np.uint8], list[str]]:
    """The frames (N, H, W, 3) with their truth on them, and what stands below each."""
    frames = [
        annotated(shown.task, frame, truth, shown.labels)
        for frame, truth in zip(shown.frames, shown.truths, strict=True)
    ]
    below = CAPTION.get(shown.task)
    names = [below(truth, shown.labels) for truth in shown.truths] if below else list(shown.names)
    return np.stack(frames), names


def _labels_of(tags: NDArray[Any], labels: Sequence[str]) -> str:
    return " ".join(label for label, share in zip(labels, tags, strict=True) if share) or "(none)"


CAPTION: dict[str, Callable[[Any, Sequence[str]], str]] = {"multilabel": _labels_of}
"""Task -> what its truth says of a whole frame; of the others the name is written."""


def pictures(config: DataConfig, split: Split, n: int) -> Shown:
    """About `n` frames, spread evenly over a split.

    Raises:
        InputError: as the data stage, or no picture of the split can be used.
    """
    task, data = open_set(config)
    items = data.splits[split]
    picked = sorted({round(at) for at in np.linspace(0, len(items) - 1, min(n, len(items)))})
    frames, truths, names = [], [], []
    for item in (items[at] for at in picked):
        picture = opened(item, data.problems)
        if picture is None:
            continue
        size_wh = (picture.shape[1], picture.shape[0])
        truth = truth_of(task, item, size_wh, len(data.labels), data.problems)
        if truth is None:
            continue
        frames.append(network_frame(picture, config))
        truths.append(KINDS[task].placed(truth, size_wh, config, item.id, data.problems))
        names.append(Path(item.id).stem)
    if not frames:
        raise InputError(f"data: no usable pictures in {split}", "type: pipeline data check")
    return Shown(task=task, labels=data.labels, frames=frames, truths=truths, names=names)
