"""What is wrong with a picture that arrives on time: frozen, black, or not whole. Runs on a few thousand pixels."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from edge_demo.image import Frame

FROZEN_S = 3.0
BLACK_LEVEL = 24  # of 255; black is 16 in studio swing (ITU-R BT.601), plus noise
BLACK_S = 2.0
CELLS = 64  # rows and columns looked at
WINDOW = 60  # frames over which broken ones are counted
BROKEN_SHARE = 0.1
USUAL_FRAMES = 30  # a source has to show this long what is usual for it
BAND = 0.125  # share of the height that must be dead


class PictureWatch:
    """Looks at each frame of one live source; the same pixel values again are told from a still scene by their noise.

    A camera that hangs repeats its last frame, bit by bit; a sensor never does. A cut-off JPEG is decoded without an
    error, but its lower part keeps what the decoder's buffer held: it equals an earlier frame while the upper part
    moves, or is one flat colour. Streams whose lower part is always like that (a letterbox) are left alone.
    """

    def __init__(self) -> None:
        self._last: NDArray[np.uint8] | None = None
        self._changed_s = self._bright_s = 0.0
        self._broken: deque[bool] = deque(maxlen=WINDOW)
        self._usual: list[bool] = []

    def look(self, frame: Frame, now_s: float) -> str:
        """What is wrong, as part of a sentence; empty when nothing is.

        Args:
            frame: BGR uint8 HWC; its size may change.
            now_s: Monotonic time, s.
        """
        height, width = frame.shape[:2]
        cells = frame[:: max(1, height // CELLS), :: max(1, width // CELLS)]
        last, self._last = self._last, cells.copy()
        if last is None or last.shape != cells.shape:
            self._changed_s = self._bright_s = now_s
            return ""
        same = (cells == last).all(axis=(1, 2))
        if not same.all():
            self._changed_s = now_s
        if int(np.percentile(cells, 99)) > BLACK_LEVEL:
            self._bright_s = now_s
        broken = self._cut_off(cells, same)
        if now_s - self._bright_s >= BLACK_S:
            return f"black picture for {now_s - self._bright_s:.0f} s: is the lens covered?"
        if now_s - self._changed_s >= FROZEN_S:
            return f"frozen picture: the same for {now_s - self._changed_s:.0f} s"
        return "garbled picture: frames arrive cut off" if broken else ""

    def _cut_off(self, cells: NDArray[np.uint8], same: NDArray[np.bool_]) -> bool:
        rows = len(cells)
        flat = (np.ptp(cells, axis=1) <= 1).all(axis=1)
        dead = max(_bottom(same), _bottom(flat))
        now = BAND * rows <= dead < rows  # a wholly dead picture is frozen or blank, not cut off
        if len(self._usual) < USUAL_FRAMES:
            self._usual.append(now)
            return False
        if sum(self._usual) > BROKEN_SHARE * USUAL_FRAMES:
            return False
        self._broken.append(now)
        return sum(self._broken) > max(2.0, BROKEN_SHARE * len(self._broken))


def _bottom(rows: NDArray[np.bool_]) -> int:
    """How many rows from the lower edge up are all true."""
    up = rows[::-1]
    return len(up) if up.all() else int(np.argmin(up))
