"""A list of labels on a frame, each on its own colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.tasks.colours import colour_of, ink_on

READABLE_FROM = 100  # px; on a smaller frame the list would hide the picture


def list_labels(out: NDArray[np.uint8], shares: Mapping[str, float], labels: Sequence[str]) -> None:
    """Writes `label share` down the left edge of a BGR frame, in place, as far as there is room; not on a small one.

    Args:
        out: uint8 (H, W, 3).
        shares: Label -> what is said of it, 0..1, in the order in which they are listed.
        labels: All of them; their order decides the colours.
    """
    import cv2

    if min(out.shape[:2]) < READABLE_FROM:
        return
    size = max(0.4, 0.5 * max(out.shape[:2]) / 640)
    top = 4
    for label, share in shares.items():
        bottom = _line(cv2, out, f"{label} {share:.0%}", colour_of(labels.index(label)), size, top)
        if not bottom:
            return
        top = bottom + 2


def _line(cv2: Any, out: NDArray[np.uint8], text: str, colour_bgr: tuple[int, int, int], size: float, top: int) -> int:
    """One line at `top`; its lower end, or 0 where there is no room left."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    bottom: int = top + height + below + 2
    if bottom > out.shape[0]:
        return 0
    ink = ink_on(colour_bgr)
    cv2.rectangle(out, (4, top), (8 + width, bottom), colour_bgr, cv2.FILLED)
    cv2.putText(out, text, (6, top + height + 1), cv2.FONT_HERSHEY_SIMPLEX, size, ink, 1, cv2.LINE_AA)
    return bottom
