"""One model file as it lies there: its digest, its size with everything it refers to, and what its weights are."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path

from edge_demo.errors import InputError
from edge_demo.onnx_file import inspect, weight_dtypes

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
    """With the files its weights are in."""
    precision: str
    """`int8` when the graph holds quantized operators, `fp16` when most float weights are float16, else `fp32`."""
    opset: int | None = None


def read_model_file(path: Path) -> ModelFile:
    """Describe an .onnx or .xml file.

    Raises:
        InputError: it cannot be read, or is no model.
    """
    digest = hashlib.sha256()
    quantized = scan(path, QUANTIZED_XML if path.suffix == ".xml" else QUANTIZED_ONNX, digest)
    opset, half, others = (None, False, _weights_of_xml(path)) if path.suffix == ".xml" else _outside(path)
    for other in others:
        scan(other, (b"",), digest)
    size = sum(file.stat().st_size for file in (path, *others))
    precision = "int8" if quantized else "fp16" if half else "fp32"
    return ModelFile(path.resolve(), path.name, digest.hexdigest(), size, precision, opset)


def scan(path: Path, needles: tuple[bytes, ...], digest: hashlib._Hash) -> bool:
    """Feed a file to `digest`; whether it holds any of the byte strings."""
    found, tail = False, b""
    overlap = max(len(needle) for needle in needles) - 1
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                window = tail + chunk
                found = found or any(needle in window for needle in needles)
                tail = window[-overlap:] if overlap > 0 else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from None
    return found


def _weights_of_xml(path: Path) -> list[Path]:
    weights = path.with_suffix(".bin")
    return [weights] if weights.is_file() else []


def _outside(path: Path) -> tuple[int, bool, list[Path]]:
    """Of an ONNX file: its opset, whether most float weights are float16, and the files its weights are in."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        about, dtypes = inspect(data), weight_dtypes(data)
    except ValueError as error:
        raise InputError(f"{path}: not an ONNX model ({error})", "name a whole .onnx file") from error
    missing = [name for name in about.external if not (path.parent / name).is_file()]
    if missing:
        raise InputError(f"{path}: its weights are in {missing[0]}, which is not beside it", "copy that file, too")
    half = dtypes.get("float16", 0) > dtypes.get("float32", 0)
    return about.opset, half, [path.parent / name for name in about.external]
