"""What a variant is run on: the bundle's real frames, or pictures or random inputs made to fit a plain model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from edge_demo.runtime import TensorSpec

Feeds = dict[str, NDArray[Any]]

RANDOM_SAMPLES = 4
SPATIAL = 224  # the usual side of classification networks, where the file does not say
CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Samples:
    """`at(i)` gives the feeds of one inference at batch size 1, any i (modulo `count`)."""

    count: int
    at: Callable[[int], Feeds]
    notes: list[str]
    """What had to be assumed, in sentences."""
    guessed: dict[str, str] = field(default_factory=dict)
    """Input whose shape was assumed -> how, in words."""


def frame_samples(name: str, file: Path) -> Samples:
    """Frames of an npy file, uint8 NHWC BGR, one at a time under the input's name."""
    frames = np.load(file, mmap_mode="r", allow_pickle=False)

    def at(index: int) -> Feeds:
        return {name: frames[index % len(frames)][np.newaxis].copy()}

    return Samples(len(frames), at, [])


def random_samples(specs: Sequence[TensorSpec], seed: int, given: Sequence[str] = ()) -> Samples:
    """Seeded random inputs, the same for every runtime that reports the same inputs in the same order.

    `given` are shapes as typed (see `asked_shapes`); an input without one gets `fixed_shape`.
    """
    shapes: list[tuple[int, ...]] = []
    guessed: dict[str, str] = {}
    asked = asked_shapes(specs, given)
    for spec in specs:
        shape, note = (asked[spec.name], "") if spec.name in asked else fixed_shape(spec)
        shapes.append(shape)
        guessed |= {spec.name: note} if note else {}
    samples = [
        {
            spec.name: random_array(spec, shape, np.random.default_rng((seed, index, port)))
            for port, (spec, shape) in enumerate(zip(specs, shapes, strict=True))
        }
        for index in range(RANDOM_SAMPLES)
    ]
    return Samples(RANDOM_SAMPLES, lambda index: samples[index % RANDOM_SAMPLES], list(guessed.values()), guessed)


def picture_samples(specs: Sequence[TensorSpec], file: Path, seed: int, given: Sequence[str] = ()) -> Samples:
    """As `random_samples`, but every input that looks like one gets the RGB pictures of an npy file, uint8 NHWC.

    A model's file does not say what its maker subtracts and divides by: floats get 0..1, uint8 gets 0..255.

    Raises:
        InputError: no input looks like a picture.
    """
    pictures, rest = np.load(file, mmap_mode="r", allow_pickle=False), random_samples(specs, seed, given)
    filled = {spec.name: spec.dtype for spec in specs if _channels(spec, rest.at(0)[spec.name].shape)}
    if not filled:
        raise InputError("--images: no input of the model looks like a picture", "leave it off: random inputs are used")

    def at(index: int) -> Feeds:
        feeds = rest.at(index)
        picture = pictures[index % len(pictures)]
        return {name: _as_input(picture, feed) if name in filled else feed for name, feed in feeds.items()}

    ranges = ", ".join(f"{name} {'0..1' if dtype.kind == 'f' else '0..255'}" for name, dtype in filled.items())
    notes = [f"run on {len(pictures)} pictures, RGB, {ranges}: the scaling its maker used is not known", *rest.notes]
    return Samples(len(pictures), at, notes, rest.guessed)


def _channels(spec: TensorSpec, shape: Sequence[int]) -> int:
    """The axis of the channels of a picture input, 0 for another input."""
    if len(shape) != 4 or not (spec.dtype.kind == "f" or spec.dtype == np.uint8):
        return 0
    return next((axis for axis in (1, 3) if shape[axis] in (1, CHANNELS)), 0)


def _as_input(picture: NDArray[np.uint8], feed: NDArray[Any]) -> NDArray[Any]:
    """The picture in the shape and dtype of an input, once for every item of its batch."""
    first = feed.shape[1] in (1, CHANNELS)
    height, width, channels = (*feed.shape[2:], feed.shape[1]) if first else feed.shape[1:]
    pixels = shrink(picture, height, width)
    pixels = pixels.mean(axis=2, keepdims=True) if channels == 1 else pixels
    pixels = pixels / np.float32(255.0) if feed.dtype.kind == "f" else np.rint(pixels)
    return np.ascontiguousarray(
        np.broadcast_to(pixels.transpose(2, 0, 1) if first else pixels, feed.shape).astype(feed.dtype)
    )


def shrink(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """uint8 (H, W, C) -> float32 (height, width, C) in 0..255: the mean of what falls into each pixel, at least one."""
    sums: NDArray[np.float32] = picture.astype(np.float32)
    for axis, size in enumerate((height, width)):
        starts = np.arange(size) * picture.shape[axis] // size
        counts = np.maximum(1, np.diff(starts, append=picture.shape[axis]))
        sums = np.add.reduceat(sums, starts, axis=axis) / np.expand_dims(counts, tuple({0, 1, 2} - {axis}))
    return sums.astype(np.float32)


def asked_shapes(specs: Sequence[TensorSpec], given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`NAME=1x3x8x8`, or `1x3x8x8` for a model with one input, as shapes by input name.

    Raises:
        InputError: it does not parse, names no input, or does not fit what the model declares.
    """
    declared = {spec.name: spec.shape for spec in specs}
    shapes: dict[str, tuple[int, ...]] = {}
    for text in given:
        name, separator, numbers = text.rpartition("=")
        if not separator and len(specs) > 1:
            raise InputError(
                f"--shape {text}: the model has {len(specs)} inputs", f"name one of: {', '.join(declared)}"
            )
        name = name if separator else specs[0].name
        if name not in declared:
            raise InputError(f"--shape {text}: no input {name!r}", f"the model takes: {', '.join(declared)}")
        if not all(part.isdecimal() and int(part) > 0 for part in numbers.split("x")):
            raise InputError(f"--shape {text}: {numbers!r} is no shape", "type e.g. --shape images=1x3x224x224")
        shape = tuple(int(part) for part in numbers.split("x"))
        want = declared[name]
        if len(shape) != len(want) or any(size not in (-1, got) for size, got in zip(want, shape, strict=True)):
            takes = "x".join("?" if size == -1 else str(size) for size in want)
            raise InputError(f"--shape {text}: input {name} takes {takes}", "only its ? can be chosen")
        shapes[name] = shape
    return shapes


def fixed_shape(spec: TensorSpec) -> tuple[tuple[int, ...], str]:
    """A shape without unknown dimensions, and a sentence when more than the batch had to be assumed.

    The first unknown dimension becomes 1 (one frame at a time). In a picture (4 dimensions) unknown sides become 224
    and unknown channels 3; elsewhere an unknown dimension becomes 1.
    """
    shape = list(spec.shape)
    if shape and shape[0] == -1:
        shape[0] = 1
    if -1 not in shape:
        return tuple(shape), ""
    if len(shape) == 4:
        channel_axis = 3 if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else 1
        fill = [CHANNELS if axis == channel_axis else SPATIAL for axis in range(4)]
        shape = [fill[axis] if size == -1 else size for axis, size in enumerate(shape)]
    else:
        shape = [1 if size == -1 else size for size in shape]
    given = "x".join("?" if size == -1 else str(size) for size in spec.shape)
    return tuple(shape), f"input {spec.name} has shape {given}; measured at {'x'.join(map(str, shape))}"


def random_array(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    """uint8 and int8 over their range, other integers 0 or 1 (they are often indices), floats uniform in [0, 1).

    Raises:
        InputError: a dtype there are no random values for.
    """
    kind = spec.dtype
    if kind.itemsize == 1 and kind.kind in "ui":
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max, shape, kind, endpoint=True)
    if kind.kind in "iub":
        return rng.integers(0, 2, shape).astype(kind)
    if kind.kind == "f":
        return rng.random(shape).astype(kind)
    raise InputError(f"input {spec.name} has dtype {kind}", "only numeric inputs can be benchmarked")
