"""Pictures decoded in the background, in order, never more than a few ahead of what is asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")

CHUNK = 8
"""Items of one piece of work; handing over a single small picture would cost as much as reading it."""
MOST_THREADS = 8


def ahead(items: Iterable[Item], load: Callable[[Item], Loaded], threads: int = 0) -> Iterator[tuple[Item, Loaded]]:
    """Each item with what `load` makes of it, in order; an error of `load` comes when its chunk's turn does.

    At most two chunks per thread are loaded, or being loaded, at any time, so memory does not grow with the number of
    items. Threads, not processes: OpenCV decodes and resizes without Python's lock.

    Args:
        items: Taken from by the caller's thread only.
        load: Called from several threads.
        threads: 0: one per usable CPU, at most 8.
    """
    count = threads or min(MOST_THREADS, _usable_cpus())
    source, waiting = iter(items), deque[tuple[list[Item], Future[list[Loaded]]]]()
    with ThreadPoolExecutor(count, "decode") as pool:
        try:
            while True:
                while len(waiting) < 2 * count and (chunk := list(islice(source, CHUNK))):
                    waiting.append((chunk, pool.submit(lambda some: [load(item) for item in some], chunk)))
                if not waiting:
                    return
                done, found = waiting.popleft()
                yield from zip(done, found.result(), strict=True)
        finally:
            for _, future in waiting:
                future.cancel()


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
