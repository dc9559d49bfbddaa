"""The preprocessing once more, in plain numpy and float64: the reference for graphs and calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_demo.runtime import Array

# R, G, B -> luma. Source: ITU-R BT.601-7, section 2.5.1. Written down again, not imported: a reference shares no code.
LUMA_RGB = np.array([0.299, 0.587, 0.114])
# Relative to the largest value of the batch. float32 is exact to 6e-8; the mildest fault below moves a batch by > 1e-2.
TOLERANCE = 1e-4


Statistics = Sequence[float] | NDArray[np.float64]


def reference_batch(frames: NDArray[np.uint8], colour: str, mean: Statistics, std: Statistics) -> NDArray[np.float64]:
    """uint8 NHWC BGR frames -> normalized float64 NCHW batch with 1 (gray) or 3 (rgb) channels."""
    rgb = frames[..., ::-1].astype(np.float64) / 255.0
    channels = (rgb @ LUMA_RGB)[..., np.newaxis] if colour == "gray" else rgb
    return np.moveaxis((channels - np.asarray(mean)) / np.asarray(std), 3, 1)


def tinted(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """BGR frames with blue at a half and green at three quarters: swapped channels never show on grey pictures."""
    dimmed: NDArray[np.uint8] = (frames * np.array([0.5, 0.75, 1.0])).astype(np.uint8)
    return dimmed


def difference(got: Array, want: Array) -> float:
    """Largest absolute difference over the largest |want|; infinity for NaN or other shapes."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - want).max() / max(float(np.abs(want).max()), np.finfo(np.float32).tiny))


def fault(
    frames: NDArray[np.uint8], batch: Array, colour: str, mean: Sequence[float], std: Sequence[float]
) -> str | None:
    """What is wrong with a preprocessed batch, in words; None when it equals the reference.

    Args:
        frames: uint8 NHWC BGR, as the graph got them; colourful ones, else swapped channels cannot show.
        batch: float NCHW, as the graph (or the calibrator) made them.
        colour: `gray` or `rgb`.
        mean: Per network channel, on the 0..1 scale.
        std: Likewise.
    """
    if difference(batch, reference_batch(frames, colour, mean, std)) <= TOLERANCE:
        return None
    for name, wrong in _mistakes(colour, mean, std).items():
        if difference(batch, wrong(frames)) <= TOLERANCE:
            return name
    return "the batch is not what the input contract says (no known mistake)"


def _mistakes(
    colour: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float64]]]:
    """The usual mistakes: what each would make of the frames."""
    zeros, ones = np.zeros(len(mean)), np.ones(len(std))
    of_255 = np.asarray(mean) * 255.0, np.asarray(std) * 255.0
    return {
        "channels are swapped (RGB/BGR)": lambda f: reference_batch(f[..., ::-1], colour, mean, std),
        "mean and std are missing": lambda f: reference_batch(f, colour, zeros, ones),
        "the mean is missing": lambda f: reference_batch(f, colour, zeros, std),
        "the std is missing": lambda f: reference_batch(f, colour, mean, ones),
        "wrong scale: 0..255 normalized with statistics of 0..1": lambda f: reference_batch(
            f, colour, np.asarray(mean) / 255.0, np.asarray(std) / 255.0
        ),
        "wrong scale: 0..1 normalized with statistics of 0..255": lambda f: reference_batch(f, colour, *of_255),
        "wrong scale: raw 0..255, neither scaled nor normalized": lambda f: reference_batch(
            f, colour, zeros, ones / 255.0
        ),
        "mean and std are in the wrong channel order": lambda f: reference_batch(f, colour, mean[::-1], std[::-1]),
    }
