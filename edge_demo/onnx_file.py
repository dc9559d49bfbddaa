"""What an ONNX file says about itself, read without the onnx package: interface, opset, metadata, external data.

Only the protobuf fields named below are looked at; weights are skipped, never parsed.
Source: onnx/onnx.proto (IR version 10); protobuf encoding guide, "Message Structure".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

# Numbers of TensorProto.DataType -> numpy dtype names.
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
EXTERNAL = 1  # TensorProto.DataLocation
MAX_DEPTH = 64  # nested graphs in a hostile file must not exhaust the stack


@dataclass(frozen=True, slots=True)
class Value:
    """A graph input or output: name, numpy dtype name, shape with -1 for a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """The outside of a model."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    opset: int
    """Version of the default operator set; 0 when none is imported."""
    metadata: dict[str, str]
    external: tuple[str, ...]
    """Files outside this one that weights are read from."""


def inspect(model: bytes | mmap) -> OnnxFile:
    """Read the outside of an ONNX model.

    Raises:
        ValueError: the bytes are not an ONNX model with a graph.
    """
    graph: memoryview | None = None
    opset, metadata, external = 0, {}, []
    for number, value in _fields(memoryview(model)):
        if number == 7:
            graph = _message(value)
        elif number == 8:
            domain, version = _opset(_message(value))
            opset = version if domain in ("", "ai.onnx") else opset
        elif number == 14:
            key, text = _entry(_message(value))
            metadata[key] = text
        elif number == 25:
            external += _external_in_nodes(_message(value), field=7, depth=0)
    if graph is None:
        raise ValueError("no graph in it")
    inputs, outputs, initializers = _interface(graph)
    external += _external_in_graph(graph, 0)
    # Up to IR version 3 every weight is listed as an input, too.
    inputs = tuple(value for value in inputs if value.name not in initializers)
    return OnnxFile(inputs, outputs, opset, metadata, tuple(dict.fromkeys(external)))


def weight_dtypes(model: bytes | mmap) -> dict[str, int]:
    """Maps numpy dtype name -> how many initializers have it; weights in Constant nodes are not counted.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    count: dict[str, int] = {}
    for number, graph in _fields(memoryview(model)):
        tensors = [value for field, value in _fields(_message(graph)) if field == 5] if number == 7 else []
        for tensor in tensors:
            for field, code in _fields(_message(tensor)):
                if field == 2:
                    name = DTYPES.get(_signed(code), "other")
                    count[name] = count.get(name, 0) + 1
    return count


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one message: (number, value); fixed-size values are skipped."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif kind == BYTES:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("cut off, or not protobuf")
            yield number, data[at : at + length]
            at += length
        elif kind in (FIXED32, FIXED64):
            at += 4 if kind == FIXED32 else 8
        else:
            raise ValueError("not protobuf")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("cut off, or not protobuf")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("not an ONNX model")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode("utf-8")  # UnicodeDecodeError is a ValueError


def _signed(value: int | memoryview) -> int:
    """An int64 field: negative numbers are stored as their two's complement."""
    if not isinstance(value, int):
        raise ValueError("not an ONNX model")
    return value - (1 << 64) if value >= 1 << 63 else value


def _opset(message: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in _fields(message):
        if number == 1:
            domain = _text(value)
        elif number == 2:
            version = _signed(value)
    return domain, version


def _entry(message: memoryview) -> tuple[str, str]:
    """A StringStringEntryProto."""
    pair = {number: _text(value) for number, value in _fields(message) if number in (1, 2)}
    return pair.get(1, ""), pair.get(2, "")


def _interface(graph: memoryview) -> tuple[tuple[Value, ...], tuple[Value, ...], set[str]]:
    """Inputs, outputs and names of the initializers of a GraphProto."""
    inputs, outputs, initializers = [], [], set()
    for number, value in _fields(graph):
        if number == 11:
            inputs.append(_value(_message(value)))
        elif number == 12:
            outputs.append(_value(_message(value)))
        elif number == 5:
            initializers |= {_text(name) for field, name in _fields(_message(value)) if field == 8}
    return tuple(inputs), tuple(outputs), initializers


def _value(message: memoryview) -> Value:
    """A ValueInfoProto of a tensor type."""
    name, dtype = "", ""
    shape: list[int] = []
    for number, value in _fields(message):
        if number == 1:
            name = _text(value)
        elif number == 2:
            tensor = [inner for field, inner in _fields(_message(value)) if field == 1]
            for field, inner in _fields(_message(tensor[0])) if tensor else ():
                if field == 1:
                    dtype = DTYPES.get(_signed(inner), f"onnx type {inner!r}")
                elif field == 2:
                    shape = [_dimension(_message(dim)) for key, dim in _fields(_message(inner)) if key == 1]
    return Value(name, dtype, tuple(shape))


def _dimension(message: memoryview) -> int:
    sizes = [_signed(value) for number, value in _fields(message) if number == 1]
    return sizes[0] if sizes else -1


def _external_in_graph(graph: memoryview, depth: int) -> list[str]:
    if depth > MAX_DEPTH:
        raise ValueError("graphs nested too deeply")
    found = _external_in_nodes(graph, field=1, depth=depth)
    for number, value in _fields(graph):
        if number == 5:
            found += _external_in_tensor(_message(value))
        elif number == 15:
            found += _external_in_sparse(_message(value))
    return found


def _external_in_nodes(message: memoryview, field: int, depth: int) -> list[str]:
    """Weights inside node attributes (Constant) and nested graphs (If, Loop, Scan)."""
    attributes = [
        _message(attribute)
        for number, node in _fields(message)
        if number == field
        for key, attribute in _fields(_message(node))
        if key == 5
    ]
    found: list[str] = []
    for attribute in attributes:
        for number, value in _fields(attribute):
            if number in (5, 10):
                found += _external_in_tensor(_message(value))
            elif number in (6, 11):
                found += _external_in_graph(_message(value), depth + 1)
            elif number in (22, 23):
                found += _external_in_sparse(_message(value))
    return found


def _external_in_sparse(message: memoryview) -> list[str]:
    return [
        name for number, value in _fields(message) if number in (1, 2) for name in _external_in_tensor(_message(value))
    ]


def _external_in_tensor(message: memoryview) -> list[str]:
    outside, location = False, ""
    for number, value in _fields(message):
        if number == 14:
            outside = value == EXTERNAL
        elif number == 13:
            outside = True
            key, text = _entry(_message(value))
            location = text if key == "location" else location
    return [location or "an unnamed file"] if outside else []
