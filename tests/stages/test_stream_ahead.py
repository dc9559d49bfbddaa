"""Background decode: in order, bounded, by other threads; errors and early ends leave nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from edge_demo.errors import InputError
from stages.data.ahead import CHUNK, ahead


@pytest.mark.parametrize("count", [0, 1, CHUNK, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_in_order_each_once(count: int, threads: int) -> None:
    assert list(ahead(range(count), lambda item: item * item, threads)) == [
        (item, item * item) for item in range(count)
    ]


def test_never_more_than_two_chunks_per_thread_are_there() -> None:
    """Counted when each item is taken up: that many are loaded or under way beyond what was asked for."""
    taken, given, worst = 0, 0, 0

    def items() -> Iterator[int]:
        nonlocal taken, worst
        for item in range(500):
            taken += 1
            worst = max(worst, taken - given)
            yield item

    for _ in ahead(items(), lambda item: bytes(100), 2):
        given += 1
    assert given == 500
    assert worst <= (2 * 2 + 1) * CHUNK


def test_an_error_comes_through_and_later_items_are_not_waited_for() -> None:
    def load(item: int) -> int:
        if item == 20:
            raise InputError("20.png: cannot be read")
        return item

    seen = []
    loaded = ahead(range(10_000), load, 2)
    with pytest.raises(InputError, match=r"20\.png"):
        seen.extend(item for item, _ in loaded)
    assert seen == list(range(20 // CHUNK * CHUNK))


def test_loads_in_other_threads_which_end() -> None:
    names = {name for _, name in ahead(range(50), lambda _: threading.current_thread().name, 2)}
    assert all(name.startswith("decode") for name in names)
    stopped = ahead(range(50), lambda item: item, 2)
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
