"""The sources of one run, each with its own capture thread and state, read in turn and told as one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from edge_demo.capture import Item, Status, Timing
from edge_demo.channel import Channel, InTurn
from edge_demo.events import State
from edge_demo.source import Source

# The state of several is that of the worst: a picture that stands still is not made good by another that moves.
WORST = ("LOST", "BACKOFF", "STALE", "CONNECTING", "LIVE", "ENDED", "STOPPED")


class Feeds:
    """What is captured, one entry per source in `statuses` and `channels`.

    Args:
        sources: One or more.
        changed: Called with source, state and reason, by whichever thread changed it.
        timing: For all of them.
        capacity: Frames held per source.
        newest_wins: Live: a new frame replaces an older one.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        changed: Callable[[Source, State, str], None],
        timing: Timing,
        *,
        capacity: int,
        newest_wins: bool,
    ) -> None:
        self.sources = tuple(sources)
        self.statuses = [Status(_teller(source, changed), timing) for source in self.sources]
        self.frames = InTurn[Item](len(self.sources), capacity, newest_wins=newest_wins)

    def channel(self, index: int) -> Channel[Item]:
        """Where source `index` puts its frames."""
        return self.frames.channels[index]

    @property
    def worst(self) -> Status:
        """The status of the source that is in the most trouble."""
        return min(self.statuses, key=lambda status: WORST.index(status.state or "CONNECTING"))

    @property
    def state(self) -> State | None:
        """Of the worst."""
        return self.worst.state

    @property
    def reason(self) -> str:
        """Of the worst; with its name where there are several."""
        worst = self.worst
        if len(self.statuses) == 1 or not worst.reason:
            return worst.reason
        return f"{self.sources[self.statuses.index(worst)].name}: {worst.reason}"

    @property
    def granted(self) -> str:
        """What each granted."""
        return "; ".join(status.granted for status in self.statuses)

    @property
    def captured(self) -> int:
        """Frames, all together."""
        return sum(status.captured for status in self.statuses)

    @property
    def stalls(self) -> int:
        """All together."""
        return sum(status.stalls for status in self.statuses)

    @property
    def reconnects(self) -> int:
        """All together."""
        return sum(status.reconnects for status in self.statuses)

    @property
    def behind_ms(self) -> float | None:
        """The longest backlog of those that can tell."""
        known = [status.behind_ms for status in self.statuses if status.behind_ms is not None]
        return max(known, default=None)

    def fps(self, now_s: float) -> float | None:
        """Captured frames per second, all together."""
        rates = [rate for status in self.statuses if (rate := status.fps(now_s)) is not None]
        return sum(rates) if rates else None

    def check_stale(self, now_s: float) -> None:
        """STALE for each live source that has been silent too long."""
        for source, status in zip(self.sources, self.statuses, strict=True):
            if source.live:
                status.check_stale(now_s)

    def end(self, reason: str) -> None:
        """STOPPED, all of them."""
        for status in self.statuses:
            status.to("STOPPED", reason)

    def warning(self, index: int, now_s: float) -> str:
        """What a viewer of source `index` must be told: no fresh frames, or a picture that is wrong."""
        source, status = self.sources[index], self.statuses[index]
        if not source.live:
            return ""
        if status.state in ("CONNECTING", "STALE", "LOST", "BACKOFF"):
            silent = f": last frame {status.silent_s(now_s):.0f} s ago" if status.captured else ""
            return f"{status.state}{silent}"
        return status.warning

    def warnings(self, now_s: float) -> str:
        """The first warning of any, with the source's name where there are several."""
        for index, source in enumerate(self.sources):
            if told := self.warning(index, now_s):
                return told if len(self.sources) == 1 else f"{source.name}: {told}"
        return ""


def _teller(source: Source, changed: Callable[[Source, State, str], None]) -> Callable[[State, str], None]:
    return lambda state, reason: changed(source, state, reason)


def opened(feeds: Feeds, told: set[int]) -> list[str]:
    """A sentence for each source that has been opened since the last call; `told` remembers which."""
    sentences = []
    for index, (source, status) in enumerate(zip(feeds.sources, feeds.statuses, strict=True)):
        if index not in told and status.opened.is_set() and status.granted:
            told.add(index)
            sentences.append(f"source {source.name}: {status.granted}")
    return sentences


def start(
    feeds: Feeds,
    spawn: Callable[[str, Callable[[], None]], threading.Thread],
    body: Callable[[int], None],
) -> list[threading.Thread]:
    """One capture thread per source; `body(index)` is what it does."""

    def of(index: int) -> Callable[[], None]:
        return lambda: body(index)

    several = len(feeds.sources) > 1
    return [spawn(f"capture-{i}" if several else "capture", of(i)) for i in range(len(feeds.sources))]
