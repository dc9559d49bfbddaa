"""Single pictures as a source: files, folders, numbered sequences, and a camera that serves one JPEG per request."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from edge_demo import tls
from edge_demo.errors import InputError
from edge_demo.image import Frame, read_frame
from edge_demo.source import Captured, Timeouts, basic_login, video_library

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})
IMAGE_PACE_S = 1.0  # how long one image of a folder stays in the window
SNAPSHOT_PACE_S = 0.2  # a camera that makes one picture per request is not made for more
SNAPSHOT_BYTES = 32_000_000


class ImagesSource:
    """Image files in the order given, each once."""

    kind = "images"
    live = False
    pace_s: float | None = IMAGE_PACE_S

    def __init__(self, name: str, files: Sequence[Path], missing: int = 0) -> None:
        self.name = name
        self._files = files
        self._missing = missing
        self._next = 0

    def open(self) -> str:
        """Nothing to connect."""
        self._next = 0
        gaps = f", {self._missing} numbers between them are missing" if self._missing else ""
        return f"{len(self._files)} image{'s' if len(self._files) > 1 else ''}{gaps}"

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


def folder_source(folder: Path) -> ImagesSource:
    """All images of a folder in natural order of their names (2 before 10).

    Raises:
        InputError: it cannot be read or has no images.
    """
    files = sorted(
        (path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()),
        key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)],
    )
    if not files:
        raise InputError(f"{folder}: no images in this folder", f"known: {', '.join(sorted(IMAGE_SUFFIXES))}")
    return ImagesSource(str(folder), files)


def sequence_source(text: str) -> ImagesSource:
    """The files that a pattern such as `frames/%04d.png` names, by number; gaps are counted and told.

    Raises:
        InputError: no such folder, more than one number in the pattern, or no file that matches.
    """
    pattern = Path(text)
    form = re.fullmatch(r"([^%]*)%(?:0(\d))?d([^%]*)", pattern.name)
    if not form or pattern.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{text}: not a pattern of numbered images", "write it like frames/%04d.png")
    digits = rf"\d{{{form[2]},}}" if form[2] else r"\d+"
    matches = re.compile(f"{re.escape(form[1])}({digits}){re.escape(form[3])}")
    numbered = {int(found[1]): path for path in _entries(pattern.parent) if (found := matches.fullmatch(path.name))}
    if not numbered:
        raise InputError(f"{text}: no file matches", f"look into {pattern.parent}")
    numbers = sorted(numbered)
    missing = numbers[-1] - numbers[0] + 1 - len(numbers)
    return ImagesSource(text, [numbered[number] for number in numbers], missing)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({error.strerror})", "check the path and its permissions"
        ) from error


class SnapshotSource:
    """A camera that answers each request with one picture; asked again and again.

    Args:
        url: http or https, with or without user and password.
        name: The URL as people may see it.
        timeouts: Limits of each request.
        verify_tls: Refuse a certificate that is not accepted.
    """

    kind = "stream"
    live = True
    pace_s: float | None = SNAPSHOT_PACE_S

    def __init__(self, url: str, name: str, timeouts: Timeouts, *, verify_tls: bool = True) -> None:
        self.name = name
        self._timeout_s = timeouts.read_ms / 1000
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        headers = {"User-Agent": "train-to-edge", "Accept": "image/*", **basic_login(parts.netloc)}
        address = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
        self._request = urllib.request.Request(address, headers=headers)
        handler = urllib.request.HTTPSHandler(context=tls.context(verify=verify_tls))
        # Nothing but these two: a redirect to file:// or ftp:// finds nobody to open it.
        self._opener = urllib.request.OpenerDirector()
        for part in (
            urllib.request.HTTPHandler(),
            handler,
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            _SameHost(),
        ):
            self._opener.add_handler(part)

    def open(self) -> str:
        """Ask for one picture."""
        frame = self._fetch()
        return f"{frame.shape[1]}x{frame.shape[0]}, one picture per request"

    def read(self) -> Captured | None:
        """One picture, stamped when it was asked for: it is not older than its arrival makes it look."""
        start = time.monotonic_ns()
        try:
            frame = self._fetch()
        except InputError:
            return None
        return Captured(frame, start, (time.monotonic_ns() - start) / 1e6)

    def close(self) -> None:
        """Each request is a connection of its own."""

    def _fetch(self) -> Frame:
        try:
            with self._opener.open(self._request, timeout=self._timeout_s) as answer:
                data = answer.read(SNAPSHOT_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise InputError(f"{self.name}: answers {error.code} {error.reason}", _login(error.code)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise InputError(f"{self.name}: does not open ({reason})", "check that the camera is on") from error
        if len(data) > SNAPSHOT_BYTES:
            raise InputError(f"{self.name}: sends more than {SNAPSHOT_BYTES // 1_000_000} MB as one picture")
        cv2 = video_library()
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if frame is None:
            raise InputError(f"{self.name}: what it sends is no picture", "look at the address in a browser")
        return np.asarray(frame, dtype=np.uint8)


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only within the camera: its password must not travel."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        """None refuses, and the answer is told as it is."""
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _login(code: int) -> str:
    return "write it as http://USER:PASSWORD@HOST/..." if code in (401, 403) else "check the path in a browser"
