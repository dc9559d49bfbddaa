"""Pictures for web viewers: painted and encoded once for all of them, and only while there is one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from edge_demo.errors import Error
from edge_demo.image import Frame, load_cv2
from edge_demo.live import Watched
from edge_demo.loop import Processed
from edge_demo.stats import Recent

STREAM_QUALITY = 80
REPAINT_S = 0.5  # a stale picture says for how long


@dataclass(frozen=True, slots=True)
class Jpeg:
    """One encoded picture; `number` counts pictures from 1."""

    number: int
    data: bytes


def encode(frame: Frame, quality: int) -> bytes:
    """A BGR uint8 HWC frame as JPEG."""
    cv2 = load_cv2()
    ok, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise Error(f"a {frame.shape[1]}x{frame.shape[0]} picture cannot be encoded as JPEG")
    return bytes(data)


class Pictures:
    """The newest picture. A viewer that is slow misses pictures; nobody waits for it.

    `offer` is called by the demo, everything async by the server's event loop.

    Args:
        demo: Whose frames.
        loop: The server's event loop.
    """

    def __init__(self, demo: Watched, loop: Callable[[], asyncio.AbstractEventLoop | None]) -> None:
        self.viewers = 0
        self.ages = Recent()
        """Ages in ms of the pictures as they are handed out."""
        self._demo, self._loop = demo, loop
        self._newest: Processed | None = None
        self._wanted = threading.Condition()
        self._closed = False
        self._current = Jpeg(0, b"")
        self._arrival: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._encode_all, name="web-encode", daemon=True)
        self._thread.start()

    def offer(self, processed: Processed) -> None:
        """Note a new frame; no work is done with it unless somebody watches."""
        with self._wanted:
            self._newest = processed
            self._wanted.notify()

    def enter(self, change: int) -> None:
        """A viewer came (+1) or left (-1)."""
        with self._wanted:
            self.viewers += change
            self._wanted.notify()

    async def after(self, number: int, timeout_s: float) -> Jpeg | None:
        """The newest picture later than `number`; None when none came in time."""
        if self._current.number <= number:
            self._arrival = self._arrival or asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrival.wait(), timeout_s)
        return self._current if self._current.number > number else None

    def close(self) -> None:
        """Paint no more."""
        with self._wanted:
            self._closed = True
            self._wanted.notify()
        self._thread.join(2.0)

    def _encode_all(self) -> None:
        number, painted, painted_s, overlay = 0, None, 0.0, True
        while True:
            with self._wanted:
                while not self._closed and not (
                    self.viewers
                    and self._newest is not None
                    and (
                        self._newest is not painted
                        or overlay != self._demo.controls.overlay
                        or (self._demo.troubled() and time.monotonic() - painted_s >= REPAINT_S)
                    )
                ):
                    # A viewer who comes later than the last frame must see it, too: forget what was painted for others.
                    painted = painted if self.viewers else None
                    self._wanted.wait(REPAINT_S / 2)
                if self._closed:
                    return
                processed, overlay = self._newest, self._demo.controls.overlay
            assert processed is not None
            new = processed is not painted
            number += 1
            jpeg = Jpeg(number, encode(self._demo.picture(processed, overlay=overlay), STREAM_QUALITY))
            painted, painted_s = processed, time.monotonic()
            if new:
                age_ms = (time.monotonic_ns() - processed.item.captured.t_mono_ns) / 1e6
                self.ages.add(age_ms, painted_s)
            loop = self._loop()
            if loop is not None:
                with suppress(RuntimeError):  # the server has just closed its loop
                    loop.call_soon_threadsafe(self._publish, jpeg)

    def _publish(self, jpeg: Jpeg) -> None:
        self._current = jpeg
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            arrival.set()
