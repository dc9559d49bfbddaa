"""One candidate against FP32 on val, from saved files: metric, answers, raw outputs, speed, in both runtimes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edge_demo.runtime import Array, Bound, Runtime, open_runtime
from edge_demo.tasks import TASKS
from stages import onnx_graph
from stages.arrays import to_bgr
from stages.inference import agreement, answers, batches, infer, metric_interval
from stages.quantize.census import fused
from stages.quantize.speed import ROUNDS, Speed, paired_speed
from stages.spec import Candidate
from stages.statistics import mcnemar

RUNTIMES = ("onnxruntime", "openvino")
SQNR_FRAMES = 512  # noise is a mean over all values of all outputs: a few hundred pictures settle it
RAW_BATCH = 64
CHANCE_ITEMS, CHANCE_ORDERS = 500, 19


@dataclass(frozen=True, slots=True)
class Reference:
    """What FP32 does in one runtime."""

    answers: list[Any]
    correct: NDArray[Any]
    metric: float
    raw: NDArray[np.float64]
    """First raw output of the bare network, for `Stand.few`."""
    bound: Bound
    """The deployed model at batch 1; it owns the buffers its `run` reads and writes."""


Deploy = Callable[[ModelProto], tuple[ModelProto, ModelProto]]
"""A bare network -> the same from `frames` to its raw outputs, and as it ships."""


@dataclass(frozen=True, slots=True)
class Stand:
    """Where candidates are tried: val, what FP32 does there, and how a bare network becomes a deployable one."""

    task: str
    labels: Sequence[str]
    frames: NDArray[np.uint8]
    """uint8 NHWC, C = 1 or 3 (BGR)."""
    truth: Sequence[Any]
    few: NDArray[np.uint8]
    """Some of the frames in BGR, for raw outputs."""
    deploy: Deploy
    fp32: dict[str, Reference]
    fp32_bytes: int
    scratch: Path


@contextmanager
def open_stand(
    task: str,
    labels: Sequence[str],
    frames: NDArray[np.uint8],
    truth: Sequence[Any],
    files: tuple[Path, Path, Path],
    deploy: Deploy,
    scratch: Path,
) -> Iterator[Stand]:
    """Measure FP32 once; `files` are the pre graph, the bare network and the deployed model."""
    pre, core, model = files
    few = to_bgr(frames[:: max(1, math.ceil(len(frames) / SQNR_FRAMES))])
    with closing(open_runtime(RUNTIMES[0], pre)) as opened:
        batch = np.concatenate([infer(opened, part)["batch"] for part in batches(few)])
    with ExitStack() as stack:
        fp32 = {}
        for name in RUNTIMES:
            runtime = stack.enter_context(closing(open_runtime(name, model, batch=1)))
            found = answers(runtime, frames, task, labels)
            metric = TASKS[task].score(found, truth)[TASKS[task].metric]
            correct = TASKS[task].correct(found, truth)
            fp32[name] = Reference(found, correct, metric, raw_output(name, core, batch), bind_one(runtime, frames))
        yield Stand(task, labels, frames, truth, few, deploy, fp32, model.stat().st_size, scratch)


def at_chance(stand: Stand) -> str:
    """Why FP32's accuracy says nothing, so that none can be lost: its answers fit other items as well; else empty.

    One-sided permutation test on up to 500 items: 19 random orders of the answers, so p <= 1 / 20. Source: Fisher 1935,
    "The Design of Experiments", section 21.
    """
    task, found = TASKS[stand.task], stand.fp32[RUNTIMES[0]].answers[:CHANCE_ITEMS]
    truth, rng = stand.truth[: len(found)], np.random.default_rng(0)
    own = float(np.mean(task.correct(found, truth)))
    orders = [rng.permutation(len(found)) for _ in range(CHANCE_ORDERS)]
    others = [float(np.mean(task.correct([found[index] for index in order], truth))) for order in orders]
    if own > max(others):
        return ""
    return (
        f"FP32 is at chance: {own:.1%} of {len(found)} items of val, and up to {max(others):.1%} with its answers in "
        "random order; there is no accuracy to keep"
    )


def reference_row(stand: Stand) -> Candidate:
    """FP32 as the table's first row."""
    return Candidate(
        name="FP32",
        metric={name: fp32.metric for name, fp32 in stand.fp32.items()},
        ci95={name: metric_interval(stand.task, fp32.answers, stand.truth) for name, fp32 in stand.fp32.items()},
        size_bytes=stand.fp32_bytes,
        verdict="reference",
        reason="what every recipe is compared with",
    )


def measured(stand: Stand, name: str, core: ModelProto) -> Candidate:
    """Save the candidate, and measure the saved files; the verdict is left to the search.

    Raises:
        InputError: a runtime does not load it.
        Error: not a valid graph.
    """
    core_file, model_file = stand.scratch / "core.int8.onnx", stand.scratch / "model.int8.onnx"
    raw, model = stand.deploy(core)
    onnx_graph.save(raw, core_file)
    size_bytes = onnx_graph.save(model, model_file)
    metric, ci95, paired, same, sqnr = {}, {}, {}, {}, []
    speed: dict[str, Speed] = {}
    for runtime_name, fp32 in stand.fp32.items():
        with closing(open_runtime(runtime_name, model_file, batch=1)) as runtime:
            found = answers(runtime, stand.frames, stand.task, stand.labels)
            one = bind_one(runtime, stand.frames)  # named: its buffers must live as long as its `run` is called
            speed[runtime_name] = paired_speed(fp32.bound.run, one.run)
        correct = TASKS[stand.task].correct(found, stand.truth)
        metric[runtime_name] = TASKS[stand.task].score(found, stand.truth)[TASKS[stand.task].metric]
        ci95[runtime_name] = metric_interval(stand.task, found, stand.truth)
        paired[runtime_name] = int((fp32.correct > correct).sum()), int((fp32.correct < correct).sum())
        same[runtime_name] = agreement(stand.task, fp32.answers, found)
        sqnr.append(sqnr_db(fp32.raw, raw_output(runtime_name, core_file, stand.few)))
    return Candidate(
        name=name,
        metric=metric,
        ci95=ci95,
        paired=paired,
        p_value={runtime_name: mcnemar(*counts) for runtime_name, counts in paired.items()},
        agreement=same,
        sqnr_db=min(sqnr),
        fused=fused(model_file),
        size_bytes=size_bytes,
        speed=speed,
        rounds=ROUNDS,
        verdict="rejected",
        reason="",
    )


def bind_one(runtime: Runtime, frames: NDArray[np.uint8]) -> Bound:
    """A deployed model bound to the first frame."""
    return runtime.bind({runtime.inputs[0].name: to_bgr(frames[:1]).copy()})


def raw_output(runtime: str, core: Path, batch: Array) -> NDArray[np.float64]:
    """First raw output of a bare network, float64, for what it takes: a normalized batch, or frames."""
    with closing(open_runtime(runtime, core)) as opened:
        first = opened.outputs[0].name
        parts = [infer(opened, batch[at : at + RAW_BATCH])[first] for at in range(0, len(batch), RAW_BATCH)]
    return np.concatenate(parts).astype(np.float64)


def sqnr_db(want: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    """Signal to quantization noise over all values, in dB."""
    return decibel(float(np.square(want).sum()), float(np.square(want - got).sum()))


def decibel(signal: float, noise: float) -> float:
    """Ratio of two powers in dB, at most 200 (a noise of zero has no finite ratio, and JSON has no infinity).

    Noise that is no number (an output of NaN) counts as worst: -200.
    """
    if not math.isfinite(noise):
        return -200.0
    if signal <= 0.0:
        return 0.0
    return max(-200.0, min(200.0, 10.0 * math.log10(signal / max(noise, signal * 1e-20))))
