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
from edge_demo.stats import Rate, Recent

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
        loop: The server's event loop, once it runs.
        spawn: Starts a thread whose failure ends the demo.
    """

    def __init__(
        self,
        demo: Watched,
        loop: Callable[[], asyncio.AbstractEventLoop | None],
        spawn: Callable[[str, Callable[[], None]], threading.Thread],
    ) -> None:
        self.viewers = 0
        self._ages = Recent()
        self._rate = Rate()
        self._demo, self._loop = demo, loop
        self._newest: Processed | None = None
        self._wanted = threading.Condition()
        self._closed = False
        self._current = Jpeg(0, b"")
        self._arrival: asyncio.Event | None = None
        self._painted: Processed | None = None
        self._painted_s = 0.0
        self._overlay = self._new = True
        self._thread = spawn("web-encode", self._encode_all)

    def offer(self, processed: Processed) -> None:
        """Note a new frame; no work is done with it unless somebody watches."""
        with self._wanted:
            self._newest = processed
            self._wanted.notify()

    def enter(self) -> int:
        """A viewer came; returns the number of the last picture not worth showing: one from before anyone watched."""
        with self._wanted:
            self.viewers += 1
            self._wanted.notify()
            return self._current.number if self.viewers == 1 else 0

    def leave(self) -> None:
        """A viewer left."""
        with self._wanted:
            self.viewers -= 1

    def age_ms(self, q: float) -> float | None:
        """The q-th percentile of the ages of the pictures when they were handed out, over the last seconds."""
        with self._wanted:
            return self._ages.percentile(q, time.monotonic())

    def fps(self) -> float | None:
        """New pictures handed out per second, lately."""
        with self._wanted:
            return self._rate.per_s(time.monotonic())

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
        number = 0
        while (processed := self._next()) is not None:
            number += 1
            jpeg = Jpeg(number, encode(self._demo.picture(processed, overlay=self._overlay), STREAM_QUALITY))
            if self._new:
                with self._wanted:
                    age_ms = (time.monotonic_ns() - processed.item.captured.t_mono_ns) / 1e6
                    self._ages.add(age_ms, time.monotonic())
                    self._rate.tick(time.monotonic())
            loop = self._loop()
            if loop is not None:
                with suppress(RuntimeError):  # the server has just closed its loop
                    loop.call_soon_threadsafe(self._publish, jpeg)

    def _next(self) -> Processed | None:
        """Wait for something to paint; None when closed."""
        with self._wanted:
            while not self._closed and not self._due():
                self._wanted.wait(REPAINT_S / 2)
            self._new = self._newest is not self._painted
            self._painted, self._painted_s = self._newest, time.monotonic()
            self._overlay = self._demo.controls.overlay
            return None if self._closed else self._newest

    def _due(self) -> bool:
        if not self.viewers:
            self._painted = None  # whoever comes next must see the last frame, too
        if not self.viewers or self._newest is None:
            return False
        changed = self._newest is not self._painted or self._overlay != self._demo.controls.overlay
        return changed or (self._demo.troubled() and time.monotonic() - self._painted_s >= REPAINT_S)

    def _publish(self, jpeg: Jpeg) -> None:
        self._current = jpeg
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            arrival.set()
