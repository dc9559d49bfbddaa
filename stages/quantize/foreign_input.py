"""What anyone's ONNX model is fed with: ready arrays from .npy and .npz files, or pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from edge_demo.image import fit, read_frame
from edge_demo.manifest import Resize
from edge_demo.runtime import TensorSpec

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
ARRAYS = {".npy", ".npz"}
CHANNELS = (1, 3)

Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Pictures:
    """How pictures become a float input; all of it must be said, because a wrong scale ruins INT8 silently."""

    mean: tuple[float, ...] = ()
    """Per channel, RGB order, on the 0..1 scale."""
    std: tuple[float, ...] = ()
    size_wh: tuple[int, int] | None = None
    """Needed where the model leaves height and width open."""


def read_feeds(folder: Path, inputs: Sequence[TensorSpec], pictures: Pictures, most: int, seed: int) -> list[Feed]:
    """Up to `most` feeds, seeded, each of the batch size the model declares (1 where it is open).

    Raises:
        InputError: no such folder, nothing in it, arrays or pictures that do not fit the model.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", "name a folder of pictures, .npy or .npz files")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES | ARRAYS and file.is_file())
    if not files:
        raise InputError(f"{folder}: no picture, .npy or .npz file in it", "calibration needs examples of the input")
    arrays = [file for file in files if file.suffix.lower() in ARRAYS]
    items = _from_arrays(arrays, inputs) if arrays else _from_pictures(files, inputs, pictures, most, seed)
    singles = list(items)
    order = np.random.default_rng(seed).permutation(len(singles))
    return list(_batched([singles[index] for index in order[: most * _declared(inputs)]], _declared(inputs)))


def facts(feeds: Sequence[Feed], name: str) -> dict[str, Any]:
    """What is recorded about the first input over all feeds."""
    values = np.concatenate([feed[name].ravel() for feed in feeds])
    digest = hashlib.sha256()
    for feed in feeds:
        for key in sorted(feed):
            digest.update(np.ascontiguousarray(feed[key]).tobytes())
    return {
        "n": len(feeds),
        "sha256": digest.hexdigest(),
        "mean": round(float(values.mean(dtype=np.float64)), 6),
        "std": round(float(values.std(dtype=np.float64)), 6),
        "min": round(float(values.min()), 6),
        "max": round(float(values.max()), 6),
    }


def _declared(inputs: Sequence[TensorSpec]) -> int:
    first = inputs[0].shape[0] if inputs[0].shape else 1
    return max(1, first)


def _batched(singles: Sequence[Feed], size: int) -> Iterator[Feed]:
    """Feeds of exactly `size` items; a rest that does not fill one is left out."""
    for start in range(0, len(singles) - size + 1, size):
        part = singles[start : start + size]
        yield {name: np.concatenate([feed[name] for feed in part]) for name in part[0]}


def _from_arrays(files: Sequence[Path], inputs: Sequence[TensorSpec]) -> Iterator[Feed]:
    for file in files:
        try:
            loaded = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{file.name}: not a NumPy array ({error})") from error
        given: dict[str, Any] = {inputs[0].name: loaded} if file.suffix.lower() == ".npy" else dict(loaded)
        if set(given) != {spec.name for spec in inputs}:
            raise InputError(
                f"{file.name}: holds {sorted(given)}, the model takes {[spec.name for spec in inputs]}",
                "save one .npz with an array per input",
            )
        yield from _singles(file.name, given, inputs)


def _singles(name: str, given: dict[str, NDArray[Any]], inputs: Sequence[TensorSpec]) -> Iterator[Feed]:
    """One feed per item along the first axis; an array without that axis is one item."""
    ready: Feed = {}
    for spec in inputs:
        array = given[spec.name]
        array = array[np.newaxis] if array.ndim == len(spec.shape) - 1 else array
        fits = array.ndim == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        if not fits or array.dtype != spec.dtype:
            takes = f"{spec.dtype} {list(spec.shape)}"
            raise InputError(f"{name}: {spec.name} is {array.dtype} {list(array.shape)}, the model takes {takes}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{name}: {spec.name} holds NaN or infinity")
        ready[spec.name] = array
    for index in range(min(len(array) for array in ready.values())):
        yield {key: np.ascontiguousarray(array[index : index + 1]) for key, array in ready.items()}


def _from_pictures(
    files: Sequence[Path], inputs: Sequence[TensorSpec], pictures: Pictures, most: int, seed: int
) -> Iterator[Feed]:
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        shapes = {spec.name: list(spec.shape) for spec in inputs}
        raise InputError(f"pictures cannot be fed into {shapes}", "save .npz files with an array per input")
    spec = inputs[0]
    channels_last = spec.shape[3] in CHANNELS and spec.shape[1] not in CHANNELS
    channels = spec.shape[3] if channels_last else spec.shape[1]
    if channels not in CHANNELS:
        raise InputError(f"input {spec.name} {list(spec.shape)}: no axis of 1 or 3 channels", "save .npy files instead")
    _check_statistics(spec, channels, pictures)
    height, width = spec.shape[1:3] if channels_last else spec.shape[2:4]
    size_wh = _size(spec, (width, height), pictures)
    picked = np.sort(np.random.default_rng(seed).permutation(len(files))[: most * _declared(inputs)])
    for index in picked:
        frame = fit(read_frame(files[index]), size_wh, Resize())[0]
        yield {spec.name: _tensor(frame, spec, channels, channels_last, pictures)}


def _check_statistics(spec: TensorSpec, channels: int, pictures: Pictures) -> None:
    if spec.dtype == np.uint8:
        if pictures.mean or pictures.std:
            raise InputError(f"--mean and --std have no effect: input {spec.name} is uint8", "leave them out")
        return
    if spec.dtype != np.float32:
        raise InputError(f"input {spec.name} is {spec.dtype}: pictures become float32 or uint8", "save .npy files")
    if len(pictures.mean) != channels or len(pictures.std) != channels or min(pictures.std, default=0.0) <= 0:
        raise InputError(
            f"input {spec.name} is float32: how its pictures were normalized is not in the file",
            f"give --mean and --std as in training, {channels} value(s) each on the 0..1 scale, or .npy files",
        )


def _size(spec: TensorSpec, declared_wh: tuple[int, int], pictures: Pictures) -> tuple[int, int]:
    if -1 not in declared_wh:
        if pictures.size_wh not in (None, declared_wh):
            raise InputError(f"--size has no effect: the model takes {declared_wh[0]}x{declared_wh[1]}", "leave it out")
        return declared_wh
    if pictures.size_wh is None:
        raise InputError(f"input {spec.name} {list(spec.shape)}: height and width are open", "give --size WxH")
    return pictures.size_wh


def _tensor(
    frame: NDArray[np.uint8], spec: TensorSpec, channels: int, channels_last: bool, pictures: Pictures
) -> NDArray[Any]:
    """(1, H, W, C) or (1, C, H, W): uint8 BGR as it is, or float32 RGB normalized; grey by ITU-R BT.601 weights."""
    if channels == 1:
        luma = frame @ np.array([0.114, 0.587, 0.299])
        pixels = luma[..., np.newaxis]
    else:
        pixels = frame if spec.dtype == np.uint8 else frame[..., ::-1]
    if spec.dtype == np.uint8:
        ready = np.rint(pixels).astype(np.uint8)
    else:
        ready = ((pixels / 255.0 - np.array(pictures.mean)) / np.array(pictures.std)).astype(np.float32)
    return np.ascontiguousarray((ready if channels_last else np.moveaxis(ready, 2, 0))[np.newaxis])
