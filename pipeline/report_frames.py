"""Test frames in the report: as pictures inside of the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import Error, missing_extra
from stages.arrays import load_frames
from stages.spec import DataResult

JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class FrameShown:
    """A test frame beside its truth and its answer, as a data URI; `quality` is what the answer is worth, 0 to 1."""

    uri: str
    size_wh: tuple[int, int]
    quality: float
    labels: str
    """What it shows, by the truth."""


def test_frames(data: DataResult, quality: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Every test frame, uint8 (N, H, W, C).

    Raises:
        Error: `quality` (N,) is of another test split.
    """
    frames = load_frames(data, "test")
    if len(frames) != len(quality):
        raise Error(f"{len(quality)} predictions for {len(frames)} test frames", "run evaluate again")
    return frames


def jpeg_uri(bgr: NDArray[np.uint8]) -> str:
    """A `data:` URI; JPEG, because photographs as PNG would make a page of many megabytes."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("the report", "Pillow", "train") from error
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1])).save(file, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
