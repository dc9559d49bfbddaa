"""Masks of class ids: read from palette files, drawn from polygons and run lengths, brought to network size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_demo.errors import missing_extra
from edge_demo.image import crop, load_cv2, place
from edge_demo.manifest import Resize
from stages.data.annotated import VOID, SizeWh, Unusable

Mask = NDArray[np.uint8]


def read_indices(file: Path, size_wh: SizeWh) -> Mask:
    """A mask file as uint8 (H, W) class ids.

    Read with Pillow and not OpenCV, which expands a palette to colours.

    Raises:
        InputError: Pillow is not installed.
        Unusable: no file, not a picture, a picture of colours instead of ids, or of another size than the photo's.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise missing_extra("reading masks", "Pillow", "train") from None
    if not file.is_file():
        raise Unusable("picture without a mask")
    try:
        with Image.open(file) as image:
            if image.mode not in ("P", "L"):
                raise Unusable("mask of colours instead of class ids (palette or 8 bit gray)")
            mask = np.array(image, dtype=np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError):
        raise Unusable("mask file that cannot be read") from None
    if mask.shape != (size_wh[1], size_wh[0]):
        raise Unusable("mask of another size than its picture")
    return mask


def without_unknown(mask: Mask, num_labels: int) -> tuple[Mask, int]:
    """The mask with ids that are no class made void, and how many pixels that were."""
    unknown = (mask >= num_labels) & (mask != VOID)
    count = int(unknown.sum())
    return (np.where(unknown, np.uint8(VOID), mask), count) if count else (mask, 0)


def fit_mask(mask: Mask, size_wh: SizeWh, resize: Resize) -> Mask:
    """A mask at network size, laid exactly where `edge_demo.image.fit` lays the photo.

    Args:
        mask: uint8 (H, W) class ids.
        size_wh: The network's size.
        resize: Its mode is used; between class ids there is nothing to interpolate, so each pixel is its nearest one.

    Returns:
        uint8 (size_wh[1], size_wh[0]); a letterbox border is void.
    """
    cv2 = load_cv2()
    geometry = place((mask.shape[1], mask.shape[0]), size_wh, resize.mode)
    x0, y0, x1, y1 = geometry.network_xyxy
    part = crop(mask[:, :, None], geometry.source_xyxy)[:, :, 0]
    out = np.full((size_wh[1], size_wh[0]), VOID, np.uint8)
    # NEAREST_EXACT samples at pixel centres; INTER_NEAREST rounds towards the top left.
    out[y0:y1, x0:x1] = cv2.resize(
        np.ascontiguousarray(part), (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return out


def polygon_mask(polygon_xy: ArrayLike, size_wh: SizeWh) -> NDArray[np.bool_]:
    """The pixels whose centre lies inside a closed polygon (even-odd rule), bool (H, W).

    Args:
        polygon_xy: x0, y0, x1, y1, ... in pixels, edges: the picture spans 0..width, 0..height.
        size_wh: Of the picture; parts outside are cut off.

    Raises:
        Unusable: fewer than three points, an odd number of coordinates, or one that is no number.
    """
    flat = np.asarray(polygon_xy, dtype=np.float64).reshape(-1)
    if len(flat) % 2 or not np.isfinite(flat).all():
        raise Unusable("polygon with coordinates that are no points")
    if len(flat) < 6:
        raise Unusable("polygon of fewer than three points")
    width, height = size_wh
    points = flat.reshape(-1, 2)
    ends = np.roll(points, -1, axis=0)
    low, high = _ordered(points, ends)
    # Rows whose centre y + 0.5 an edge crosses, half open so that a shared corner counts once.
    first = np.clip(np.ceil(low[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(high[:, 1] - 0.5), 0, height).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(points)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (high[edge, 0] - low[edge, 0]) / (high[edge, 1] - low[edge, 1])
    cross = low[edge, 0] + (rows + 0.5 - low[edge, 1]) * slope
    columns = np.clip(np.ceil(cross - 0.5), 0, width).astype(np.int64)
    toggles = np.zeros((height, width + 1), np.bool_)
    np.logical_xor.at(toggles, (rows, columns), True)
    return np.logical_xor.accumulate(toggles, axis=1)[:, :width]


def _ordered(points: NDArray[np.float64], ends: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both ends of each edge, the upper one (smaller y) first."""
    down = (points[:, 1] <= ends[:, 1])[:, None]
    return np.where(down, points, ends), np.where(down, ends, points)


def rle_mask(counts: str | Sequence[int], size_wh: SizeWh) -> NDArray[np.bool_]:
    """COCO's run lengths, compressed (text) or not (numbers), as bool (H, W).

    Runs go down the columns and begin with zeros. Source: COCO data format (cocodataset.org, "RLE"), and the text code
    of the COCO API: five bits a character from 48, bit 5 goes on, the sign is the last bit 4, and from the third
    on a run is stored as its difference from the one two before.

    Raises:
        Unusable: a negative run, a damaged text, or another number of pixels than the picture has.
    """
    runs = _runs(counts) if isinstance(counts, str) else list(counts)
    width, height = size_wh
    if any(run < 0 for run in runs) or sum(runs) != width * height:
        raise Unusable("RLE of another length than its picture")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _runs(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise Unusable("RLE text with a sign that is no run length")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise Unusable("RLE text that ends inside a run length")
    return runs
