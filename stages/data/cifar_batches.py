"""CIFAR-10's two batch formats: records of fixed length, and pickled dictionaries, read without trusting the pickle.

Source: A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version" and "Python version". A record is
one byte of class id and 3,072 of pixels; a pickled batch holds `data`, uint8 (N, 3072), and `labels`, N integers. The
pixels are 1,024 red, 1,024 green, 1,024 blue values, each plane row by row.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from edge_demo.image import Frame

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
PIXELS = 3 * SIDE * SIDE
RECORD = 1 + PIXELS
REPLACE = "replace it with an undamaged copy"

Planes = NDArray[np.uint8]
"""(N, 3072): the red, the green, then the blue plane of each picture."""


def frame_of(planes: NDArray[np.uint8]) -> Frame:
    """One picture's (3072,) planes as a C-contiguous BGR (32, 32, 3) frame."""
    return np.ascontiguousarray(planes.reshape(3, SIDE, SIDE)[::-1].transpose(1, 2, 0))


def read_binary(data: bytes, name: str) -> tuple[Planes, NDArray[np.int64]]:
    """Planes and class ids (N,) of a `.bin` file; `name` is for the error message.

    Raises:
        InputError: empty, no whole number of records, or a class id out of range.
    """
    if not data:
        raise InputError(f"{name}: is empty", REPLACE)
    if len(data) % RECORD:
        raise InputError(f"{name}: {len(data)} bytes are no whole number of records of {RECORD}", REPLACE)
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    return records[:, 1:], _class_ids(records[:, 0].astype(np.int64), name)


def read_pickled(data: bytes, name: str) -> tuple[Planes, NDArray[np.int64]]:
    """Planes and class ids (N,) of a pickled batch; `name` is for the error message.

    Raises:
        InputError: refused (see `unpickle`), `data` or `labels` missing or wrong, or a class id out of range.
    """
    batch = unpickle(data, name)
    data_array, labels = batch.get("data"), batch.get("labels")
    planes = data_array.values if isinstance(data_array, _Array) else np.empty(0, np.uint8)
    if planes.shape[1:] != (PIXELS,):
        raise InputError(f"{name}: 'data' is not a uint8 array of shape (N, {PIXELS})", REPLACE)
    if not isinstance(labels, list) or not all(type(label) is int and abs(label) < 2**31 for label in labels):
        raise InputError(f"{name}: 'labels' is not a list of integers", REPLACE)
    if len(labels) != len(planes) or not labels:
        raise InputError(f"{name}: {len(planes)} pictures but {len(labels)} labels", REPLACE)
    out_of_range = [label for label in labels if not 0 <= label < len(LABELS)]
    if out_of_range:
        raise _no_class(out_of_range[0], labels.index(out_of_range[0]), name)
    return planes, np.array(labels, dtype=np.int64)


def check_names(names: list[str], name: str) -> None:
    """The class names a set brings along must be ours, in our order.

    Raises:
        InputError: they are not; the pictures would get wrong labels.
    """
    if tuple(names) != LABELS:
        raise InputError(f"{name}: classes {', '.join(names)}, expected {', '.join(LABELS)}", "is this CIFAR-10?")


def names_of_text(data: bytes) -> list[str]:
    """The class names in `batches.meta.txt`, one a line."""
    return data.decode("utf-8", "replace").split()


def names_of_pickle(data: bytes, name: str) -> list[str]:
    """The class names in the pickled `batches.meta`.

    Raises:
        InputError: refused (see `unpickle`), or without a list `label_names`.
    """
    names = unpickle(data, name).get("label_names")
    if not isinstance(names, list):
        raise InputError(f"{name}: no list 'label_names'", REPLACE)
    return [_text(entry) for entry in names]


def _class_ids(ids: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    if ids.max() >= len(LABELS):
        raise _no_class(int(ids.max()), int(ids.argmax()), name)
    return ids


def _no_class(class_id: int, item: int, name: str) -> InputError:
    return InputError(f"{name}: label {class_id} at item {item}, but there are only {len(LABELS)} classes", REPLACE)


# --- the pickle ------------------------------------------------------------------------------------------------------


def unpickle(data: bytes, name: str) -> dict[str, Any]:
    """A pickled dictionary, keys as text; nothing in the file can run code.

    A pickle names the functions that rebuild its objects. Only the few that arrays of bytes need are known here, each
    replaced by a strict one of our own; every other name is refused.
    Source: Python documentation, pickle, "Restricting Globals".

    Raises:
        InputError: another function is named, the file is damaged, or it holds no dictionary.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _RefusedError as refused:
        raise InputError(f"{name}: refused, it would call {refused}", "take the file from its authors") from None
    except Exception as error:  # noqa: BLE001  the documentation names no closed list of what a damaged pickle raises
        raise InputError(f"{name}: truncated or no pickle ({type(error).__name__})", REPLACE) from None
    if not isinstance(content, dict):
        raise InputError(f"{name}: holds a {type(content).__name__}, not a dictionary", REPLACE)
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    # Nothing else is spelt out: a value may be nested without end.
    return value if isinstance(value, str) else f"a {type(value).__name__}"


class _RefusedError(Exception):
    """The name of the function that was refused."""


# The module's version in Python, not the one in C: a few damaged bytes make the latter allocate gigabytes for its memo.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return KNOWN[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


class _Array:
    """What stands for a numpy array: its state is checked and read here, numpy's own `__setstate__` never sees it."""

    values: NDArray[np.uint8] = np.empty(0, np.uint8)

    def __init__(self, kind: Any, shape: Any, letter: Any) -> None:
        if kind is not ARRAY or shape != (0,) or letter not in (b"b", "b"):
            raise _RefusedError("numpy's _reconstruct with unusual arguments")

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, _ByteType) or not isinstance(raw, bytes):
            raise _RefusedError("an array of other values than unsigned bytes")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran_order else "C")


class _ByteType:
    """What stands for `numpy.dtype("u1")`; its state (byte order and the like) has no meaning for bytes."""

    def __init__(self, letters: Any, *_: Any) -> None:
        if letters not in (b"u1", "u1"):
            raise _RefusedError("numpy.dtype of other values than unsigned bytes")

    def __setstate__(self, state: Any) -> None: ...


class _Latin1:
    """`_codecs.encode` as Python 3 writes bytes in the old protocols; no function, whose parts a pickle may set."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in (b"latin1", "latin1"):
            raise _RefusedError("_codecs.encode to another encoding than latin1")
        return text.encode("latin1")


ARRAY = object()
"""Stands for the class `numpy.ndarray`, which would allocate any size when called."""
KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,  # written by numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # written by numpy 2
    ("numpy", "ndarray"): ARRAY,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _Latin1(),
}
