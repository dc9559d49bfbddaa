"""Keeps a screen up to date from the main thread: paints only frames that are shown, and says when one is frozen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge_demo.channel import Channel
from edge_demo.image import Frame
from edge_demo.loop import Processed
from edge_demo.stats import Rate, Recent, WholeRun

REPAINT_S = 0.25
WAIT_S = 0.05  # for a frame, before keys and closing are looked at; a frame that comes meanwhile is shown at once


class Screen(Protocol):
    """Where frames are shown; called from the main thread only."""

    def show(self, frame: Frame | None) -> bool:
        """Show a frame (None: keep the last); False when the person closed it."""
        ...

    def key(self) -> str:
        """The key pressed since the last call, or empty."""
        ...

    def close(self) -> None:
        """Take it away."""
        ...


@dataclass(frozen=True, slots=True)
class Shown:
    """Of the frames that appeared in the last seconds: rate per s, ages when they appeared in ms; None: too few."""

    fps: float | None
    age_p50_ms: float | None
    age_p95_ms: float | None


class View:
    """One screen and what is on it.

    Args:
        screen: Where to show.
        shown: Processed frames; the newest is taken.
        paint: (processed frame, monotonic s) -> the picture to show.
        renewed: Told of the figures of the frames shown (and the monotonic s) four times a second, while no frame waits
            to be shown: nobody reads faster, and percentiles would cost a frame's time.
        pressed: Told of every key that is not for the window itself.
    """

    def __init__(
        self,
        screen: Screen,
        shown: Channel[Processed],
        paint: Callable[[Processed, float], Frame],
        renewed: Callable[[Shown, float], None],
        pressed: Callable[[str], None] | None = None,
    ) -> None:
        self._screen = screen
        self._shown = shown
        self._paint = paint
        self._renewed = renewed
        self._pressed = pressed
        self._last: Processed | None = None
        self._painted_s = 0.0
        self._just = True
        self._ages = Recent()
        self._rate = Rate()
        self._figures_s = 0.0
        self.ages = WholeRun()
        """Ages of all frames when they appeared, in ms."""

    def refresh(self, now_s: float, *, troubled: bool) -> bool:
        """Show what is new, or a frozen frame again when its source is in trouble; False when the person closed it."""
        if self._pressed and (key := self._screen.key()):
            self._pressed(key)
        newest = self._shown.get(0 if self._just else WAIT_S)
        self._just = newest is not None
        self._last = newest or self._last
        again = troubled and now_s - self._painted_s >= REPAINT_S
        if self._last is None or not (newest or again):
            return self._screen.show(None)
        kept = self._screen.show(self._paint(self._last, now_s))
        self._painted_s = time.monotonic()
        if newest:  # what a viewer sees is as old as this: drawing and showing included
            age_ms = (time.monotonic_ns() - newest.item.captured.t_mono_ns) / 1e6
            self._ages.add(age_ms, self._painted_s)
            self._rate.tick(self._painted_s)
            self.ages.add(age_ms)
        self._renew(self._painted_s)
        return kept

    def _renew(self, now_s: float) -> None:
        """Tells the figures where they are due."""
        if now_s - self._figures_s < REPAINT_S:
            return
        self._figures_s = now_s
        p50, p95 = (self._ages.percentile(q, now_s) for q in (50, 95))
        self._renewed(Shown(self._rate.per_s(now_s), p50, p95), now_s)
