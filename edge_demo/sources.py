"""Where frames come from: a camera, a stream, a video file, images, or drawn digits. One Protocol, a row per kind."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from edge_demo.errors import InputError
from edge_demo.image import Frame, load_cv2, read_frame

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})
VIDEO_SUFFIXES = frozenset({".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts", ".mpg", ".mpeg", ".mjpeg"})
SCHEMES = frozenset({"http", "https", "rtsp", "rtsps"})
REMEDY = "give a file, a folder, a camera number, an http or rtsp URL, or synthetic"
IMAGE_PACE_S = 1.0  # how long one image of a folder stays in the window
# Without these FFmpeg holds back about a second of an RTSP stream (measured 983 ms, then 76 ms with them). Setting the
# string drops OpenCV's own default, so the transport has to be repeated.
STREAM_OPTIONS = {
    "rtsp": "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay",
    "http": "fflags;nobuffer|flags;low_delay",
}
OPTIONS_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_environment = threading.Lock()  # the variable is read at each open and belongs to the whole process


@dataclass(frozen=True, slots=True)
class Captured:
    """One frame as the source delivered it.

    `frame` BGR uint8 HWC; `t_mono_ns` monotonic clock when the camera or decoder had it; `capture_ms` time spent
    getting it (not waiting for it); `item` file name of an image; `truth` what it shows, where the source knows.
    """

    frame: Frame
    t_mono_ns: int
    capture_ms: float
    item: str | None = None
    truth: str | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one connection, in ms; they work only as parameters of the open call."""

    open_ms: int = 5000
    read_ms: int = 2000


class Source(Protocol):
    """Opened, read and closed by one thread only: releasing a capture while another thread reads it crashes."""

    name: str
    """For people and events, without credentials."""
    kind: str
    """`camera`, `stream`, `video`, `images` or `synthetic`."""
    live: bool
    """Frames arrive by themselves: the newest wins and a lost source is opened again."""
    pace_s: float | None
    """Seconds per frame when it is played for a viewer; known once open; None: as fast as it can be read."""

    def open(self) -> str:
        """Connect; returns what was granted (size, rate). InputError when it does not open."""
        ...

    def read(self) -> Captured | None:
        """The next frame; None when the source ended or was lost."""
        ...

    def close(self) -> None:
        """Let go; harmless when not open."""
        ...


def redact(text: str) -> str:
    """The URL without user, password and the values of query keys that name a secret; other text unchanged."""
    if "://" not in text:
        return text
    parts = urlsplit(text)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"***@{host}" if "@" in parts.netloc else host
    query = re.sub(
        r"((?:^|&)[^=&]*(?:pass|pwd|token|key|secret|auth|user)[^=&]*)=[^&]*", r"\1=***", parts.query, flags=re.I
    )
    return urlunsplit((parts.scheme, netloc, parts.path, query, ""))


def video_library() -> Any:
    """cv2, quiet: a source that does not open is reported once, by us, and not by three libraries.

    Raises:
        InputError: OpenCV is not installed.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    cv2 = load_cv2()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def open_source(text: str, timeouts: Timeouts = Timeouts()) -> Source:
    """The source that `text` names: a camera index or /dev/videoN, a URL, a folder, an image or a video file.

    Nothing is opened yet, but what can be wrong with the name is refused here.

    Raises:
        InputError: no such file, an empty folder, or a scheme that is not one of http, https, rtsp, rtsps.
    """
    if not text:
        raise InputError("--source is empty", REMEDY)
    if re.fullmatch(r"[0-9]{1,4}", text):
        return VideoSource(int(text), "camera", f"camera {text}", timeouts)
    if device := re.fullmatch(r"/dev/video(\d+)", text):
        return VideoSource(int(device[1]), "camera", f"camera {device[1]}", timeouts)
    if "://" in text:
        return _url(text, timeouts)
    path = Path(text)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(f"{text}: no such source", REMEDY)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImagesSource(text, [path])
    return VideoSource(str(path), "video", text, timeouts)


def _url(text: str, timeouts: Timeouts) -> Source:
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise InputError(f"--source: not a URL ({error})", REMEDY) from error
    if parts.scheme.lower() not in SCHEMES or not parts.netloc:
        raise InputError(f"{redact(text)}: not a URL the demo opens", f"known: {', '.join(sorted(SCHEMES))}://host/...")
    kind = (
        "video" if Path(parts.path).suffix.lower() in VIDEO_SUFFIXES and parts.scheme.startswith("http") else "stream"
    )
    return VideoSource(text, kind, redact(text), timeouts)


def _folder(folder: Path) -> Source:
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})", "check its permissions") from error
    files = sorted(
        (path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()),
        key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)],
    )
    if not files:
        raise InputError(f"{folder}: no images in this folder", f"known: {', '.join(sorted(IMAGE_SUFFIXES))}")
    return ImagesSource(str(folder), files)


class ImagesSource:
    """Image files in natural order of their names (2 before 10), each once."""

    kind = "images"
    live = False
    pace_s: float | None = IMAGE_PACE_S

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self.name = name
        self._files = files
        self._next = 0

    def open(self) -> str:
        """Nothing to connect."""
        self._next = 0
        return f"{len(self._files)} image{'s' if len(self._files) > 1 else ''}"

    def read(self) -> Captured | None:
        """The next image; InputError naming the file when it cannot be read."""
        if self._next >= len(self._files):
            return None
        path = self._files[self._next]
        self._next += 1
        start = time.monotonic_ns()
        frame = read_frame(path)
        now = time.monotonic_ns()
        return Captured(frame, now, (now - start) / 1e6, item=path.name)

    def close(self) -> None:
        """Nothing to let go."""


class VideoSource:
    """A camera, a network stream or a video file through OpenCV.

    Args:
        target: Camera index, URL or file name.
        kind: `camera`, `stream` or `video`.
        name: For people, without credentials.
        timeouts: Limits for open and read; FFmpeg sources only (a blocked read would otherwise take 30 s).
    """

    def __init__(self, target: int | str, kind: str, name: str, timeouts: Timeouts) -> None:
        self.kind = kind
        self.name = name
        self.live = kind != "video"
        self.pace_s: float | None = None
        self._target = target
        self._timeouts = timeouts
        self._capture: Any = None
        self._announced = 0
        self._read = 0

    def open(self) -> str:
        """Open and read back what was granted; InputError when it does not open."""
        cv2 = video_library()
        self.close()
        self._capture = _open_camera(cv2, self._target) if isinstance(self._target, int) else self._open_ffmpeg(cv2)
        if not self._capture.isOpened():
            self.close()
            raise InputError(f"{self.name}: does not open", _remedy(self.kind))
        width, height = (int(self._capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self._read = 0
        if self.live:
            # A stream's announced rate is made up (25 for any MJPEG over HTTP), a camera's is what the driver granted.
            return f"{width}x{height}" + (f", {fps:g} FPS" if self.kind == "camera" and fps > 0 else "")
        self._announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.pace_s = 1 / fps if 1 <= fps <= 240 else None
        return f"{width}x{height}, {fps:g} FPS"

    def read(self) -> Captured | None:
        """The next frame, stamped when the decoder had it (a V4L2 camera: when the kernel had it)."""
        cv2 = video_library()
        start = time.monotonic_ns()
        if not self._capture.grab():
            self._refuse_empty()
            return None
        now = time.monotonic_ns()
        ok, frame = self._capture.retrieve()
        if not ok or frame is None or frame.size == 0:
            self._refuse_empty()
            return None
        self._read += 1
        begin = now if self.live else start  # waiting for a camera is no work; decoding a file is
        capture_ms = (time.monotonic_ns() - begin) / 1e6
        if self.kind == "camera":
            now = capture_time_ns(self._capture.get(cv2.CAP_PROP_POS_MSEC), now)
        return Captured(frame, now, capture_ms)

    def close(self) -> None:
        """Release the capture."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _refuse_empty(self) -> None:
        if self.kind == "video" and self._read == 0:
            raise InputError(f"{self.name}: opens as a video but holds no readable frame", _remedy(self.kind))

    def shortfall(self) -> str:
        """A sentence when a file gave fewer frames than it announces, else empty."""
        if self._announced > self._read:
            return f"{self._read} frames read, {self._announced} announced by the file"
        return ""

    def _open_ffmpeg(self, cv2: Any) -> Any:
        target = str(self._target)
        params = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, self._timeouts.open_ms]
        params += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, self._timeouts.read_ms]
        if self.kind == "video":
            return cv2.VideoCapture(target, cv2.CAP_FFMPEG, params)
        params += [cv2.CAP_PROP_N_THREADS, 1]  # frame-threaded decoding holds a frame back
        scheme = urlsplit(target).scheme.lower()[:4]
        with _environment:
            given = os.environ.get(OPTIONS_VARIABLE)
            if given is None:
                os.environ[OPTIONS_VARIABLE] = STREAM_OPTIONS[scheme]
            try:
                return cv2.VideoCapture(target, cv2.CAP_FFMPEG, params)
            finally:
                if given is None:
                    del os.environ[OPTIONS_VARIABLE]


def _open_camera(cv2: Any, index: int) -> Any:
    capture = cv2.VideoCapture(index, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    if capture.isOpened():
        # V4L2 resets the device on every set: the format has to come first, or 720p is stuck at 10 FPS of raw YUYV
        # (https://github.com/opencv/opencv/issues/9084).
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, 640)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, 480)
        capture.set(cv2.CAP_PROP_FPS, 30)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def capture_time_ns(pos_msec: float, now_ns: int) -> int:
    """The kernel's capture time of a V4L2 frame when it is on the monotonic clock and plausible, else `now_ns`.

    Args:
        pos_msec: CAP_PROP_POS_MSEC; V4L2 reports the buffer's time stamp there.
        now_ns: Monotonic clock when the frame was handed over.
    """
    stamp = int(pos_msec * 1e6)
    return stamp if 0 <= now_ns - stamp < 10_000_000_000 else now_ns


def _remedy(kind: str) -> str:
    return {
        "camera": "see which cameras exist: ls /dev/video* (and be in the group 'video'), or try --source synthetic",
        "stream": "check that the camera is on and the address plays in ffplay, or try --source synthetic",
        "video": "is it a whole video file? try: ffprobe FILE",
    }[kind]
