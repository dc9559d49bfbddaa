"""What a viewer sees: the task's drawing, and below the picture a strip with the answer, the rates and the delay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from edge_demo.image import Frame, load_cv2

SMALL = 240  # a short side below this is enlarged for display, so that the text has room
WHITE, GREY, AMBER = (255, 255, 255), (190, 190, 190), (60, 190, 255)
STRIP = (32, 32, 32)
READABLE_SCALE = 0.45  # of the font: digits about 10 px high


@dataclass(frozen=True, slots=True)
class Overlay:
    """What the strip says. Rates in frames per second, times in ms, of the last seconds; None: not known yet."""

    answer: str
    """Label and confidence, or whatever sums up the result."""
    capture_fps: float | None
    fps: float | None
    shown_fps: float | None
    age_ms: float | None
    """Median age of the frames when they appeared."""
    age_p95_ms: float | None
    stage_ms: Mapping[str, float | None]
    """Median of each stage."""
    dropped: int
    """Frames, since the start."""
    engine: str
    """Runtime and precision."""
    state: str
    """Of the source."""
    warning: str = ""
    """What is wrong with the source: a frozen picture must not look alive."""
    note: str = ""
    """What else a viewer should know."""


def enlarge(frame: Frame) -> Frame:
    """A whole multiple of the frame with a short side of at least 240 px (nearest: pixels stay pixels)."""
    short = min(frame.shape[:2])
    if short >= SMALL:
        return frame
    factor = -(-SMALL // short)
    return np.ascontiguousarray(frame.repeat(factor, axis=0).repeat(factor, axis=1))


def answer(result: dict[str, Any]) -> str:
    """The one-line answer of a task's JSON result: label and confidence where it has them, else its first entry.

    An entry by label is read out: whole numbers as counts, others as shares.
    """
    if "label" in result and "score" in result:
        return f"{result['label']}  {result['score']:.0%}"
    name, value = next(iter(result.items()), ("result", "none"))
    if isinstance(value, dict):
        told = (f"{n} {label}" if isinstance(n, int) else f"{label} {n:.0%}" for label, n in value.items())
        return ", ".join(told) or "nothing"
    return f"{len(value)} {name}" if isinstance(value, list) else f"{name} {value}"


def lines(overlay: Overlay) -> list[str]:
    """The strip's small lines."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rates = {"camera": overlay.capture_fps, "model": overlay.fps, "shown": overlay.shown_fps}
    stages = "  ".join(f"{name} {number(value, '.1f')}" for name, value in overlay.stage_ms.items())
    return [
        f"{overlay.state}  "
        + "  ".join(f"{name} {number(value, '.1f')}" for name, value in rates.items())
        + f" FPS  {overlay.dropped} dropped",
        f"{number(overlay.age_ms, '.0f')} ms old (p50), {number(overlay.age_p95_ms, '.0f')} ms (p95)  {overlay.engine}",
        f"{stages} ms",
        *([overlay.note] if overlay.note else []),
    ]


def compose(annotated: Frame, overlay: Overlay) -> Frame:
    """The annotated BGR frame, enlarged when small, above a strip that never hides a pixel of it.

    The text is sized to the width: the longest line fits, at 320 px as at 1280 px.
    """
    cv2 = load_cv2()
    picture = enlarge(annotated)
    width = picture.shape[1]
    small = lines(overlay)
    unit = min(max(width / 640, 0.5), 2.5)
    scale = _fitting(cv2, small, max(READABLE_SCALE, 0.6 * unit), width)
    rows = [(overlay.answer, 1.6 * scale, WHITE), *((line, scale, GREY) for line in small)]
    if overlay.warning:
        rows.insert(0, (overlay.warning, 1.2 * scale, AMBER))
    left = round(8 * unit)
    return np.vstack([picture, *(_row(text, size, colour, width, left) for text, size, colour in rows)])


@lru_cache(maxsize=32)
def _row(text: str, size: float, colour: tuple[int, int, int], width: int, left: int) -> Frame:
    """A line of the strip, to be read only: most are those of the frame before."""
    cv2 = load_cv2()
    height = round(36 * size)
    row = np.full((height, width, 3), STRIP, dtype=np.uint8)
    fitting = _fitting(cv2, [text], size, width)
    baseline = height - round(9 * size)
    cv2.putText(row, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, fitting, colour, 1, cv2.LINE_AA)
    row.setflags(write=False)
    return row


def banner(frame: Frame, text: str) -> Frame:
    """The BGR frame with a warning across its upper edge (a new frame), or the frame itself without one."""
    if not text:
        return frame
    cv2 = load_cv2()
    width = frame.shape[1]
    scale = _fitting(cv2, [text], min(max(width / 640, READABLE_SCALE), 2.5), width)
    out = frame.copy()
    out[: round(44 * scale)] = STRIP
    cv2.putText(
        out, text, (round(0.03 * width), round(31 * scale)), cv2.FONT_HERSHEY_SIMPLEX, scale, AMBER, 1, cv2.LINE_AA
    )
    return out


def _fitting(cv2: Any, texts: Sequence[str], size: float, width: int) -> float:
    """The font scale, `size` at most, at which every text fits into 94 % of the width."""
    widest: int = max(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0] for text in texts)
    return size * min(1.0, 0.94 * width / max(widest, 1))
