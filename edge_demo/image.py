"""Pictures in and out, and the one resize every device uses: what training sees is what the camera loop feeds.

A `frame` is uint8 (H, W, 3) BGR; the data stage also keeps gray frames as (H, W, 1). The resize rule, exactly, for a
source of w x h pixels and a network of W x H (all rounding is half up, in whole numbers, so no device's floating point
can differ):

- `stretch`: the whole source onto the whole network frame.
- `letterbox`: the whole source, aspect kept, onto the largest centred part: w' = W and h' = round(h W / w), or h' = H
  and w' = round(w H / h), at least 1; the border is `pad_value`; an odd border pixel goes to the right or the bottom.
- `crop`: the largest centred part of the source with the network's aspect: w' = w and h' = round(w H / W), or h' = h
  and w' = round(h W / H), at least 1; an odd source pixel is cut from the right or the bottom; then as `stretch`.
- `linear`: OpenCV INTER_LINEAR on both sides.
- `area`: a side that shrinks is averaged by OpenCV INTER_AREA; then a side that grows is interpolated by INTER_LINEAR
  (INTER_AREA has no meaning when enlarging: OpenCV gives nearly nearest-neighbour blocks there).
  Source: OpenCV documentation, InterpolationFlags.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_demo.errors import InputError, missing_extra
from edge_demo.manifest import Resize

Frame = NDArray[np.uint8]
Xyxy = tuple[int, int, int, int]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", 0xDA, b"\xff\xd9"


def load_cv2() -> ModuleType:
    """OpenCV, or an error that says which extra brings it."""
    try:
        import cv2
    except ImportError:
        raise missing_extra("reading pictures", "OpenCV", "headless") from None
    return cv2


# --- reading and writing ---------------------------------------------------------------------------------------------


def read_frame(path: Path) -> Frame:
    """A picture file as a BGR uint8 (H, W, 3) frame.

    Any format OpenCV reads; 16 bit is scaled to 8, gray is repeated, an alpha channel is left out, the orientation
    stored by cameras (EXIF) is applied.

    Raises:
        InputError: the file cannot be opened, is no picture, or is truncated or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from None
    return decode_frame(data, str(path))


def decode_frame(data: bytes, name: str) -> Frame:
    """The bytes of a picture file as a BGR uint8 (H, W, 3) frame; see `read_frame`. `name` is for the error message."""
    cv2 = load_cv2()
    if problem := damage(data):
        raise InputError(f"{name}: {problem}", "replace or remove the file")
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # raised for sizes beyond OpenCV's limit
        frame = None
    if frame is None:
        raise InputError(f"{name}: not a picture OpenCV can read", "replace or remove the file")
    return np.asarray(frame, dtype=np.uint8)


def damage(data: bytes) -> str:
    """What is visibly wrong with the bytes of a picture file; empty when nothing is.

    Needed because OpenCV 4 decodes truncated JPEG and PNG files to partly grey pictures without any error.
    """
    if not data:
        return "is empty"
    if data.startswith(PNG_SIGNATURE):
        return _png_damage(data)
    if data.startswith(JPEG_START):
        return "is a truncated JPEG" if _jpeg_truncated(data) else ""
    return ""


def _png_damage(data: bytes) -> str:
    """Walks the chunks: length, type, body, CRC. Source: PNG specification (W3C, third edition), section 5.3."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return "is a damaged PNG (checksum of a chunk differs)"
        if data[at + 4 : at + 8] == b"IEND":
            return ""
        at = end
    return "is a truncated PNG"


def _jpeg_truncated(data: bytes) -> bool:
    """Whether the end-of-image marker is missing after the first scan.

    The segments before the scan are skipped by their lengths: an EXIF thumbnail inside one has its own end marker.
    Inside a scan a 0xFF byte is always followed by 0x00 or a restart number, never 0xD9.
    Source: ITU-T T.81 (1992), annex B.1.
    """
    at = len(JPEG_START)
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return False  # not even a segment: left to the decoder to refuse
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == JPEG_SCAN:
            return data.find(JPEG_END, at) < 0
    return True


def write_png(frame: Frame) -> bytes:
    """A BGR (H, W, 3) or gray (H, W, 1) uint8 frame as the bytes of a PNG file; lossless."""
    cv2 = load_cv2()
    ok, data = cv2.imencode(".png", frame)
    if not ok:
        raise ValueError(f"OpenCV cannot write a frame of shape {frame.shape} as PNG")
    return bytes(data)


# --- size ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Geometry:
    """Which part of the source lies where in the network frame. Both xyxy, whole pixels, right and bottom exclusive."""

    source_xyxy: Xyxy
    network_xyxy: Xyxy

    def to_source(self, boxes_xyxy: ArrayLike) -> NDArray[np.float64]:
        """Boxes (N, 4) from network to source pixels, not clipped: a box in a letterbox border lies outside."""
        return _map_boxes(boxes_xyxy, self.network_xyxy, self.source_xyxy)

    def to_network(self, boxes_xyxy: ArrayLike) -> NDArray[np.float64]:
        """Boxes (N, 4) from source to network pixels, not clipped; the inverse of `to_source`."""
        return _map_boxes(boxes_xyxy, self.source_xyxy, self.network_xyxy)


def _map_boxes(boxes_xyxy: ArrayLike, of: Xyxy, onto: Xyxy) -> NDArray[np.float64]:
    corners: NDArray[np.float64] = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 2, 2)
    scale = _size_wh(onto) / _size_wh(of)
    mapped: NDArray[np.float64] = (corners - np.array(of[:2])) * scale + np.array(onto[:2])
    return mapped.reshape(-1, 4)


def _size_wh(xyxy: Xyxy) -> NDArray[np.float64]:
    return np.array([xyxy[2] - xyxy[0], xyxy[3] - xyxy[1]], dtype=np.float64)


def place(source_wh: tuple[int, int], size_wh: tuple[int, int], mode: str) -> Geometry:
    """Where a source of that size lands in a network frame of `size_wh`; the rule is at the top of this file."""
    whole_source, whole_network = (0, 0, *source_wh), (0, 0, *size_wh)
    match mode:
        case "stretch":
            return Geometry(whole_source, whole_network)
        case "letterbox":
            return Geometry(whole_source, _centred(source_wh, size_wh))
        case "crop":
            return Geometry(_centred(size_wh, source_wh), whole_network)
    raise ValueError(f"resize mode {mode!r}: not one of stretch, letterbox, crop")


def _centred(aspect_wh: tuple[int, int], inside_wh: tuple[int, int]) -> Xyxy:
    """The largest centred rectangle of that aspect inside a frame."""
    (a_w, a_h), (width, height) = aspect_wh, inside_wh
    if a_w * height >= width * a_h:
        w, h = width, max(1, _rounded(a_h * width, a_w))
    else:
        w, h = max(1, _rounded(a_w * height, a_h)), height
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def _rounded(numerator: int, denominator: int) -> int:
    """The quotient rounded half up, without floating point."""
    return (2 * numerator + denominator) // (2 * denominator)


def fit(frame: Frame, size_wh: tuple[int, int], resize: Resize) -> tuple[Frame, Geometry]:
    """A frame of any size at the network's size, and where its pixels went.

    Args:
        frame: uint8 (H, W, 3) BGR or (H, W, 1) gray; every channel is treated alike.
        size_wh: The network's input size in pixels.
        resize: Mode, interpolation and border; the rule is at the top of this file.

    Returns:
        C-contiguous uint8 (size_wh[1], size_wh[0], C), and the geometry that maps boxes back. A frame that already has
        the size keeps its pixels (and may share its memory).
    """
    geometry = place((frame.shape[1], frame.shape[0]), size_wh, resize.mode)
    x0, y0, x1, y1 = geometry.network_xyxy
    resized = _resize(crop(frame, geometry.source_xyxy), (x1 - x0, y1 - y0), resize.interpolation)
    if resized.shape[:2] == (size_wh[1], size_wh[0]):
        return resized, geometry
    out = np.full((size_wh[1], size_wh[0], frame.shape[2]), resize.pad_value, dtype=np.uint8)
    out[y0:y1, x0:x1] = resized
    return out, geometry


def _resize(frame: Frame, size_wh: tuple[int, int], interpolation: str) -> Frame:
    cv2 = load_cv2()
    height, width, channels = frame.shape
    steps = [(size_wh, cv2.INTER_LINEAR)]
    if interpolation == "area":
        shrunk_wh = (min(width, size_wh[0]), min(height, size_wh[1]))
        steps.insert(0, (shrunk_wh, cv2.INTER_AREA))
    for step_wh, flag in steps:
        if step_wh != (frame.shape[1], frame.shape[0]):
            frame = cv2.resize(frame, step_wh, interpolation=flag)
    # OpenCV drops the last axis of a one-channel picture.
    return np.ascontiguousarray(frame).reshape(size_wh[1], size_wh[0], channels)


def crop(frame: Frame, xyxy: Xyxy) -> Frame:
    """The part of a frame inside xyxy (whole pixels, right and bottom exclusive), as a view.

    Raises:
        ValueError: the rectangle is empty or reaches outside the frame.
    """
    x0, y0, x1, y1 = xyxy
    height, width = frame.shape[:2]
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"rectangle {xyxy} does not lie inside a frame of {width} x {height} pixels")
    return frame[y0:y1, x0:x1]


def to_batch(frames: Sequence[Frame]) -> NDArray[np.uint8]:
    """Frames of one size -> C-contiguous uint8 (N, H, W, C), what the deployed graph takes.

    Raises:
        ValueError: no frames, different shapes, or another dtype than uint8.
    """
    batch = np.stack(frames)
    if batch.dtype != np.uint8:
        raise ValueError(f"frames are {batch.dtype}, not uint8")
    return np.ascontiguousarray(batch)
