"""Boxes as arrays, xyxy with right and bottom exclusive: how much they overlap, and which of them to keep."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def nms(xyxy: NDArray[np.float32], class_ids: NDArray[np.int64], most_iou: float) -> NDArray[np.int64]:
    """Indices of the boxes to keep, in order: each that no kept box before it of its class overlaps by more.

    Args:
        xyxy: (n, 4), the best first.
        class_ids: (n,).
        most_iou: In (0, 1]; 1.0 keeps all.
    """
    keep = np.ones(len(xyxy), dtype=bool)
    if most_iou < 1.0 and len(xyxy) > 1:
        over = np.triu(iou(xyxy, xyxy) > most_iou, 1) & (class_ids[:, None] == class_ids)
        # A loop over those that overlap something; the rows of all others are empty.
        for index in np.flatnonzero(over.any(axis=1)):
            if keep[index]:
                keep &= ~over[index]
    return np.flatnonzero(keep)


def iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """(n, m) intersection over union of xyxy boxes (n, 4) and (m, 4); 0 for boxes without area."""
    ax0, ay0, ax1, ay1 = (column[:, None] for column in a.T)
    bx0, by0, bx1, by1 = b.T
    # Width and height apart: half the time of one array with a last axis of two.
    shared: NDArray[Any] = np.maximum(np.minimum(ax1, bx1) - np.maximum(ax0, bx0), 0)
    shared *= np.maximum(np.minimum(ay1, by1) - np.maximum(ay0, by0), 0)
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared
    share: NDArray[Any] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return share
