"""What the calibrator sees: training images, stratified and seeded, through the preprocessing that ships."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader

from edge_demo.errors import Error, InputError
from stages.arrays import load_frames, stratified, to_bgr
from stages.graph import Preprocess
from stages.pixels import fault, tinted
from stages.spec import DataResult, QuantizeConfig
from stages.tasks import TASKS

# Measured (reference run, two CNNs): 64 images 35 dB, 16 images 24 dB, one image 11 to 14 dB of SQNR.
FEWEST = 16
# How far a sample's normalized mean and std may be from training's. Data normalized as in training is within
# 0.1; a missing scale or std is off by a factor of two or more.
MEAN_WITHIN = 0.25
STD_WITHIN = 1.5


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration images, and what is recorded about them."""

    frames: NDArray[np.uint8]
    """uint8 NHWC BGR."""
    batch: NDArray[np.float32]
    """The same normalized, float32 NCHW."""
    facts: dict[str, Any]


class Reader(CalibrationDataReader):  # type: ignore[misc]  # the interface ONNX Runtime asks for
    """Feeds the calibrator one image at a time, once: its histogram methods refuse batches of unequal size."""

    def __init__(self, name: str, batch: NDArray[np.float32]) -> None:
        self.feeds: Iterator[dict[str, NDArray[np.float32]]] = iter(
            [{name: batch[index : index + 1]} for index in range(len(batch))]
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch, or None at the end."""
        return next(self.feeds, None)


def collect(config: QuantizeConfig, data: DataResult) -> Calibration:
    """Draw, preprocess and check the calibration images.

    Raises:
        InputError: too few images, or frames of another size than the network's.
        Error: the batch is not normalized as training saw it; the mistake is named.
    """
    strata = TASKS[data.task].strata(data, "train")
    picked = stratified(strata, config.images, config.seed)
    if len(picked) < FEWEST:
        message = f"quantize.images: {len(picked)} images are too few to calibrate (train holds {len(strata)})"
        raise InputError(message, f"use {FEWEST} at least, better 64 or more")
    frames = to_bgr(load_frames(data, "train")[picked])
    width, height = data.size_wh
    if frames.shape[1:3] != (height, width):
        message = (
            f"train.frames.npy: {frames.shape[2]} x {frames.shape[1]} pixels, the network takes {width} x {height}"
        )
        raise InputError(message, "type: pipeline data check")
    batch = preprocessed(data, frames)
    check(frames, batch, preprocessed(data, tinted(frames)), data)
    return Calibration(frames, batch, _facts(batch, strata[picked], data))


def preprocessed(data: DataResult, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 NHWC frames -> what the network sees, float32 NCHW, by the module that training used."""
    pre = Preprocess(data.colour, data.mean, data.std).eval()
    with torch.inference_mode():
        batch: NDArray[np.float32] = pre(torch.from_numpy(np.array(frames))).numpy()
    return batch


def check(
    frames: NDArray[np.uint8], batch: NDArray[np.float32], tinted_batch: NDArray[np.float32], data: DataResult
) -> None:
    """Refuse a calibration batch that is not what the network was trained on.

    A wrong scale costs up to 80 points of accuracy and shows nowhere else; swapped channels do not show in INT8
    accuracy at all, so the pixels themselves are compared.

    Raises:
        Error: naming the mistake.
    """
    for seen, made in ((frames, batch), (tinted(frames), tinted_batch)):
        mistake = fault(seen, made, data.colour, data.mean, data.std)
        if mistake is not None:
            raise Error(f"calibration: {mistake}", "calibrate through stages.graph.Preprocess")
    mean, std = batch.mean(axis=(0, 2, 3)), batch.std(axis=(0, 2, 3))
    centre = centre_of(data)
    if np.abs(mean - centre).max() > MEAN_WITHIN or std.max() > STD_WITHIN or std.min() < 1 / STD_WITHIN:
        seen_as = f"mean {np.round(mean, 2).tolist()}, std {np.round(std, 2).tolist()}"
        saw = f"mean {np.round(centre, 2).tolist()}" if centre.any() else "mean 0"
        message = f"calibration: {len(batch)} images have {seen_as} after normalization; training saw {saw}, std 1"
        raise Error(message, "use more images, or run pipeline data check")


def centre_of(data: DataResult) -> NDArray[np.float64]:
    """Mean of the training frames per network channel, after normalization."""
    return np.array(data.centre or [0.0] * len(data.mean))


def _facts(batch: NDArray[np.float32], strata: NDArray[np.int64], data: DataResult) -> dict[str, Any]:
    return {
        "n": len(batch),
        "per_class": np.bincount(strata).tolist(),
        "sha256": hashlib.sha256(np.ascontiguousarray(batch).tobytes()).hexdigest(),
        "mean": [round(float(value), 6) for value in batch.mean(axis=(0, 2, 3), dtype=np.float64)],
        "std": [round(float(value), 6) for value in batch.std(axis=(0, 2, 3), dtype=np.float64)],
        "min": round(float(batch.min()), 6),
        "max": round(float(batch.max()), 6),
        "training": {"mean": centre_of(data).round(6).tolist(), "std": [1.0] * batch.shape[1]},
    }
