"""A clock in the picture: what a frame's true age is, whatever the program that shows it claims."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from edge_demo.errors import Error
from edge_demo.events import Event
from edge_demo.image import Frame
from edge_demo.loop import Processed
from edge_demo.stats import WholeRun

BITS, BLOCK = 40, 16  # 40 bits of ms last 34 years; 16 px blocks survive JPEG and H.264
OLDEST_MS = 600_000


def write_code(frame: Frame, ms: int) -> None:
    """Write the low 40 bits of `ms` as black and white blocks along the top edge of a BGR frame >= 640 px wide."""
    for bit in range(BITS):
        frame[0:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 if ms >> bit & 1 else 0


def read_code(frame: Frame, now_ms: int) -> int | None:
    """The ms a frame carries, after lossy coding; None when it carries no clock of this machine of the last minutes.

    Blocks must be clearly black or white, so that ordinary pictures are no clock.
    """
    if frame.shape[1] < BITS * BLOCK or frame.shape[0] < BLOCK:
        return None
    inner = slice(BLOCK // 4, 3 * BLOCK // 4)
    blocks = frame[:BLOCK, : BITS * BLOCK].reshape(BLOCK, BITS, BLOCK, 3)[inner, :, inner]
    means = blocks.mean(axis=(0, 2, 3))
    if ((means > 70) & (means < 185)).any():
        return None
    ms = sum(1 << bit for bit, mean in enumerate(means) if mean >= 185)
    return ms if 0 <= now_ms - ms < OLDEST_MS else None


def now_ms() -> int:
    """The monotonic clock in ms, as the code carries it."""
    return time.monotonic_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Latency:
    """Ages of the processed frames when their result was there, in ms; None: too few to have that percentile."""

    n: int
    without_code: int
    true_p50_ms: float | None
    true_p95_ms: float | None
    reported_p95_ms: float | None
    error_p95_ms: float | None
    """Of |true - reported|: what the demo does not see, the way from the lens to the capture call."""

    def line(self) -> str:
        """One line for people."""

        def ms(value: float | None) -> str:
            return "-" if value is None else f"{value:.1f}"

        bare = f", {self.without_code} frames without a time code" if self.without_code else ""
        return (
            f"latency test: true age p50 {ms(self.true_p50_ms)} ms, p95 {ms(self.true_p95_ms)} ms; reported p95 "
            f"{ms(self.reported_p95_ms)} ms; they differ by {ms(self.error_p95_ms)} ms (p95), n = {self.n}{bare}"
        )


class LatencyTest:
    """Compares the age the demo reports for each frame with the clock in its picture."""

    def __init__(self) -> None:
        self._true, self._reported, self._error = WholeRun(), WholeRun(), WholeRun()
        self._without = 0

    def heard(self, event: Event, line: str, processed: Processed | None) -> None:
        """One event of the run."""
        if processed is None:
            return
        captured = processed.item.captured
        code = read_code(captured.frame, now_ms())
        if code is None:
            self._without += 1
            return
        unseen_ms = captured.t_mono_ns / 1e6 - code
        self._true.add(processed.age_ms + unseen_ms)
        self._reported.add(processed.age_ms)
        self._error.add(abs(unseen_ms))

    def result(self) -> Latency:
        """What was measured.

        Raises:
            Error: no frame carried a time code.
        """
        if not self._true.n:
            raise Error(
                f"--latency-test: none of {self._without} frames carries a time code",
                "use --source synthetic, or a stream whose frames went through edge_demo.timecode.write_code",
            )
        return Latency(
            self._true.n,
            self._without,
            self._true.percentile(50),
            self._true.percentile(95),
            self._reported.percentile(95),
            self._error.percentile(95),
        )


def coded(frame: Frame) -> Frame:
    """A copy of the frame that carries the time of now."""
    out = np.ascontiguousarray(frame).copy()
    write_code(out, now_ms())
    return out
