"""The pictures a bundle carries: golden frames with what must come out of them, and a labelled sample of test."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.archive import EPOCH
from edge_demo.bundle import canonical_json
from edge_demo.errors import Error
from edge_demo.image import decode_frame, fit, to_batch, write_png
from edge_demo.manifest import Tolerance
from edge_demo.runtime import RUNTIMES, open_runtime
from edge_demo.tasks import TASKS
from edge_demo.verify import digest
from stages.arrays import load_frames, load_truth, stratified
from stages.spec import DataResult, Split

SAFETY = 10.0
"""A tolerance is this many times the difference measured here: another CPU sums in another order."""
FLOOR = {"fp32": 1e-5, "int8": 2e-2}
"""Smallest tolerance, as a share of the output's largest value. FP32: ten times the 1e-6 that OpenVINO pinned to f32
differs from ONNX Runtime. INT8: a few steps of 1/255, since one value rounded the other way moves what follows."""
EVAL_SEED = 0
ENLARGE, PAD = 3, 5


@dataclass(frozen=True, slots=True)
class GoldenFrames:
    """The manifest's `golden` entry without the results, and the network input made from the written files."""

    entry: dict[str, Any]
    batch: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one variant gave on the golden frames: where it was written, and how far runtimes were apart."""

    outputs_file: str
    decoded_file: str
    tolerances: list[Tolerance]


def write_golden(folder: Path, data: DataResult, count: int) -> GoldenFrames:
    """Write `count` frames of val (of test, where there is no val) as `golden/<i>.png`.

    Every second one is enlarged to a size of its own, so that the device's resize is put to the test, too.
    """
    split: Split = "val" if data.counts.get("val") else "test"
    frames, truth = load_frames(data, split), load_truth(data, split)
    order = np.argsort(truth, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    names, pixels, read_back = [], [], []
    for number, index in enumerate(chosen):
        frame = np.asarray(frames[index])
        names.append(_write(folder, f"golden/{number}.png", write_png(enlarged(frame) if number % 2 else frame)))
        read_back.append(decode_frame((folder / names[-1]).read_bytes(), names[-1]))
        pixels.append(digest(read_back[-1]))
    batch = to_batch([fit(frame, data.size_wh, data.resize)[0] for frame in read_back])
    entry = {"frames": names, "pixels_sha256": pixels, "batch_sha256": digest(batch)}
    return GoldenFrames(entry, batch)


def enlarged(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame three times as large and a little wider, its last column repeated: no whole-number factor back."""
    large = frame.repeat(ENLARGE, axis=0).repeat(ENLARGE, axis=1)
    return np.pad(large, ((0, 0), (0, PAD), (0, 0)), mode="edge")


def run_golden(
    folder: Path,
    golden: GoldenFrames,
    file: str,
    precision: str,
    task: str,
    labels: Sequence[str],
    params: Mapping[str, Any],
) -> Measured:
    """Record what ONNX Runtime (f32) gives for the golden frames, and how far every runtime is from it.

    Raises:
        Error: an output is not finite.
    """
    model = (folder / file).read_bytes()
    got = {runtime: _infer(runtime, model, golden.batch) for runtime in RUNTIMES}
    want = got["onnxruntime"]
    for name, array in want.items():
        if not np.isfinite(array).all():
            raise Error(f"{file}: output {name} is not finite on the golden frames")
    results = TASKS[task].decode(want, params)
    decoded = [TASKS[task].to_json(result, labels) for result in results]
    tolerances = [
        Tolerance.model_validate(
            {"runtime": runtime, "output": name, "atol": tolerance(arrays[name], want[name], precision)}
        )
        for runtime, arrays in got.items()
        for name in want
    ]
    return Measured(
        _write(folder, f"golden/outputs.{precision}.npz", npz(want)),
        _write(folder, f"golden/decoded.{precision}.json", canonical_json(decoded)),
        tolerances,
    )


def tolerance(got: NDArray[Any], want: NDArray[Any], precision: str) -> float:
    """Absolute tolerance of one output: `SAFETY` times what was measured, at least the floor, rounded up."""
    measured = float(np.abs(got.astype(np.float64) - want).max(initial=0.0))
    largest = float(np.abs(want).max(initial=0.0))
    limit = max(SAFETY * measured, FLOOR[precision] * max(largest, 1e-6))
    step = 10.0 ** (math.floor(math.log10(limit)) - 1)
    # Without the 1e-9, binary fractions would round 2e-5 up to 2.1e-5.
    return float(f"{math.ceil(limit / step - 1e-9) * step:.1e}")


def write_eval(folder: Path, data: DataResult, count: int) -> dict[str, Any]:
    """Write about `count` test frames as `eval/<i>.png` and their truth; returns the manifest's `eval` entry."""
    frames, truth = load_frames(data, "test"), load_truth(data, "test")
    chosen = stratified(truth, count, EVAL_SEED)
    names = [
        _write(folder, f"eval/{number:05d}.png", write_png(np.asarray(frames[index])))
        for number, index in enumerate(chosen)
    ]
    truth_file = _write(folder, "eval/truth.json", canonical_json(truth[chosen].tolist()))
    return {"frames": names, "truth": truth_file, "of": len(truth)}


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as the bytes of an npz file that depend on nothing but them (numpy's own may state the time)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", EPOCH), content.getvalue())
    return buffer.getvalue()


def _infer(runtime: str, model: bytes, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    session = open_runtime(runtime, model)
    try:
        return session.infer({"frames": batch})
    finally:
        session.close()


def _write(folder: Path, name: str, content: bytes) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return name
