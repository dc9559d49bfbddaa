"""The parity ladder: numpy, torch, ONNX Runtime and OpenVINO must give the same on the same test images.

Each rung adds one thing, so the first broken one says where to look:

    numpy -> <runtime> pre.onnx           colour, scale, mean/std, layout
    torch -> <runtime> core.onnx          the network
    torch -> <runtime> model.fp32.onnx    what ships
    torch -> openvino (bf16) model...     what OpenVINO makes of it when nobody asks for f32; reported, never gated
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_demo import tasks
from edge_demo.errors import Error, GateError
from edge_demo.runtime import Array, open_runtime
from stages.arrays import load_frames, stratified, to_bgr
from stages.graph import Deployed
from stages.inference import agreement, infer
from stages.pixels import fault, reference_batch, tinted
from stages.spec import DataResult, ExportConfig, OnStep, ParityRow, Step
from stages.tasks import TASKS

RUNTIMES = ("onnxruntime", "openvino")
# Of the largest value. bf16 keeps 8 significant bits, so one rounding is within 2 ** -9; a network of tens of layers
# adds up to a few percent (measured on a residual network: 49 dB, that is 0.4 % of the root mean square).
LOW_PRECISION_TOLERANCE = 0.05
BATCH_SIZES = (1, 2, 7)  # and the whole sample: a batch size baked into the graph shows at once

Outputs = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Rung:
    """What one row compares: a model file fed with `inputs` against the `expected` arrays."""

    file: str
    reference: str
    """`numpy` or `torch`."""
    inputs: Array
    expected: Outputs
    finish: Callable[[Outputs], Outputs]
    """The file's outputs -> the deployed graph's outputs, for decoding."""


def climb(
    config: ExportConfig, deployed: Deployed, data: DataResult, task: str, folder: Path, on_step: OnStep
) -> tuple[ParityRow, ...]:
    """Compare every rung in every runtime on a stratified sample of the test split.

    Raises:
        GateError: the graph's preprocessing is not the input contract's; the mistake is named.
        Error: an output is NaN, infinite or of the wrong shape.
    """
    picked = stratified(TASKS[task].strata(data, "test"), config.parity_images, seed=0)
    frames = to_bgr(load_frames(data, "test")[picked])
    rungs = list(_rungs(deployed, frames, data, task))
    rows: list[ParityRow] = []
    for rung in rungs:
        for name in RUNTIMES:
            on_step(Step("parity", len(rows), len(rungs) * len(RUNTIMES)))
            with closing(open_runtime(name, folder / rung.file, threads=1, precision="f32")) as runtime:
                got = {size: infer(runtime, rung.inputs[:size]) for size in (*BATCH_SIZES, len(rung.inputs))}
            row = _row(f"{rung.reference} -> {name} {rung.file}", rung, got, task, data.labels, config.max_abs)
            if rung.reference == "numpy":
                _refuse_fault(row.name, rung.inputs, got[len(rung.inputs)]["batch"], data)
            rows.append(row)
    return (*rows, _default_precision(rungs[-1], folder, task, data, config.max_abs))


def _default_precision(rung: Rung, folder: Path, task: str, data: DataResult, tolerance: float) -> ParityRow:
    """What ships, in the precision OpenVINO takes by itself on this CPU, called by that precision's name."""
    with closing(open_runtime("openvino", folder / rung.file, threads=1, precision="default")) as runtime:
        precision = runtime.effective["precision"]
        got = {size: infer(runtime, rung.inputs[:size]) for size in (1, len(rung.inputs))}
    allowed = tolerance if precision == "f32" else LOW_PRECISION_TOLERANCE
    name = f"torch -> openvino {rung.file}, by default {precision}"
    row = _row(name, rung, got, task, data.labels, allowed)
    within = row.max_rel <= allowed  # answers near a tie may change: their share is in the row
    return row.model_copy(update={"passed": within, "required": False})


def _rungs(deployed: Deployed, frames: NDArray[np.uint8], data: DataResult, task: str) -> Iterator[Rung]:
    """The rungs, bottom up."""
    names = TASKS[task].raw_outputs, TASKS[task].outputs

    def finish_raw(raw: Outputs) -> Outputs:
        with torch.inference_mode():
            return _named(names[1], deployed.post(*(torch.from_numpy(raw[name]) for name in names[0])))

    def finish_batch(pre: Outputs) -> Outputs:
        with torch.inference_mode():
            return finish_raw(_named(names[0], deployed.core(torch.from_numpy(pre["batch"]))))

    # Tinted too: on grey pictures (B = G = R) no swap of channels could show.
    colourful = np.concatenate([frames, tinted(frames)])
    batch = reference_batch(colourful, data.colour, data.mean, data.std).astype(np.float32)
    yield Rung("pre.onnx", "numpy", colourful, {"batch": batch}, finish_batch)
    with torch.inference_mode():
        normalized = deployed.pre(torch.from_numpy(frames))
        raw = _named(names[0], deployed.core(normalized))
        final = _named(names[1], deployed(torch.from_numpy(frames)))
    yield Rung("core.onnx", "torch", normalized.numpy(), raw, finish_raw)
    yield Rung("model.fp32.onnx", "torch", frames, final, lambda outputs: outputs)


def _named(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> Outputs:
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def _row(
    name: str, rung: Rung, got: dict[int, Outputs], task: str, labels: Sequence[str], tolerance: float
) -> ParityRow:
    """Worst difference over batch sizes and outputs (each relative to its own largest value), agreement of answers."""
    worst_abs = worst_rel = 0.0
    for size, outputs in got.items():
        found, wanted = _aligned(task, outputs, {key: want[:size] for key, want in rung.expected.items()})
        for key, want in wanted.items():
            apart = _max_abs(f"{name}, {key}, batch of {size}", found[key], want)
            largest = float(np.abs(rung.expected[key]).max())
            worst_abs = max(worst_abs, apart)
            worst_rel = max(worst_rel, apart / max(largest, float(np.finfo(np.float32).tiny)))
    params = tasks.TASKS[task].check_params({}, labels)

    def answers(outputs: Outputs) -> list[Any]:
        return tasks.TASKS[task].decode(rung.finish(outputs), params)

    same = agreement(task, answers(got[len(rung.inputs)]), answers(rung.expected))
    passed = worst_rel <= tolerance and same == 1.0
    return ParityRow(
        name=name,
        n=len(rung.inputs),
        max_abs=worst_abs,
        max_rel=worst_rel,
        agreement=same,
        tolerance=tolerance,
        passed=passed,
    )


def _aligned(task: str, got: Outputs, want: Outputs) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Final outputs without the differences that no answer depends on; others, and those of another shape, as is."""
    row = tasks.TASKS[task]
    if row.align is None or not set(row.outputs) <= set(want):
        return got, want
    return row.align(got, want)


def _max_abs(where: str, got: Array, want: Array) -> float:
    if got.shape != want.shape:
        raise Error(f"parity, {where}: shape {got.shape}, expected {want.shape}")
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        raise Error(f"parity, {where}: NaN or infinity", "train again with a smaller lr")
    return float(np.abs(got - want).max())


def _refuse_fault(name: str, frames: Array, batch: Array, data: DataResult) -> None:
    mistake = fault(frames, batch, data.colour, data.mean, data.std)
    if mistake is not None:
        raise GateError(f"parity, {name}: {mistake}", "the graph must preprocess as stages/graph.py says")
