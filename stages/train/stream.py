"""Batches of an epoch: picked from frames in the device's memory, or brought there from disk ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from stages.train.examples import Examples

AHEAD = 3
"""Batches that are being prepared, or wait, while one is trained on."""

Batch = tuple[Tensor, Tensor]


def whole(picked: Tensor) -> Tensor:
    """All of a batch's indices; another one takes a process's part of them."""
    return picked


class Feed:
    """The batches of an epoch, by their number; the same ones, bit by bit, whether resident or streamed.

    Streamed ones are read by one thread in the background, into pinned memory on the way to a GPU. Any number may be
    asked for, also one again or an earlier one; what was prepared in vain is dropped then.

    Args:
        examples: The split.
        order: int64 (N,), the order of its items.
        size: Items of a batch.
        part: Of a batch's indices, those that this process wants.
    """

    def __init__(self, examples: Examples, order: Tensor, size: int, part: Callable[[Tensor], Tensor] = whole) -> None:
        self.examples, self.size, self.part = examples, size, part
        self.order = order.to(examples.frames.device)
        self.steps = len(order) // size
        self.waiting: dict[int, Future[Batch]] = {}
        self.thread = ThreadPoolExecutor(1, "frames") if examples.is_streamed else None

    def __call__(self, index: int) -> Batch:
        """Frames uint8 (n, H, W, C) and their targets, on the training device; an error of reading is raised here."""
        if self.thread is None:
            return self._load(index)
        wanted = range(index, min(index + AHEAD + 1, self.steps))
        for old in [key for key in self.waiting if key not in wanted]:
            self.waiting.pop(old).cancel()
        for new in wanted:
            if new not in self.waiting:
                self.waiting[new] = self.thread.submit(self._load, new)
        return self.waiting[index].result()

    def _load(self, index: int) -> Batch:
        return self.examples.batch(self.part(self.order[index * self.size : (index + 1) * self.size]))
