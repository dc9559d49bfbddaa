"""FP32 against INT8 on val, from the saved files: the metric, the answers, and the raw outputs of the bare networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.runtime import open_runtime
from edge_demo.tasks import TASKS
from stages.inference import agreement, answers, batches, infer


@dataclass(frozen=True, slots=True)
class Comparison:
    """One runtime."""

    fp32: float
    int8: float
    """The task's leading metric."""
    agreement: float
    """Share of items with the same decoded answer, in 0..1."""
    lost: int
    """Items FP32 gets right and INT8 gets wrong."""
    won: int
    """The other way round: the drop is (lost - won) / n where the metric is a share."""
    sqnr_db: float


def compare(
    runtime: str,
    models: tuple[Path, Path],
    cores: tuple[Path, Path, Path],
    frames: NDArray[np.uint8],
    truth: Sequence[Any],
    task: str,
    labels: Sequence[str],
) -> Comparison:
    """Run both deployed models on the same frames.

    Args:
        runtime: Key of `edge_demo.runtime.RUNTIMES`.
        models: The deployed FP32 and INT8 files.
        cores: The preprocessing graph, and the bare FP32 and INT8 networks.
        frames: uint8 NHWC, C = 1 or 3 (BGR).
        truth: What `TASKS[task].score` takes.
        task: Key of `edge_demo.tasks.TASKS`.
        labels: Names of the classes.
    """
    fp32, int8 = (_answers(runtime, file, frames, task, labels) for file in models)
    right_fp32, right_int8 = TASKS[task].correct(fp32, truth), TASKS[task].correct(int8, truth)
    metric = TASKS[task].metric
    return Comparison(
        fp32=TASKS[task].score(fp32, truth)[metric],
        int8=TASKS[task].score(int8, truth)[metric],
        agreement=agreement(task, fp32, int8),
        lost=int((right_fp32 > right_int8).sum()),
        won=int((right_fp32 < right_int8).sum()),
        sqnr_db=_sqnr_db(runtime, cores, frames),
    )


def _answers(runtime: str, file: Path, frames: NDArray[np.uint8], task: str, labels: Sequence[str]) -> list[Any]:
    with closing(open_runtime(runtime, file, threads=1, precision="f32")) as opened:
        return answers(opened, frames, task, labels)


def _sqnr_db(runtime: str, cores: tuple[Path, Path, Path], frames: NDArray[np.uint8]) -> float:
    """Signal to quantization noise of the first raw output, in dB, over all frames."""
    signal = noise = 0.0
    pre, fp32, int8 = (open_runtime(runtime, file, threads=1, precision="f32") for file in cores)
    with closing(pre), closing(fp32), closing(int8):
        first = fp32.outputs[0].name
        for frame_batch in batches(frames):
            batch = infer(pre, frame_batch)["batch"]
            want, got = infer(fp32, batch)[first].astype(np.float64), infer(int8, batch)[first]
            signal += float(np.square(want).sum())
            noise += float(np.square(want - got).sum())
    return decibel(signal, noise)


def decibel(signal: float, noise: float) -> float:
    """Ratio of two powers in dB, at most 200 (a noise of zero has no finite ratio, and JSON has no infinity)."""
    if signal <= 0.0:
        return 0.0
    return min(200.0, 10.0 * math.log10(signal / max(noise, signal * 1e-20)))
