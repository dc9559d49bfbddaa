"""Cameras of this machine: what is asked of them, what they grant, and why one does not open."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_demo.errors import InputError

DEV, SYS = Path("/dev"), Path("/sys/class/video4linux")
FORM = "v4l2:DEVICE[,fourcc=MJPG][,size=640x480][,fps=30], DEVICE a number or /dev/videoN"
PERMISSION = "type: sudo usermod -aG video $USER, and log in again"


@dataclass(frozen=True, slots=True)
class CameraRequest:
    """What to ask a camera for. `fourcc` pixel format, `size_wh` pixels, `fps` frames per second."""

    index: int
    fourcc: str = "MJPG"
    size_wh: tuple[int, int] = (640, 480)
    fps: float = 30.0


def parse_camera(text: str) -> CameraRequest:
    """`0`, `/dev/video0` or `v4l2:0,fourcc=YUYV,size=1280x720,fps=15` in any order.

    Raises:
        InputError: not of that form; an unknown or repeated option.
    """
    device, *options = text.removeprefix("v4l2:").split(",")
    index = re.fullmatch(r"(?:/dev/video)?(\d{1,4})", device)
    if not index:
        raise InputError(f"--source {text}: no camera is named like that", f"form: {FORM}")
    given: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key in given:
            raise InputError(f"--source {text}: {key} is given twice", f"form: {FORM}")
        given[key] = _value(key, value, text)
    given = {{"size": "size_wh"}.get(key, key): value for key, value in given.items()}
    return CameraRequest(int(index[1]), **given)


def _value(key: str, value: str, text: str) -> Any:
    if key == "fourcc" and re.fullmatch(r"[A-Za-z0-9 ]{4}", value):
        return value.upper()
    if key == "size" and (size := re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", value)):
        return int(size[1]), int(size[2])
    if key == "fps" and re.fullmatch(r"\d{1,3}(\.\d+)?", value) and float(value) > 0:
        return float(value)
    raise InputError(f"--source {text}: {key}={value} is not understood", f"form: {FORM}")


def configure(cv2: Any, capture: Any, asked: CameraRequest) -> str:
    """Ask an open capture for format, size and rate, in the one order that works; returns what was granted.

    V4L2 resets the device on every set: the format has to come first, or 720p is stuck at 10 FPS of raw YUYV.
    Source: https://github.com/opencv/opencv/issues/9084
    """
    width, height = asked.size_wh
    capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*asked.fourcc))
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
    capture.set(cv2.CAP_PROP_FPS, asked.fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return granted(cv2, capture, asked)


def granted(cv2: Any, capture: Any, asked: CameraRequest) -> str:
    """What the driver says it does, and what of it is not what was asked."""
    size = tuple(int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    fourcc = "".join(chr(code >> shift & 0xFF) for shift in (0, 8, 16, 24)).strip("\0 ")
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    parts = [f"{size[0]}x{size[1]}", fourcc if fourcc.isprintable() and code else "", f"{fps:g} FPS" if fps > 0 else ""]
    wanted = []
    if size != asked.size_wh:
        wanted.append(f"{asked.size_wh[0]}x{asked.size_wh[1]}")
    if fourcc != asked.fourcc.strip():
        wanted.append(asked.fourcc)
    if fps > 0 and abs(fps - asked.fps) > 0.01 * asked.fps:
        wanted.append(f"{asked.fps:g} FPS")
    told = ", ".join(part for part in parts if part)
    return f"{told} (asked for {', '.join(wanted)})" if wanted else told


def why_closed(index: int, dev: Path = DEV) -> tuple[str, str]:
    """Why camera `index` does not open, and what to type next."""
    others = ", ".join(path.name.removeprefix("video") for path in nodes(dev))
    if not sys.platform.startswith("linux"):
        return "", "is it plugged in and may this program use it? or try --source synthetic"
    node = dev / f"video{index}"
    if not node.exists():
        known = f"there are: {others}" if others else "there is no camera at all"
        return f"there is no {node}", f"{known}; or try --source synthetic"
    if not os.access(node, os.R_OK | os.W_OK):
        return f"no permission for {node}", f"{PERMISSION}; or try --source synthetic"
    return "busy, or not a camera", f"see who uses it: fuser {node}; or try --source synthetic"


def nodes(dev: Path = DEV) -> list[Path]:
    """The video device files, by number."""
    found = [path for path in dev.glob("video*") if re.fullmatch(r"video\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("video")))


def list_cameras(
    open_camera: Callable[[CameraRequest], str], *, dev: Path = DEV, sysfs: Path = SYS
) -> list[tuple[str, str, str]]:
    """(number, name, what it grants or why it does not open) of every video device; opens and closes each.

    Args:
        open_camera: Opens one with default wishes, lets it go and returns what was granted; InputError when it fails.
        dev: Folder of the device files.
        sysfs: Folder with the drivers' names for them.
    """
    rows = []
    for node in nodes(dev):
        number = node.name.removeprefix("video")
        name_file = sysfs / node.name / "name"
        name = name_file.read_text(encoding="utf-8").strip() if name_file.is_file() else "unknown"
        try:
            rows.append((number, name, open_camera(CameraRequest(int(number)))))
        except InputError as error:
            rows.append((number, name, error.message.partition(": ")[2]))
    return rows
