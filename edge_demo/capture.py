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
from edge_demo.picture import PictureWatch
from edge_demo.source import Captured, Source
from edge_demo.stats import Rate
from edge_demo.video import VideoSource


@dataclass(frozen=True, slots=True)
class Timing:
    """When a silent source is called stale, and how long to wait before opening a lost one again, in s."""

    stale_s: float = 2.0
    backoff_s: float = 0.25
    backoff_max_s: float = 2.0
    jitter: float = 0.3
    """Share by which a wait may be shorter, so that many devices do not knock at a restarted camera together."""


@dataclass(frozen=True, slots=True)
class Item:
    """A captured frame with its number; gaps in the numbers of what arrives are dropped frames."""

    frame_id: int
    captured: Captured
    source: int = 0
    """Which of several sources it came from."""


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
        self.warning = ""
        """What is wrong with a picture that arrives: frozen, black, cut off."""
        self.behind_ms: float | None = None
        """Backlog of a stream that carries its own clock."""
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

    def note(self, warning: str, behind_ms: float | None) -> None:
        """What the newest frame looks like; a new kind of trouble, or its end, is told as a change."""
        kind, before = warning.partition(" ")[0], self.warning.partition(" ")[0]
        self.warning, self.behind_ms = warning, behind_ms
        if kind != before:
            self.to("LIVE", warning or self.granted)

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


def capture(
    source: Source,
    frames: Channel[Item],
    status: Status,
    stop: threading.Event,
    *,
    paced: bool,
    wait: bool = False,
    index: int = 0,
    tap: Callable[[Item], None] | None = None,
) -> None:
    """Body of the capture thread: read until the source ends or `stop` is set; closes `frames`.

    Opening, reading and releasing stay in this one thread: a release while another thread reads crashes the process.

    Args:
        source: What to read.
        frames: Where frames go; its kind decides whether frames are dropped or the source waits.
        status: Told of every frame and change.
        stop: Ends the loop; a read that blocks ends within the source's read timeout.
        paced: Play at the source's own speed instead of as fast as it can be read.
        wait: A live source that is not there at first is waited for, like one that got lost.
        index: Number of the source, for its frames.
        tap: Called with every frame before it goes on.

    Raises:
        InputError: the source does not open at first, or a file of it cannot be read.
    """
    hand_on = _hand_on(source, frames, status, index, tap)
    try:
        status.to("CONNECTING")
        _open_first(source, status, stop, wait=wait)
        _read_all(source, hand_on, status, stop, paced)
    finally:
        source.close()
        frames.close()
        status.opened.set()


def _hand_on(
    source: Source, frames: Channel[Item], status: Status, index: int, tap: Callable[[Item], None] | None
) -> Callable[[Captured], bool]:
    """What is done with each frame; returns False when nobody takes frames any more."""
    watch = PictureWatch() if source.live else None
    size_wh: tuple[int, int] | None = None

    def hand_on(got: Captured) -> bool:
        nonlocal size_wh
        now_s = time.monotonic()
        item = Item(status.arrived(now_s), got, index)
        before, size_wh = size_wh, (got.frame.shape[1], got.frame.shape[0])
        if tap:
            tap(item)
        taken = frames.put(item)
        if watch:  # after the frame has gone on, which so is a millisecond younger when it is shown
            status.note(watch.look(got.frame, now_s), got.behind_ms)
            if before not in (None, size_wh):
                status.granted = f"{size_wh[0]}x{size_wh[1]}"
                status.to("LIVE", f"the picture is now {status.granted}")
        return taken

    return hand_on


def _open_first(source: Source, status: Status, stop: threading.Event, *, wait: bool) -> None:
    try:
        status.granted = source.open()
        status.opened.set()
    except InputError as error:
        if not (wait and source.live):
            raise
        status.to("LOST", error.message)
        _retry(source, status, stop, status.timing.backoff_s)
        status.opened.set()


def _read_all(
    source: Source, hand_on: Callable[[Captured], bool], status: Status, stop: threading.Event, paced: bool
) -> None:
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
            if not hand_on(got):
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
    wait_s, opened = _retry(source, status, stop, wait_s)
    status.reconnects += opened
    return wait_s


def _retry(source: Source, status: Status, stop: threading.Event, wait_s: float) -> tuple[float, bool]:
    """Wait and open until it opens or `stop` is set; returns how long to wait the next time, and whether it opened.

    The wait is from one attempt to the next: a camera that kept an attempt hanging was left in peace meanwhile, and
    when it thaws it must find us knocking.
    """
    spent_s = 0.0
    while not stop.is_set():
        timing = status.timing
        pause_s = max(0.0, wait_s * random.uniform(1 - timing.jitter, 1) - spent_s)
        wait_s = min(wait_s * 2, timing.backoff_max_s)
        status.to("BACKOFF", f"opening again in {pause_s:.2f} s")
        if stop.wait(pause_s):
            break
        status.to("CONNECTING", "again")
        begun_s = time.monotonic()
        try:
            status.granted = source.open()
        except InputError as error:
            spent_s = time.monotonic() - begun_s
            status.to("LOST", error.message)
            continue
        return wait_s, True
    return wait_s, False
