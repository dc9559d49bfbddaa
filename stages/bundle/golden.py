"""Golden frames: a few pictures with everything that must come out of them, and how far another device may be off.

Out of `CANDIDATES` frames for each one wanted, the one that ships is the one whose answer is the steadiest: a frame on
the border between two answers would fail on a device where nothing is wrong. Metrics never come from these frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stages.tasks
from edge_demo.bundle import canonical_json
from edge_demo.errors import Error
from edge_demo.image import decode_frame, fit, to_batch, write_png
from edge_demo.manifest import Tolerance
from edge_demo.runtime import RUNTIMES, open_runtime
from edge_demo.tasks import TASKS
from edge_demo.verify import digest
from stages.arrays import load_frames
from stages.bundle.samples import npz, write_file
from stages.spec import DataResult, Split

REFERENCE = "onnxruntime"
"""The runtime whose outputs are recorded."""
CANDIDATES = 8
SAFETY = 10.0
"""A tolerance is this many times the largest difference measured here: another CPU sums in another order."""
FLOOR = {"fp32": 1e-5, "int8": 2e-2}
"""Smallest tolerance, as a share of the output's largest value. FP32: ten times the 1e-6 that OpenVINO pinned to f32
differs from ONNX Runtime. INT8: a few steps of 1/255, since one value rounded the other way moves what follows."""
SHAKES = 8
"""Random changes of the raw outputs, as large as the tolerance, that an answer is tried with."""
ENLARGE, PAD = 3, 5

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Deployment:
    """What answers the frames: model bytes by precision, and how raw outputs become answers."""

    models: Mapping[str, bytes]
    task: str
    labels: Sequence[str]
    params: Mapping[str, Any]

    def decode(self, raw: Outputs) -> list[Any]:
        """Raw outputs -> one result per frame."""
        return TASKS[self.task].decode(raw, self.params)


@dataclass(frozen=True, slots=True)
class Golden:
    """The manifest's `golden` entry, and the tolerances of each precision."""

    entry: dict[str, Any]
    tolerances: dict[str, list[Tolerance]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A frame as it would ship: the PNG, what it decodes to, and which of the wanted frames it could be."""

    slot: int
    png: bytes
    frame: NDArray[np.uint8]


def write_golden(folder: Path, data: DataResult, deployment: Deployment, count: int) -> Golden:
    """Choose and write `count` frames of val (of test, where there is no val) and what must come out of them.

    Writes `golden/<i>.png`, `golden/outputs.<precision>.npz` and `golden/decoded.<precision>.json`. Every second frame
    is enlarged to a size of its own, so that the device's resize is put to the test, too.

    Raises:
        Error: an output is not finite.
    """
    candidates = list_candidates(data, count)
    got = {
        precision: _every_runtime(deployment, precision, _batch(candidates, data)) for precision in deployment.models
    }
    steady = same_everywhere(deployment, got)
    tolerances = {
        precision: measure(_some(outputs, steady), precision, deployment.task) for precision, outputs in got.items()
    }
    chosen = choose(candidates, deployment, got, tolerances)

    names = [write_file(folder, f"golden/{i}.png", candidate.png) for i, candidate in enumerate(chosen)]
    batch = _batch(chosen, data)
    outputs_files, decoded_files = {}, {}
    for precision, model in deployment.models.items():
        # Run again: the last bits of a result can depend on the batch it was computed in.
        raw = _infer(REFERENCE, model, batch)
        answers = [TASKS[deployment.task].to_json(result, deployment.labels) for result in deployment.decode(raw)]
        outputs_files[precision] = write_file(folder, f"golden/outputs.{precision}.npz", npz(raw))
        decoded_files[precision] = write_file(folder, f"golden/decoded.{precision}.json", canonical_json(answers))
    entry = {
        "frames": names,
        "outputs": outputs_files,
        "decoded": decoded_files,
        "pixels_sha256": [digest(candidate.frame) for candidate in chosen],
        "batch_sha256": digest(batch),
    }
    return Golden(entry, tolerances)


def list_candidates(data: DataResult, count: int) -> list[Candidate]:
    """Up to `CANDIDATES` frames for each wanted one, spread over the classes."""
    split: Split = "val" if data.counts.get("val") else "test"
    frames, strata = load_frames(data, split), stages.tasks.TASKS[data.task].strata(data, split)
    by_class = np.argsort(strata, kind="stable")
    candidates = []
    for slot, members in enumerate(np.array_split(by_class, min(count, len(by_class)))):
        for index in members[:CANDIDATES]:
            frame = np.asarray(frames[index])
            png = write_png(enlarged(frame) if slot % 2 else frame)
            candidates.append(Candidate(slot, png, decode_frame(png, f"golden/{slot}.png")))
    return candidates


def enlarged(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame three times as large and a little wider, its last column repeated: no whole-number factor back."""
    large = frame.repeat(ENLARGE, axis=0).repeat(ENLARGE, axis=1)
    return np.pad(large, ((0, 0), (0, PAD), (0, 0)), mode="edge")


def same_everywhere(deployment: Deployment, got: Mapping[str, Mapping[str, Outputs]]) -> NDArray[np.bool_]:
    """(n,) whether each candidate has the same answer in every runtime; all true where none has.

    A frame without one cannot ship, so it has no say in how far another device may be off.
    """
    same, steady = TASKS[deployment.task].same, None
    for outputs in got.values():
        want = deployment.decode(outputs[REFERENCE])
        for arrays in outputs.values():
            alike = np.array([same(a, b) for a, b in zip(want, deployment.decode(arrays), strict=True)])
            steady = alike if steady is None else steady & alike
    assert steady is not None  # there is a model
    return steady if steady.any() else np.ones_like(steady)


def _some(outputs: Mapping[str, Outputs], picked: NDArray[np.bool_]) -> dict[str, Outputs]:
    return {runtime: {name: array[picked] for name, array in arrays.items()} for runtime, arrays in outputs.items()}


def measure(outputs: Mapping[str, Outputs], precision: str, task: str) -> list[Tolerance]:
    """Runtime -> outputs on the same frames; the tolerance of every runtime and output against `REFERENCE`.

    They are compared as `pipeline verify` will: without what no answer depends on.
    """
    align, found = TASKS[task].align, []
    for runtime, arrays in outputs.items():
        got, want = (arrays, outputs[REFERENCE]) if align is None else align(arrays, outputs[REFERENCE])
        for name in outputs[REFERENCE]:
            atol = tolerance(got[name], want[name], precision)
            found.append(Tolerance.model_validate({"runtime": runtime, "output": name, "atol": atol}))
    return found


def tolerance(got: NDArray[Any], want: NDArray[Any], precision: str) -> float:
    """Absolute tolerance of one output: `SAFETY` times what was measured, at least the floor, rounded up."""
    measured = float(np.abs(got.astype(np.float64) - want).max(initial=0.0))
    largest = float(np.abs(want).max(initial=0.0))
    limit = max(SAFETY * measured, FLOOR[precision] * max(largest, 1e-6))
    step = 10.0 ** (math.floor(math.log10(limit)) - 1)
    # Without the 1e-9, binary fractions would round 2e-5 up to 2.1e-5.
    return float(f"{math.ceil(limit / step - 1e-9) * step:.1e}")


def choose(
    candidates: Sequence[Candidate],
    deployment: Deployment,
    got: Mapping[str, Mapping[str, Outputs]],
    tolerances: Mapping[str, Sequence[Tolerance]],
) -> list[Candidate]:
    """For each wanted frame the candidate whose answer changed least often; the first of equals.

    An answer is compared with what the other runtime gave, and with what the raw outputs give when every value is
    moved by its tolerance, up or down at random (seeded).
    """
    same = TASKS[deployment.task].same
    changed = np.zeros(len(candidates), dtype=np.int64)
    for precision, outputs in got.items():
        want = deployment.decode(outputs[REFERENCE])
        others = [arrays for runtime, arrays in outputs.items() if runtime != REFERENCE]
        for raw in (*others, *_shaken(outputs[REFERENCE], tolerances[precision])):
            changed += [not same(a, b) for a, b in zip(want, deployment.decode(raw), strict=True)]
    best: dict[int, int] = {}
    for index, candidate in enumerate(candidates):
        if candidate.slot not in best or changed[index] < changed[best[candidate.slot]]:
            best[candidate.slot] = index
    return [candidates[index] for index in best.values()]


def _shaken(raw: Outputs, tolerances: Sequence[Tolerance]) -> list[Outputs]:
    rng = np.random.default_rng(0)
    widest = {name: max(row.atol for row in tolerances if row.output == name) for name in raw}
    return [
        {
            name: array + (rng.choice((-1.0, 1.0), array.shape) * widest[name]).astype(array.dtype)
            for name, array in raw.items()
        }
        for _ in range(SHAKES)
    ]


def _batch(candidates: Sequence[Candidate], data: DataResult) -> NDArray[np.uint8]:
    return to_batch([fit(candidate.frame, data.size_wh, data.resize)[0] for candidate in candidates])


def _every_runtime(deployment: Deployment, precision: str, batch: NDArray[np.uint8]) -> dict[str, Outputs]:
    got = {runtime: _infer(runtime, deployment.models[precision], batch) for runtime in RUNTIMES}
    for runtime, arrays in got.items():
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise Error(f"the {precision} model's output {name} is not finite in {runtime}, on real frames")
    return got


def _infer(runtime: str, model: bytes, batch: NDArray[np.uint8]) -> Outputs:
    session = open_runtime(runtime, model)
    try:
        return session.infer({"frames": batch})
    finally:
        session.close()
