"""What a source of frames is: the Protocol, one captured frame, time limits, and names without credentials."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from edge_demo.image import Frame, load_cv2


@dataclass(frozen=True, slots=True)
class Captured:
    """One frame as the source delivered it.

    `frame` BGR uint8 HWC; `t_mono_ns` monotonic clock when the camera or decoder had it; `capture_ms` time spent
    getting it (not waiting for it); `item` file name of an image; `truth` what it shows, where the source knows;
    `behind_ms` how much older it is than the freshest frame so far, where the stream's own clock tells.
    """

    frame: Frame
    t_mono_ns: int
    capture_ms: float
    item: str | None = None
    truth: str | None = None
    behind_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one connection, in ms; they work only as parameters of the open call."""

    open_ms: int = 5000
    read_ms: int = 2000


USUAL = Timeouts()


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


def basic_login(netloc: str) -> dict[str, str]:
    """The Authorization header for `USER:PASSWORD@HOST`; nothing without a user. Source: RFC 7617."""
    account = netloc.rpartition("@")[0]
    if not account:
        return {}
    user, _, password = account.partition(":")
    return {"Authorization": "Basic " + b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()}


def video_library() -> Any:
    """cv2, quiet: a source that does not open is reported once, by us, and not by three libraries.

    Raises:
        InputError: OpenCV is not installed.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    cv2 = load_cv2()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
