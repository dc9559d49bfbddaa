"""A bounded hand-off between two threads: either the newest item wins (live) or the producer waits (files)."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """At most `capacity` items. With capacity 1 and `newest_wins` it is the one-frame slot of the live demo.

    A queue in front of a slow consumer turns every extra item into delay, without bound when the producer is a
    camera; a slot of one keeps the delay flat (measured for a 30 fps camera and 100 ms of work: 28 s against 0.1 s
    after 40 s).

    Args:
        capacity: Items held at most, >= 1.
        newest_wins: A full channel drops its oldest item and counts it; otherwise `put` waits for space.
        changed: Told of every change; shared by channels that are read together.
    """

    def __init__(self, capacity: int, *, newest_wins: bool, changed: threading.Condition | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity} is below 1")
        self.dropped = 0
        self._capacity = capacity
        self._newest_wins = newest_wins
        self._items: deque[T] = deque()
        self._closed = False
        self._changed = changed or threading.Condition()

    def put(self, item: T) -> bool:
        """Hand over one item; False when the channel is closed (the item is not taken)."""
        with self._changed:
            while not self._closed and not self._newest_wins and len(self._items) >= self._capacity:
                self._changed.wait()
            if self._closed:
                return False
            if len(self._items) >= self._capacity:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, timeout_s: float) -> T | None:
        """The oldest item held, or None after `timeout_s` without one or when `ended`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._items and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            return self._take()

    def _take(self) -> T | None:
        """The oldest item held, or None; the condition is held."""
        if not self._items:
            return None
        item = self._items.popleft()
        self._changed.notify_all()
        return item

    def close(self) -> None:
        """Take no more items; those held can still be read. Wakes everyone who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Closed and empty: nothing will ever come."""
        with self._changed:
            return self._closed and not self._items

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)


class InTurn(Generic[T]):
    """Several channels read as one: each in its turn, so that a fast one cannot starve the others.

    Args:
        count: Channels, >= 1; put into `channels[i]`.
        capacity: Of each.
        newest_wins: Of each.
    """

    def __init__(self, count: int, capacity: int, *, newest_wins: bool) -> None:
        self._changed = threading.Condition()
        self.channels = [Channel[T](capacity, newest_wins=newest_wins, changed=self._changed) for _ in range(count)]
        self._turn = 0

    def get(self, timeout_s: float) -> T | None:
        """The next channel's oldest item, in turn; None after `timeout_s` without one or when `ended`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for step in range(len(self.channels)):
                    which = (self._turn + step) % len(self.channels)
                    item = self.channels[which]._take()
                    if item is not None:
                        self._turn = which + 1
                        return item
                left = deadline - time.monotonic()
                if left <= 0 or all(channel._closed for channel in self.channels):
                    return None
                self._changed.wait(left)

    def close(self) -> None:
        """Take no more items; those held can still be read. Wakes everyone who waits."""
        for channel in self.channels:
            channel.close()

    @property
    def ended(self) -> bool:
        """All closed and empty: nothing will ever come."""
        return all(channel.ended for channel in self.channels)

    @property
    def dropped(self) -> int:
        """Items dropped, all channels together."""
        return sum(channel.dropped for channel in self.channels)

    def __len__(self) -> int:
        return sum(len(channel) for channel in self.channels)
