"""Digits drawn on a canvas, as a camera might see them: a source for devices without a camera, and for tests."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.source import Captured, video_library

SIZE_WH = (640, 480)
FPS = 30.0
FRAMES_PER_DIGIT = 15
Stroke = list[tuple[float, float]]


def _arc(centre: tuple[float, float], radii: tuple[float, float], start: float, end: float) -> Stroke:
    """Points of an elliptic arc; degrees, 0 = right, clockwise on the screen."""
    angles = np.radians(np.linspace(start, end, 24))
    return [(centre[0] + radii[0] * math.cos(a), centre[1] + radii[1] * math.sin(a)) for a in angles]


# Strokes in a box of width 0.6 and height 1, y down: drawn by us because OpenCV's fonts differ between its versions.
STROKES: dict[str, list[Stroke]] = {
    "0": [_arc((0.3, 0.5), (0.28, 0.5), 0, 360)],
    "1": [[(0.15, 0.2), (0.32, 0.0), (0.32, 1.0)]],
    "2": [[*_arc((0.3, 0.28), (0.27, 0.28), 190, 390), (0.03, 1.0), (0.6, 1.0)]],
    "3": [[*_arc((0.28, 0.26), (0.27, 0.26), 200, 440), *_arc((0.28, 0.74), (0.3, 0.26), -80, 160)]],
    "4": [[(0.42, 1.0), (0.42, 0.0), (0.0, 0.68), (0.6, 0.68)]],
    "5": [[(0.55, 0.0), (0.1, 0.0), (0.07, 0.45), *_arc((0.27, 0.69), (0.3, 0.31), 235, 500)]],
    "6": [[(0.48, 0.0), (0.2, 0.25), *_arc((0.3, 0.72), (0.27, 0.28), 195, 555)]],
    "7": [[(0.0, 0.0), (0.58, 0.0), (0.22, 1.0)]],
    "8": [_arc((0.3, 0.25), (0.22, 0.25), 90, 450), _arc((0.3, 0.75), (0.28, 0.25), -90, 270)],
    "9": [[*_arc((0.3, 0.28), (0.25, 0.28), 20, 380), (0.5, 1.0)]],
}


def draw_digit(frame_id: int, region_xyxy: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], str]:
    """Frame number `frame_id` and the digit on it; the same picture for the same arguments.

    Dark on light and light on dark take turns; position, size, slant, tilt, stroke width and grey levels vary from
    digit to digit, noise from frame to frame.

    Args:
        frame_id: >= 0; each digit stays for `FRAMES_PER_DIGIT` frames.
        region_xyxy: Pixels of the canvas the network looks at; the digit lies inside.

    Returns:
        BGR uint8 (480, 640, 3), and one of "0".."9".
    """
    cv2: Any = video_library()
    which = frame_id // FRAMES_PER_DIGIT
    digit = str(np.random.default_rng([5, which // 10]).permutation(10)[which % 10])  # each digit once in ten
    choice = np.random.default_rng([7, which])
    x0, y0, x1, y1 = region_xyxy
    side = min(x1 - x0, y1 - y0)
    height = side * choice.uniform(0.55, 0.7)
    middle = np.array([x0 + x1, y0 + y1]) / 2 + choice.uniform(-0.08, 0.08, 2) * side
    paper, ink = choice.uniform(170, 235), choice.uniform(15, 70)
    if which % 2:
        paper, ink = ink, paper
    thickness = max(2, round(height * choice.uniform(0.09, 0.14)))
    slant, tilt = choice.uniform(-0.15, 0.15), math.radians(choice.uniform(-8, 8))
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]]) @ [[1, -slant], [0, 1]]
    frame = np.full((SIZE_WH[1], SIZE_WH[0], 3), round(paper), dtype=np.uint8)
    for stroke in STROKES[digit]:
        points = (np.array(stroke) - [0.3, 0.5]) @ turn.T * height + middle
        cv2.polylines(frame, [np.round(points).astype(np.int32)], False, [round(ink)] * 3, thickness, cv2.LINE_AA)
    frame = cv2.GaussianBlur(frame, (0, 0), 1.2)
    noise = np.random.default_rng([11, frame_id]).integers(-6, 7, frame.shape[:2], dtype=np.int16)
    return np.clip(frame.astype(np.int16) + noise[..., None], 0, 255).astype(np.uint8), digit


class SyntheticSource:
    """An endless camera of drawn digits.

    Args:
        region_xyxy: Part of the 640x480 canvas the network looks at.
        live: 30 frames per second like a camera, the newest wins; otherwise as fast as they are drawn.
        timecode: Each frame carries the time at which it was drawn.
    """

    kind = "synthetic"
    name = "synthetic"
    pace_s: float | None = 1 / FPS

    def __init__(self, region_xyxy: tuple[int, int, int, int], *, live: bool, timecode: bool = False) -> None:
        self.live = live
        self._region = region_xyxy
        self._timecode = timecode
        self._next = 0

    def open(self) -> str:
        """Nothing to connect."""
        return f"drawn digits, {SIZE_WH[0]}x{SIZE_WH[1]}" + (f", {FPS:g} FPS" if self.live else "")

    def read(self) -> Captured | None:
        """The next drawn frame with its digit as truth."""
        start = time.monotonic_ns()
        frame, digit = draw_digit(self._next, self._region)
        self._next += 1
        if self._timecode:
            from edge_demo.timecode import now_ms, write_code

            write_code(frame, now_ms())
        now = time.monotonic_ns()
        return Captured(frame, now, (now - start) / 1e6, truth=digit)

    def close(self) -> None:
        """Nothing to let go."""
