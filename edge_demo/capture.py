"""The capture thread: reads one source into a channel, keeps its state, opens a lost one again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_demo.channel import Channel
from edge_demo.errors import InputError
from edge_demo.events import State
from edge_demo.sources import Captured, Source, VideoSource
from edge_demo.stats import Rate


@dataclass(frozen=True, slots=True)
class Timing:
    """When a silent source is called stale, and how long to wait before opening a lost one again, in s."""

    stale_s: float = 2.0
    backoff_s: float = 0.25
    backoff_max_s: float = 2.0
    jitter: float = 0.3
    """Share by which a wait varies, so that many devices do not knock at a restarted camera together."""


@dataclass(frozen=True, slots=True)
class Item:
    """A captured frame with its number; gaps in the numbers of what arrives are dropped frames."""

    frame_id: int
    captured: Captured


class Status:
    """What the source is doing, shared by the threads; every change is told to `on_change(state, reason)`.

    CONNECTING -> LIVE -> (STALE -> LIVE)* -> LOST -> BACKOFF -> CONNECTING ... -> ENDED | STOPPED
    """

    def __init__(self, on_change: Callable[[State, str], None], timing: Timing = Timing()) -> None:
        self.state: State | None = None
        self.reason = ""
        self.granted = ""
        self.captured = 0
        self.reconnects = 0
        self.stalls = 0
        self.timing = timing
        self.opened = threading.Event()
        """Set when the first open succeeded or failed."""
        self._rate = Rate()
        self._last_frame_s = 0.0
        self._on_change = on_change
        self._order = threading.RLock()  # held while a change is told: changes are told in the order they happen
        self._numbers = threading.Lock()  # never held while telling, so that a stuck reader cannot stop a viewer

    def to(self, state: State, reason: str = "") -> None:
        """Change the state; telling the same state twice is no change."""
        with self._order:
            if state == self.state and self.reason == reason:
                return
            self.state, self.reason = state, reason
            self._on_change(state, reason)

    def arrived(self, now_s: float) -> int:
        """Count a frame; returns its number. A frame makes any source LIVE."""
        with self._order:
            with self._numbers:
                self._last_frame_s = now_s
                self._rate.tick(now_s)
                self.captured += 1
            if self.state != "LIVE":
                self.to("LIVE", self.granted)
            return self.captured - 1

    def check_stale(self, now_s: float) -> None:
        """STALE when a live source has been silent too long: a read that returns is no proof of a fresh frame."""
        if not self._order.acquire(blocking=False):
            return  # another change is being told; the watchdog comes again
        try:
            silent_s = self.silent_s(now_s)
            if self.state == "LIVE" and silent_s >= self.timing.stale_s:
                self.stalls += 1
                self.to("STALE", f"no frame for {silent_s:.1f} s")
        finally:
            self._order.release()

    def silent_s(self, now_s: float) -> float:
        """Seconds since the last frame."""
        with self._numbers:
            return now_s - self._last_frame_s

    def fps(self, now_s: float) -> float | None:
        """Captured frames per second, lately."""
        with self._numbers:
            return self._rate.per_s(now_s)


def capture(source: Source, frames: Channel[Item], status: Status, stop: threading.Event, *, paced: bool) -> None:
    """Body of the capture thread: read until the source ends or `stop` is set; closes `frames`.

    Opening, reading and releasing stay in this one thread: a release while another thread reads crashes the process.

    Args:
        source: What to read.
        frames: Where frames go; its kind decides whether frames are dropped or the source waits.
        status: Told of every frame and change.
        stop: Ends the loop; a read that blocks ends within the source's read timeout.
        paced: Play at the source's own speed instead of as fast as it can be read.

    Raises:
        InputError: the source does not open at first, or a file of it cannot be read.
    """
    try:
        status.to("CONNECTING")
        status.granted = source.open()
        status.opened.set()
        _read_all(source, frames, status, stop, paced)
    finally:
        source.close()
        frames.close()
        status.opened.set()


def _read_all(source: Source, frames: Channel[Item], status: Status, stop: threading.Event, paced: bool) -> None:
    due_s = time.monotonic()
    wait_s = status.timing.backoff_s
    while not stop.is_set():
        if paced and source.pace_s:
            # After a pause (a stalled reader) the plan starts anew: catching up would be a burst of frames.
            due_s = max(due_s + source.pace_s, time.monotonic())
            stop.wait(due_s - time.monotonic())
        got = source.read()
        if got is not None:
            wait_s = status.timing.backoff_s
            if not frames.put(Item(status.arrived(time.monotonic()), got)):
                return
        elif source.live:
            wait_s = _reopen(source, status, stop, wait_s)
        else:
            status.to("ENDED", source.shortfall() if isinstance(source, VideoSource) else "")
            return


def _reopen(source: Source, status: Status, stop: threading.Event, wait_s: float) -> float:
    """A failed capture never recovers: let it go, wait and open it anew; returns how long to wait the next time."""
    if stop.is_set():
        return wait_s
    status.check_stale(time.monotonic())
    status.to("LOST", "the source gives no more frames")
    source.close()
    while not stop.is_set():
        timing = status.timing
        pause_s = wait_s * random.uniform(1 - timing.jitter, 1 + timing.jitter)
        wait_s = min(wait_s * 2, timing.backoff_max_s)
        status.to("BACKOFF", f"opening again in {pause_s:.2f} s")
        if stop.wait(pause_s):
            break
        status.to("CONNECTING", "again")
        try:
            status.granted = source.open()
        except InputError as error:
            status.to("LOST", error.message)
            continue
        status.reconnects += 1
        break
    return wait_s
