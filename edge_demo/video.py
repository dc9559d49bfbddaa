"""Cameras, network streams and video files through OpenCV: opened with time limits, verified, closed in one thread."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from edge_demo import reach, tls
from edge_demo.cameras import CameraRequest, configure, why_closed
from edge_demo.errors import InputError
from edge_demo.source import Captured, Timeouts, video_library

# Without these FFmpeg holds back about a second of an RTSP stream (measured 983 ms, then 76 ms with them). Setting the
# string drops OpenCV's own default, so the transport has to be repeated.
STREAM_OPTIONS = {
    "rtsp": "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay",
    "http": "fflags;nobuffer|flags;low_delay",
}
OPTIONS_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
BELIEVABLE_FPS = (1.0, 240.0)  # files announce 0 or 90000 (the RTP clock) when they do not know
WHOLE_FILE = "is it a whole video file? try: ffprobe FILE"
_environment = threading.Lock()  # the variable is read at each open and belongs to the whole process


class VideoSource:
    """A camera, a network stream or a video file through OpenCV.

    OpenCV keeps the size a stream had when it was opened: after a change it stretches the picture and does not tell.

    Args:
        target: Camera request, URL or file name.
        kind: `camera`, `stream` or `video`.
        name: For people, without credentials.
        timeouts: Limits for open and read; FFmpeg sources only (a blocked read would otherwise take 30 s).
        verify_tls: Refuse an encrypted stream whose certificate is not accepted.
    """

    def __init__(
        self, target: CameraRequest | str, kind: str, name: str, timeouts: Timeouts, *, verify_tls: bool = True
    ) -> None:
        self.kind = kind
        self.name = name
        self.live = kind != "video"
        self.pace_s: float | None = None
        self._target = target
        self._timeouts = timeouts
        self._verify_tls = verify_tls
        self._capture: Any = None
        self._announced = 0
        self._read = 0
        self._backlog = Backlog()
        # Only RTSP carries the camera's clock; FFmpeg makes up 25 FPS stamps for MJPEG over HTTP.
        self._clocked = isinstance(target, str) and target.lower().startswith("rtsp")

    def open(self) -> str:
        """Open and read back what was granted; InputError when it does not open."""
        cv2 = video_library()
        self.close()
        self._read, self._backlog = 0, Backlog()
        if isinstance(self._target, CameraRequest):
            return self._open_camera(cv2, self._target)
        begun_s = time.monotonic()
        self._capture = self._open_ffmpeg(cv2, self._target)
        if not self._capture.isOpened():
            self.close()
            raise self._closed(self._target, time.monotonic() - begun_s)
        width, height = (int(self._capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if self.live:
            return f"{width}x{height}"  # a stream's announced rate is made up (25 for any MJPEG over HTTP)
        self._announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        if BELIEVABLE_FPS[0] <= fps <= BELIEVABLE_FPS[1]:
            self.pace_s = 1 / fps
            return f"{width}x{height}, {fps:g} FPS"
        self.pace_s = None
        return f"{width}x{height}, says {fps:g} FPS, which is not believed: frames come as fast as they are read"

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
        position_ms = self._capture.get(cv2.CAP_PROP_POS_MSEC) if self.kind == "camera" or self._clocked else 0.0
        if self.kind == "camera":
            now = capture_time_ns(position_ms, now)
        behind_ms = self._backlog.behind_ms(position_ms, now / 1e6) if self._clocked else None
        return Captured(frame, now, capture_ms, behind_ms=behind_ms)

    def close(self) -> None:
        """Release the capture."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _refuse_empty(self) -> None:
        if self.kind == "video" and self._read == 0:
            raise InputError(f"{self.name}: opens as a video but holds no readable frame", WHOLE_FILE)

    def shortfall(self) -> str:
        """A sentence when a file gave fewer frames than it announces, else empty."""
        if self._announced > self._read:
            return f"{self._read} frames read, {self._announced} announced by the file"
        return ""

    def _open_camera(self, cv2: Any, asked: CameraRequest) -> str:
        # Read by OpenCV before its first capture; ten seconds of a silent camera would hold up every exit.
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, self._timeouts.read_ms // 1000)))
        self._capture = cv2.VideoCapture(asked.index, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
        if not self._capture.isOpened():
            self.close()
            reason, hint = why_closed(asked.index)
            raise InputError(f"{self.name}: does not open" + (f" ({reason})" if reason else ""), hint)
        return configure(cv2, self._capture, asked)

    def _closed(self, target: str, spent_s: float) -> InputError:
        if "://" not in target:
            return InputError(f"{self.name}: does not open", WHOLE_FILE)
        reason, hint = reach.why_closed(target, self._timeouts, spent_s)
        return InputError(f"{self.name}: does not open" + (f" ({reason})" if reason else ""), hint)

    def _open_ffmpeg(self, cv2: Any, target: str) -> Any:
        params = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, self._timeouts.open_ms]
        params += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, self._timeouts.read_ms]
        if "://" not in target:
            return cv2.VideoCapture(target, cv2.CAP_FFMPEG, params)
        parts = urlsplit(target)
        encrypted = parts.scheme.lower() in tls.PORTS
        if encrypted and self._verify_tls:
            tls.check(parts, self.name, self._timeouts.open_ms / 1000)
        if self.live:
            params += [cv2.CAP_PROP_N_THREADS, 1]  # frame-threaded decoding holds a frame back
        with _environment:
            given = os.environ.get(OPTIONS_VARIABLE)
            own = STREAM_OPTIONS[parts.scheme.lower()[:4]] if self.live else ""
            verified = f"tls_verify;1|ca_file;{tls.ca_file()}" if encrypted and self._verify_tls else ""
            os.environ[OPTIONS_VARIABLE] = "|".join(filter(None, (own if given is None else given, verified)))
            try:
                return cv2.VideoCapture(target, cv2.CAP_FFMPEG, params)
            finally:
                if given is None:
                    del os.environ[OPTIONS_VARIABLE]
                else:
                    os.environ[OPTIONS_VARIABLE] = given


class Backlog:
    """How far behind a stream's reader is, from the stream's own clock and without the camera's help.

    The gap between our clock and the stream's is a constant plus the backlog, so the smallest gap seen is the constant.
    """

    def __init__(self) -> None:
        self._least_ms: float | None = None

    def behind_ms(self, position_ms: float, now_ms: float) -> float | None:
        """Backlog of the frame at `position_ms` of the stream, read at `now_ms`; None where the stream has no clock."""
        if position_ms <= 0:
            return None
        gap_ms = now_ms - position_ms
        self._least_ms = gap_ms if self._least_ms is None else min(self._least_ms, gap_ms)
        return gap_ms - self._least_ms


def capture_time_ns(pos_msec: float, now_ns: int) -> int:
    """The kernel's capture time of a V4L2 frame when it is on the monotonic clock and plausible, else `now_ns`.

    Args:
        pos_msec: CAP_PROP_POS_MSEC; V4L2 reports the buffer's time stamp there.
        now_ns: Monotonic clock when the frame was handed over.
    """
    stamp = int(pos_msec * 1e6)
    return stamp if 0 <= now_ns - stamp < 10_000_000_000 else now_ns
