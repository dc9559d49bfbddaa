"""What is benchmarked: a bundle, a run folder with one, or a plain model file; and the variants to measure of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_demo.bundle import open_bundle
from edge_demo.errors import InputError
from stages.spec import BenchConfig

# precision of a row -> (precision of the file, precision the runtime computes float operations in)
PRECISIONS = {"fp32": ("fp32", "f32"), "bf16": ("fp32", "bf16"), "f16": ("fp32", "f16"), "int8": ("int8", "f32")}
SHORT = {"onnxruntime": "ort", "openvino": "ov"}

# NodeProto.op_type is field 4, a string: tag 0x22, length, name. Enough to see a quantized graph without the onnx
# package. Source: onnx/onnx.proto, Protocol Buffers encoding.
QUANTIZED_ONNX = (b"\x22\x0eQuantizeLinear", b"\x22\x0bQLinearConv", b"\x22\x0cQLinearMatMul")
QUANTIZED_XML = (b'type="FakeQuantize"',)
CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file to measure; `path` is where the worker reads it, `file` the name to show."""

    path: Path
    file: str
    sha256: str
    size_bytes: int
    precision: str


@dataclass(frozen=True, slots=True)
class Sample:
    """The bundle's labelled frames, at network size: `frames` is an npy file, uint8 NHWC BGR."""

    frames: Path
    truths: list[Any]
    of: int
    task: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """What a path turned out to be. `models` by precision of the file."""

    name: str
    models: dict[str, ModelFile]
    sample: Sample | None
    fp32_because: str
    """The bundle's reason when it says FP32 should be deployed, else empty."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One row: a model file on a runtime, at a precision, on so many threads."""

    id: str
    runtime: str
    precision: str
    hint: str
    """What the runtime computes float operations in."""
    threads: int
    model: ModelFile


def open_target(path: Path, scratch: Path) -> Target:
    """Find out what `path` is and make it ready for workers; files are written below `scratch`.

    Raises:
        InputError: nothing there, not something that can be measured, or a bundle that is refused.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder", "give a bundle, a run folder, an .onnx or an .xml file")
    if (path / "run.json").is_file():
        path = path / "bundle"
        if not path.is_dir():
            raise InputError(f"{path.parent}: this run has no bundle yet", f"type: pipeline bundle --run {path.parent}")
    if path.is_dir() or path.suffix == ".edge":
        return _bundle(path, scratch)
    if path.suffix in (".onnx", ".xml"):
        return _plain(path)
    raise InputError(f"{path}: not a model or bundle", "give a bundle, a run folder, an .onnx or an .xml file")


def _plain(path: Path) -> Target:
    """A model file by itself: measured on random inputs, without accuracy."""
    sha256, quantized = scan(path, QUANTIZED_XML if path.suffix == ".xml" else QUANTIZED_ONNX)
    size = path.stat().st_size
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.is_file():
        size += weights.stat().st_size
    model = ModelFile(path.resolve(), path.name, sha256, size, "int8" if quantized else "fp32")
    return Target(path.name, {model.precision: model}, None, "")


def scan(path: Path, needles: tuple[bytes, ...]) -> tuple[str, bool]:
    """sha256 of a file, and whether it holds any of the byte strings."""
    digest, found, tail = hashlib.sha256(), False, b""
    overlap = max(len(needle) for needle in needles) - 1
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                window = tail + chunk
                found = found or any(needle in window for needle in needles)
                tail = window[-overlap:]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from None
    return digest.hexdigest(), found


def _bundle(path: Path, scratch: Path) -> Target:
    """A verified bundle: its model bytes and frames are copied, so that workers see exactly what was checked."""
    bundle = open_bundle(path)
    manifest = bundle.manifest
    models: dict[str, ModelFile] = {}
    for variant in manifest.variants:
        data, copy = bundle.model_bytes(variant.precision), scratch / f"{variant.precision}.onnx"
        copy.write_bytes(data)
        models[variant.precision] = ModelFile(
            copy, Path(variant.file).name, hashlib.sha256(data).hexdigest(), len(data), variant.precision
        )
    frames, truths = bundle.eval_sample()
    np.save(scratch / "frames.npy", frames)
    sample = Sample(scratch / "frames.npy", truths, manifest.eval.of, manifest.task, bundle.params)
    return Target(manifest.name, models, sample, manifest.reason if manifest.recommended == "fp32" else "")


def plan_variants(target: Target, config: BenchConfig) -> tuple[list[Variant], list[str]]:
    """The rows to measure, and a sentence for each that was left out because it cannot exist.

    Raises:
        InputError: nothing of what was asked for exists here.
    """
    variants: list[Variant] = []
    notes: list[str] = []
    for precision in config.precisions:
        file_precision, hint = PRECISIONS[precision]
        model = target.models.get(file_precision)
        if model is None:
            notes.append(f"{precision} left out: {target.name} has only {', '.join(target.models)}")
            continue
        for runtime in config.runtimes:
            if reason := _refusal(runtime, hint, model):
                notes.append(f"{precision} on {runtime} left out: {reason}")
                continue
            variants += [
                Variant(f"{SHORT[runtime]}-{precision}-t{threads}", runtime, precision, hint, threads, model)
                for threads in config.threads
            ]
    if not variants:
        raise InputError(
            f"{target.name}: nothing to measure: {'; '.join(notes)}", "ask for another precision or runtime"
        )
    return sorted(variants, key=lambda variant: _preference(variant, config)), notes


def _refusal(runtime: str, hint: str, model: ModelFile) -> str:
    """Why a runtime cannot have such a row at all; empty when it can."""
    if runtime != "onnxruntime":
        return ""
    if model.path.suffix == ".xml":
        return "it does not read .xml files"
    return "" if hint == "f32" else f"on CPU it does not compute in {hint}"


def _preference(variant: Variant, config: BenchConfig) -> tuple[int, int, int]:
    """Order of the rows; the first that works is the baseline: FP32 first, ONNX Runtime first, threads as given."""
    return (
        list(PRECISIONS).index(variant.precision),
        list(SHORT).index(variant.runtime),
        config.threads.index(variant.threads),
    )
