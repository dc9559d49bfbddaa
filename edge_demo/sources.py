"""Which source a text names: a camera, a stream, a video file, pictures. What can be wrong with a name is told here."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from edge_demo.cameras import parse_camera
from edge_demo.errors import InputError
from edge_demo.source import USUAL, Captured, Source, Timeouts, redact, video_library
from edge_demo.stills import IMAGE_SUFFIXES, ImagesSource, SnapshotSource, folder_source, sequence_source
from edge_demo.video import VideoSource, capture_time_ns

__all__ = [
    "Captured",
    "Source",
    "Timeouts",
    "VideoSource",
    "capture_time_ns",
    "open_source",
    "redact",
    "video_library",
]

VIDEO_SUFFIXES = frozenset({".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts", ".mpg", ".mpeg", ".mjpeg"})
SCHEMES = frozenset({"http", "https", "rtsp", "rtsps"})
REMEDY = "give a file, a folder, a camera number, an http or rtsp URL, or synthetic"


def open_source(text: str, timeouts: Timeouts = USUAL, *, verify_tls: bool = True) -> Source:
    """The source that `text` names: a camera (`0`, `/dev/video0`, `v4l2:...`), a URL, a folder, an image, a video file.

    Nothing is opened yet, but what can be wrong with the name is refused here.

    Args:
        text: As typed after --source.
        timeouts: Limits of connections.
        verify_tls: False accepts any certificate of https and rtsps.

    Raises:
        InputError: no such file, an empty folder, or a scheme that is not one of http, https, rtsp, rtsps.
    """
    if not text:
        raise InputError("--source is empty", REMEDY)
    if re.fullmatch(r"[0-9]{1,4}|/dev/video\d+|v4l2:.*", text):
        camera = parse_camera(text)
        return VideoSource(camera, "camera", f"camera {camera.index}", timeouts)
    if "://" in text:
        return _url(text, timeouts, verify_tls)
    path = Path(text)
    if path.is_dir():
        return folder_source(path)
    if "%" in path.name and not path.exists():
        return sequence_source(text)
    if not path.is_file():
        raise InputError(f"{text}: no such source", REMEDY)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImagesSource(text, [path])
    return VideoSource(str(path), "video", text, timeouts)


def _url(text: str, timeouts: Timeouts, verify_tls: bool) -> Source:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises when it is no number
    except ValueError as error:
        raise InputError(f"--source: not a URL ({error})", REMEDY) from error
    scheme, suffix = parts.scheme.lower(), Path(parts.path).suffix.lower()
    if scheme not in SCHEMES or not parts.netloc:
        raise InputError(f"{redact(text)}: not a URL the demo opens", f"known: {', '.join(sorted(SCHEMES))}://host/...")
    name = redact(text)
    if scheme.startswith("http") and suffix in IMAGE_SUFFIXES:
        return SnapshotSource(text, name, timeouts, verify_tls=verify_tls)
    kind = "video" if scheme.startswith("http") and suffix in VIDEO_SUFFIXES - {".mjpeg"} else "stream"
    return VideoSource(text, kind, name, timeouts, verify_tls=verify_tls)
