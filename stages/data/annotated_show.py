"""Boxes and masks drawn on frames as the network gets them, for people to check."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from edge_demo.image import Frame, load_cv2, place
from stages.data.annotated import CROWD, VOID, Boxes
from stages.data.annotated_prepare import opened, truth_of
from stages.data.annotated_sets import open_set
from stages.data.boxes import on_network
from stages.data.masks import fit_mask
from stages.data.prepare import network_frame
from stages.spec import DataConfig, Split

GOLDEN = 0.618034  # steps of the golden section spread any number of hues
VOID_BGR = (255, 255, 255)


def colour_bgr(class_id: int) -> tuple[int, int, int]:
    """A colour for a class, the same everywhere."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * GOLDEN % 1.0, 0.85, 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def annotated(frame: Frame, truth: Boxes | NDArray[np.uint8], labels: Sequence[str]) -> Frame:
    """A BGR copy of a frame (H, W, 1 or 3) with its boxes and class names, or its mask blended in, void white."""
    out = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame.copy()
    return _with_boxes(out, truth, labels) if isinstance(truth, Boxes) else _with_mask(out, truth, len(labels))


def _with_boxes(out: Frame, boxes: Boxes, labels: Sequence[str]) -> Frame:
    cv2 = load_cv2()
    for corners, class_id, flags in zip(boxes.xyxy, boxes.classes.tolist(), boxes.flags.tolist(), strict=True):
        # The drawn line is the outermost row and column of pixels inside the box.
        x0, y0, x1, y1 = np.floor(corners - np.array([0, 0, 1e-6, 1e-6])).astype(int).tolist()
        cv2.rectangle(out, (x0, y0), (x1, y1), VOID_BGR if flags & CROWD else colour_bgr(class_id), 1)
        cv2.putText(out, labels[class_id], (x0 + 2, y0 + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour_bgr(class_id), 1)
    return out


def _with_mask(out: Frame, mask: NDArray[np.uint8], num_labels: int) -> Frame:
    palette = np.zeros((VOID + 1, 3), np.float32)
    palette[:num_labels] = [(0, 0, 0), *(colour_bgr(class_id) for class_id in range(1, num_labels))]
    palette[VOID] = VOID_BGR
    shown = (mask > 0)[:, :, None] * np.float32(0.5)
    return (out * (1 - shown) + palette[mask] * shown).astype(np.uint8)


def pictures(config: DataConfig, split: Split, n: int) -> tuple[NDArray[np.uint8], list[str]]:
    """About `n` drawn frames (N, H, W, 3), spread evenly over a split, and the name of each.

    Raises:
        InputError: as the data stage, or no picture of the split can be used.
    """
    _, data = open_set(config)
    items = data.splits[split]
    picked = sorted({round(at) for at in np.linspace(0, len(items) - 1, min(n, len(items)))})
    frames, names = [], []
    for item in (items[at] for at in picked):
        picture = opened(item, data.problems)
        if picture is None:
            continue
        size_wh = (picture.shape[1], picture.shape[0])
        truth = truth_of(item, size_wh, len(data.labels), data.problems)
        if truth is None:
            continue
        if isinstance(truth, Boxes):
            truth, _ = on_network(truth, place(size_wh, config.size_wh, config.resize.mode), config.size_wh)
        else:
            truth = fit_mask(truth, config.size_wh, config.resize)
        frames.append(annotated(network_frame(picture, config), truth, data.labels))
        names.append(Path(item.id).stem)
    if not frames:
        raise InputError(f"data: no usable pictures in {split}", "type: pipeline data check")
    return np.stack(frames), names
