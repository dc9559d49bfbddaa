"""The whole test split, once, on everything that could ship; and which precision is recommended, with the reason.

The answers are decoded and scored by `edge_demo.tasks`, the code that runs on the device.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edge_demo import tasks
from edge_demo.errors import Error
from edge_demo.runtime import Array, Runtime, open_runtime
from stages.arrays import load_frames
from stages.graph import Deployed
from stages.inference import agreement, batches, infer, metric_interval, within
from stages.spec import (
    DataResult,
    EvaluateConfig,
    EvaluateResult,
    EvaluateRow,
    ExportResult,
    Gate,
    OnStep,
    QuantizeResult,
    Step,
    TrainResult,
    ignore,
)
from stages.tasks import TASKS
from stages.trained import load_trained

__all__ = ["run"]

Precision = Literal["fp32", "int8"]
RUNTIMES = ("onnxruntime", "openvino")


@dataclass(slots=True)
class Engine:
    """One runtime and precision: the deployed model, its bare network, and what they have answered so far."""

    runtime: str
    precision: Precision
    model: Runtime
    core: Runtime
    results: list[Any] = field(default_factory=list)
    max_abs_logits: float = 0.0


def run(
    config: EvaluateConfig,
    data: DataResult,
    train: TrainResult,
    export: ExportResult,
    quantize: QuantizeResult,
    *,
    out_dir: Path,
    on_step: OnStep = ignore,
) -> EvaluateResult:
    """Score torch FP32, and FP32 and INT8 in both runtimes, on every test image; write `predictions.npz`.

    Raises:
        InputError: files that are not what the earlier stages wrote.
        Error: NaN or infinity among the outputs.
    """
    frames, truth = load_frames(data, "test"), TASKS[train.task].truths(data, "test")
    reference, engines = _measure(data, train, export, quantize, frames, on_step)
    rows = [
        _row("torch", "fp32", reference, reference, truth, train.task, 0.0),
        *(_row(e.runtime, e.precision, e.results, reference, truth, train.task, e.max_abs_logits) for e in engines),
    ]
    metric = tasks.TASKS[train.task].metric
    value = {(row.runtime, row.precision): row.metrics[metric] for row in rows}
    drop = {name: value[name, "fp32"] - value[name, "int8"] for name in RUNTIMES}
    recommended, reason = recommend(quantize, drop, config.max_int8_drop, metric, len(truth))
    shipped = next(e for e in engines if (e.runtime, e.precision) == (RUNTIMES[0], recommended))
    _save_predictions(out_dir / "predictions.npz", data, train.task, truth, shipped.results)
    return EvaluateResult(
        folder=out_dir,
        metric=metric,
        rows=tuple(rows),
        int8_drop=drop,
        recommended=recommended,
        reason=reason,
        gates=_gates(config, [row for row in rows if row.precision == recommended and row.runtime != "torch"], metric),
    )


def recommend(
    quantize: QuantizeResult, drop: dict[str, float], max_drop: float, metric: str, n: int
) -> tuple[Precision, str]:
    """INT8 only when it passed on val and loses at most `max_drop` on test in every runtime, and was chosen.

    Test takes no part in the choice of a recipe; here it can only veto it.
    """
    worst = max(drop, key=lambda name: drop[name])
    if not quantize.passed:
        limit = f"(limit {100 * quantize.max_drop:.2f}, n = {quantize.n:,})"
        return "fp32", f"INT8 loses {100 * quantize.drop:.2f} points of {metric} on val {limit}"
    if quantize.chosen == "FP32":
        return "fp32", quantize.reason
    on_test = f"points of {metric} on test in {worst} (limit {100 * max_drop:.2f}, n = {n:,})"
    if not within(drop[worst], max_drop):
        return "fp32", f"INT8 loses {100 * drop[worst]:.2f} {on_test}"
    verb = "loses at most" if drop[worst] >= 0 else "gains at least"
    return "int8", f"INT8 {verb} {100 * abs(drop[worst]):.2f} {on_test}"


def _measure(
    data: DataResult,
    train: TrainResult,
    export: ExportResult,
    quantize: QuantizeResult,
    frames: NDArray[np.uint8],
    on_step: OnStep,
) -> tuple[list[Any], list[Engine]]:
    """What torch answered, and the engines with their answers; each batch once through all, no raw output is kept."""
    deployed = load_trained(data, train)
    task = tasks.TASKS[train.task]
    params = task.check_params({}, data.labels)
    reference: list[Any] = []
    with ExitStack() as stack:
        engines = list(_open(export, quantize, stack))
        for batch in batches(frames):
            on_step(Step("test", len(reference), len(frames)))
            normalized, logits, final = _torch(deployed, batch)
            reference += task.decode(dict(zip(task.outputs, final, strict=True)), params)
            for engine in engines:
                engine.results += task.decode(infer(engine.model, batch), params)
                seen = batch if engine.core.inputs[0].name == "frames" else normalized
                apart = _apart(infer(engine.core, seen)[engine.core.outputs[0].name], logits, engine)
                engine.max_abs_logits = max(engine.max_abs_logits, apart)
    return reference, engines


def _open(export: ExportResult, quantize: QuantizeResult, stack: ExitStack) -> Iterator[Engine]:
    files: dict[Precision, tuple[Path, Path]] = {
        "fp32": (export.folder / export.model, export.folder / export.core),
        "int8": (quantize.folder / quantize.model, quantize.folder / quantize.core),
    }
    for precision, pair in files.items():
        for name in RUNTIMES:
            model, core = (
                stack.enter_context(closing(open_runtime(name, file, threads=1, precision="f32"))) for file in pair
            )
            yield Engine(name, precision, model, core)


def _torch(deployed: Deployed, batch: NDArray[np.uint8]) -> tuple[Array, Array, list[Array]]:
    """The normalized batch, the first raw output and the final outputs."""
    with torch.inference_mode():
        normalized = deployed.pre(torch.from_numpy(np.array(batch)))  # torch warns of arrays mapped from disk
        raw = deployed.core(normalized)
        final = deployed.post(*raw)
    return normalized.numpy(), raw[0].numpy(), [tensor.numpy() for tensor in final]


def _apart(got: Array, want: Array, engine: Engine) -> float:
    largest = float(np.abs(got - want).max())
    if not math.isfinite(largest):
        raise Error(f"{engine.runtime} {engine.precision}: NaN or infinity among the raw outputs on test")
    return largest


def _row(
    runtime: str,
    precision: Precision,
    results: Sequence[Any],
    reference: Sequence[Any],
    truth: Sequence[Any],
    task: str,
    max_abs_logits: float,
) -> EvaluateRow:
    return EvaluateRow(
        runtime=runtime,
        precision=precision,
        n=len(truth),
        metrics=tasks.TASKS[task].score(results, truth),
        ci95=metric_interval(task, results, truth),
        agreement=agreement(task, results, reference),
        max_abs_logits=max_abs_logits,
    )


def _gates(config: EvaluateConfig, rows: Sequence[EvaluateRow], metric: str) -> tuple[Gate, ...]:
    """`min_accuracy` against the worst runtime of the recommended precision; none when it is 0."""
    if config.min_accuracy <= 0:
        return ()
    worst = min(rows, key=lambda row: row.metrics[metric])
    value = worst.metrics[metric]
    found = f"{metric} {value:.2%} on test ({worst.runtime} {worst.precision}, n = {worst.n})"
    return (
        Gate(
            name="evaluate.min_accuracy",
            value=value,
            limit=config.min_accuracy,
            passed=value >= config.min_accuracy,
            stop=False,
            message=f"{found}, at least {config.min_accuracy:.2%} wanted",
        ),
    )


def _save_predictions(path: Path, data: DataResult, task: str, truth: Sequence[Any], results: Sequence[Any]) -> None:
    items = json.loads((data.folder / "items.json").read_text(encoding="utf-8"))["test"]
    arrays = {
        "ids": np.array([item["id"] for item in items]),
        "quality": tasks.TASKS[task].correct(results, truth),
        **TASKS[task].predictions(truth, results),
    }
    np.savez(path, allow_pickle=False, **arrays)
