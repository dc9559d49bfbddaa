"""Recording to a folder: short files that survive a crash, with true times beside them, within a share of the disk.

A recording is `edge-TIME.avi` (or `.webm`) with the drawings on it, and `edge-TIME.jsonl` with one `edge-event/1` line
per frame: a video file can hold only one constant rate, which for a live source is an approximation.
The file being written is called `edge-TIME.part.avi`; it gets its name when it is whole. After a power cut the part
file of `avi` plays up to its last frames (measured after SIGKILL: 89 of 90 frames; `webm`: none of 90, its writer
holds everything back), so `avi` is the default.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from edge_demo.channel import Channel
from edge_demo.errors import InputError
from edge_demo.events import Event
from edge_demo.image import Frame, load_cv2
from edge_demo.live import Recording
from edge_demo.loop import Processed

Format = Literal["avi", "webm"]
QUEUE = 8  # frames
HELD = 8  # frames looked at before the first file's rate is chosen
OURS = re.compile(r"edge-\d{8}T\d{9}Z(\.part)?\.(avi|webm|jsonl)")
MIN_CAP_MB = 20
FLOOR_BYTES = 200_000_000  # left free for the rest of the device
RETRY_S = 5.0
LOOK_S = 0.2
# On this writer's own scale: 41 KB and 38.3 dB for a noisy 640x480 frame, as `imencode` at 85; its default is 91 KB.
AVI_QUALITY = 30


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """Where and how much. Sizes in bytes, `segment_s` seconds per file."""

    folder: Path
    format: Format = "avi"
    cap_bytes: int = 2_000_000_000
    """All recordings in the folder together; the oldest are deleted."""
    segment_s: float = 60.0
    floor_bytes: int = FLOOR_BYTES


def free_bytes(folder: Path) -> int:
    """What is free on the disk of the folder."""
    return shutil.disk_usage(folder).free


class Recorder:
    """Records what a viewer sees, in its own thread; a disk that fails or fills up never stops the demo.

    Args:
        options: Where and how much.
        draw: Processed frame -> BGR picture of the captured frame's size.
        say: Where sentences for people go.
        lossless: Wait for the disk instead of dropping frames (files).
        fps: The source's own rate once it is known; None: measure it.
        spawn: Starts a thread whose failure ends the demo.
        stop: Ends any waiting.
        free: Bytes free for a folder.
    """

    def __init__(
        self,
        options: RecordOptions,
        draw: Callable[[Processed], Frame],
        say: Callable[[str], None],
        *,
        spawn: Callable[[str, Callable[[], None]], threading.Thread],
        stop: threading.Event,
        lossless: bool = False,
        fps: Callable[[], float | None] = lambda: None,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._options, self._draw, self._say, self._stop = options, draw, say, stop
        self._lossless, self._fps, self._free = lossless, fps, free
        self._queue: Channel[tuple[Processed, str]] = Channel(QUEUE, newest_wins=True)
        self._wanted = threading.Event()
        self._wanted.set()
        self._segment: Segment | None = None
        self._held: list[tuple[Processed, str]] = []
        self._measured_fps: float | None = None
        self._reason = ""
        self._retry_s = 0.0
        self._segments = self._frames = self._bytes = 0
        self._thread = spawn("record", self._record_all)

    def heard(self, event: Event, line: str, processed: Processed | None) -> None:
        """Queue one processed frame."""
        if processed is None or not self._wanted.is_set():
            return
        while self._lossless and len(self._queue) >= QUEUE and self._thread.is_alive() and not self._stop.is_set():
            time.sleep(0.002)
        self._queue.put((processed, line))

    def switch(self, on: bool) -> None:
        """Start a new file with the next frame, or finish the open one."""
        (self._wanted.set if on else self._wanted.clear)()

    def now(self) -> Recording:
        """What it is doing; says a failure before anything else."""
        segment = self._segment
        if not self._wanted.is_set():
            state: Literal["waiting", "recording", "stopped", "failed"] = "stopped"
        elif self._reason:
            state = "failed"
        else:
            state = "recording" if segment else "waiting"
        return Recording(
            state=state,
            reason=self._reason if state == "failed" else "",
            segments=self._segments,
            frames=self._frames,
            dropped=self._queue.dropped,
            bytes=self._bytes + (segment.bytes() if segment else 0),
        )

    def close(self, timeout_s: float) -> bool:
        """Finish the open file; False when the disk did not take it in time."""
        self._queue.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _record_all(self) -> None:
        while not self._queue.ended:
            got = self._queue.get(LOOK_S)
            try:
                if got is not None:
                    self._take(*got)
                elif not self._wanted.is_set():
                    self._finish()
            except OSError as error:
                self._fail(f"{self._options.folder}: {error.strerror or error}")
        try:
            self._write_held()
            self._finish()
        except OSError as error:
            self._fail(f"{self._options.folder}: {error.strerror or error}")

    def _take(self, processed: Processed, line: str) -> None:
        if time.monotonic() < self._retry_s:
            return
        if self._segment is None and self._rate() is None:
            self._held.append((processed, line))
            if len(self._held) < HELD:
                return
            self._measured_fps = measured_fps([held.item.captured.t_mono_ns for held, _ in self._held])
            self._write_held()
            return
        self._write(processed, line)

    def _write_held(self) -> None:
        held, self._held = self._held, []
        if held and self._rate() is None:
            self._measured_fps = measured_fps([processed.item.captured.t_mono_ns for processed, _ in held])
        for processed, line in held:
            self._write(processed, line)

    def _rate(self) -> float | None:
        return self._measured_fps or self._fps()

    def _write(self, processed: Processed, line: str) -> None:
        picture = self._draw(processed)
        height, width = picture.shape[:2]
        if self._segment is not None and self._full(self._segment, (width, height)):
            self._finish()
        if self._segment is None:
            self._segment = self._begin((width, height))
        self._segment.add(picture, line, processed.item.captured.t_mono_ns)
        self._frames += 1

    def _full(self, segment: Segment, size_wh: tuple[int, int]) -> bool:
        return (
            size_wh != segment.size_wh
            or time.monotonic() - segment.begun_s >= self._options.segment_s
            or segment.bytes() >= self._options.cap_bytes // 4
        )

    def _begin(self, size_wh: tuple[int, int]) -> Segment:
        options = self._options
        options.folder.mkdir(parents=True, exist_ok=True)
        self._bytes = make_room(options.folder, options.cap_bytes - options.cap_bytes // 4)
        free = self._free(options.folder)
        if free < options.floor_bytes:
            floor = options.floor_bytes / 1e6
            raise OSError(f"only {free / 1e6:.0f} MB free on this disk, recording keeps {floor:.0f} MB free")
        segment = Segment(options.folder, options.format, self._rate() or 30.0, size_wh)
        if self._reason:
            self._reason = ""
            self._say(f"recording again: {options.folder}")
        return segment

    def _finish(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        self._measured_fps = (None if self._fps() else segment.fps()) or self._measured_fps
        segment.close()
        self._closed()

    def _fail(self, reason: str) -> None:
        """Give up the open file, say why once, and try again later."""
        self._retry_s = time.monotonic() + RETRY_S
        segment, self._segment = self._segment, None
        if reason != self._reason:
            self._reason = reason
            self._say(f"not recording: {reason}; the demo goes on, and tries again every {RETRY_S:.0f} s")
        if segment is not None:
            try:
                segment.close()
            except OSError as error:
                self._say(f"not recording: the end of {segment.whole.name} is lost ({error.strerror or error})")
            self._closed()

    def _closed(self) -> None:
        self._segments += 1
        with suppress(OSError):  # a folder that has gone holds nothing
            self._bytes = sum(size for _, size in recordings(self._options.folder))


class Segment:
    """One open recording: the part file, and its frames' times beside it.

    Raises:
        OSError: a file cannot be written, or OpenCV has no encoder for the format.
    """

    def __init__(self, folder: Path, form: Format, fps: float, size_wh: tuple[int, int]) -> None:
        stem = datetime.now(UTC).strftime("edge-%Y%m%dT%H%M%S%f")[:-3] + "Z"
        self.part = folder / f"{stem}.part.{form}"
        self.whole = folder / f"{stem}.{form}"
        self.size_wh = size_wh
        self.begun_s = time.monotonic()
        self._times: Path = folder / f"{stem}.jsonl"
        self._first_ns = self._last_ns = 0
        self._frames = 0
        fps = max(1.0, round(fps)) if form == "avi" else fps  # OpenCV's own writer knows whole rates only
        self._lines: TextIO = self._times.open("x", encoding="utf-8", buffering=1)
        self._lines.write(json.dumps({"schema": "edge-recording/1", "video": self.whole.name, "fps": fps}) + "\n")
        try:
            self._writer = open_writer(self.part, form, fps, size_wh)
        except OSError:
            self._lines.close()
            self._times.unlink(missing_ok=True)
            raise

    def add(self, picture: Frame, line: str, t_mono_ns: int) -> None:
        """Append one BGR frame and its event line."""
        self._first_ns = self._first_ns or t_mono_ns
        self._last_ns = t_mono_ns
        self._frames += 1
        self._writer.write(picture)
        self._lines.write(line)

    def bytes(self) -> int:
        """Written so far; what the encoder still holds back is not in it."""
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0  # not begun, or just renamed by the thread that records

    def fps(self) -> float | None:
        """The true mean rate of its frames."""
        span_s = (self._last_ns - self._first_ns) / 1e9
        return round((self._frames - 1) / span_s, 2) if self._frames > 2 and span_s > 0 else None

    def close(self) -> None:
        """Finish both files and give the video its name."""
        self._writer.release()
        try:
            self._lines.close()
        finally:
            self.part.replace(self.whole)


def open_writer(path: Path, form: Format, fps: float, size_wh: tuple[int, int]) -> Any:
    """An open cv2.VideoWriter; OSError when this OpenCV cannot write the format."""
    cv2 = load_cv2()
    if form == "avi":  # OpenCV's own writer: its file plays without having been closed
        writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter.fourcc(*"MJPG"), fps, size_wh)
        writer.set(cv2.VIDEOWRITER_PROP_QUALITY, AVI_QUALITY)
    else:
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"VP80"), fps, size_wh)
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write {form} files of {size_wh[0]}x{size_wh[1]} here; try --record-format avi")
    return writer


def measured_fps(times_ns: list[int]) -> float:
    """Mean rate of frames captured at these times, within what a player accepts; 30 when it cannot be told."""
    span_s = (times_ns[-1] - times_ns[0]) / 1e9
    return min(max(round((len(times_ns) - 1) / span_s, 2), 0.5), 240.0) if len(times_ns) > 1 and span_s > 0 else 30.0


def recordings(folder: Path) -> list[tuple[Path, int]]:
    """Our files in the folder with their sizes in bytes, oldest first; anything else in there is none of ours."""
    files = (path for path in sorted(folder.iterdir()) if OURS.fullmatch(path.name) and path.is_file())
    return [(path, path.stat().st_size) for path in files]


def make_room(folder: Path, limit_bytes: int) -> int:
    """Delete our oldest recordings until the rest fits into `limit_bytes`; returns the bytes of the rest."""
    files = recordings(folder)
    total = sum(size for _, size in files)
    for path, size in files:
        if total <= limit_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total


def record_options(folder: Path, form: str, cap_mb: float) -> RecordOptions:
    """Checked options of the command line; InputError for an unknown format or a cap that holds next to nothing."""
    if form not in ("avi", "webm"):
        raise InputError(f"--record-format {form}: unknown", "known: avi, webm")
    if not cap_mb >= MIN_CAP_MB:
        raise InputError(f"--record-cap-mb {cap_mb:g}: too small to record", f"give {MIN_CAP_MB} or more")
    return RecordOptions(folder, "webm" if form == "webm" else "avi", int(cap_mb * 1e6))
