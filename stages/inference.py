"""Many frames through one runtime, in batches: raw outputs, decoded answers, and how two sets of either compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.runtime import Array, Runtime
from edge_demo.tasks import TASKS
from stages.arrays import to_bgr
from stages.statistics import interval

BATCH = 256  # frames at a time
PIXELS = 1 << 22  # of those frames, which bounds the memory of large ones


def batches(frames: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """uint8 NHWC (C = 1 or 3) -> contiguous uint8 NHWC BGR batches of `BATCH` or fewer large ones, in order."""
    size = max(1, min(BATCH, PIXELS // (frames.shape[1] * frames.shape[2])))
    for start in range(0, len(frames), size):
        yield to_bgr(frames[start : start + size])


def infer(runtime: Runtime, batch: Array) -> dict[str, Array]:
    """Run one batch on a model with one input, whatever that is called."""
    return runtime.infer({runtime.inputs[0].name: batch})


def answers(runtime: Runtime, frames: NDArray[np.uint8], task: str, labels: Sequence[str]) -> list[Any]:
    """Decoded results of a deployed graph, one per frame, with the task's default decode parameters."""
    params = TASKS[task].check_params({}, labels)
    return [result for batch in batches(frames) for result in TASKS[task].decode(infer(runtime, batch), params)]


def within(drop: float, limit: float) -> bool:
    """Whether a drop of a metric is allowed; a drop of exactly the limit is, whatever the subtraction rounds to."""
    return drop <= limit + 1e-9


def metric_interval(task: str, results: Sequence[Any], truths: Sequence[Any]) -> tuple[float, float]:
    """95 % interval of the task's leading metric."""
    row = TASKS[task]
    return row.interval(results, truths) if row.interval else interval(row.correct(results, truths))


def agreement(task: str, a: Sequence[Any], b: Sequence[Any]) -> float:
    """Share of items with the same decoded answer, in 0..1."""
    return float(np.mean([TASKS[task].same(left, right) for left, right in zip(a, b, strict=True)]))
