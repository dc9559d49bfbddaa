"""An IP camera on loopback for tests: MJPEG over HTTP, 30 frames per second, that can be frozen, broken and restarted.

Each frame carries the monotonic clock in ms as 40 black or white blocks of 16x16 pixels along its top edge, so that a
test in the same machine reads the true age of a frame from its pixels, whatever the program under test claims.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

BITS, BLOCK = 40, 16


def stamp(ms: int, size_wh: tuple[int, int] = (640, 480)) -> Any:
    """A grey BGR frame that carries `ms`."""
    frame = np.full((size_wh[1], size_wh[0], 3), 128, dtype=np.uint8)
    for bit in range(BITS):
        frame[0:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 if ms >> bit & 1 else 0
    return frame


def read_stamp(frame: Any) -> int:
    """The number a stamped frame carries, after lossy coding."""
    middle = slice(BLOCK // 4, 3 * BLOCK // 4)
    bits = [frame[middle, bit * BLOCK + BLOCK // 4 : bit * BLOCK + 3 * BLOCK // 4].mean() > 127 for bit in range(BITS)]
    return sum(int(bit) << at for at, bit in enumerate(bits))


class FakeCamera:
    """`run`, `stall` (connected but silent), `close` (hangs up at once), `garbage` (every frame cut or random)."""

    def __init__(self, fps: float = 30.0, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.mode = "run"
        self.fps = fps
        self.picture: Callable[[], Any] = lambda: stamp(time.monotonic_ns() // 1_000_000)
        self.frames_sent = 0
        self.seen: list[tuple[str, str]] = []
        """Path and Authorization of each request."""
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://user:secret@127.0.0.1:{self._port}/stream.mjpg"

    @property
    def snapshot_url(self) -> str:
        """One picture per request."""
        return self.url.replace("stream.mjpg", "snapshot.jpg")

    def start(self) -> None:
        """Listen; again on the same port after `kill`."""
        camera = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True  # the end of a frame must not wait for an acknowledgement (40 ms)

            def do_GET(self) -> None:
                camera.seen.append((self.path, self.headers.get("Authorization", "")))
                (camera._snapshot if self.path.startswith("/snapshot") else camera._stream)(self)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._alive = threading.Event()
        self._alive.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        if self.tls:
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def kill(self) -> None:
        """Hang up on everybody and stop listening."""
        self._alive.clear()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _snapshot(self, handler: BaseHTTPRequestHandler) -> None:
        """One picture; `stall` answers late, `close` with 404, `garbage` with no picture."""
        if self.mode == "stall":
            time.sleep(2)
        handler.send_response(404 if self.mode == "close" else 200)
        handler.end_headers()
        handler.wfile.write(b"hello" if self.mode == "garbage" else self._jpeg(np.random.default_rng(0)))

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        alive = self._alive
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        random = np.random.default_rng(3)
        due = time.monotonic()
        try:
            while alive.is_set() and self.mode != "close":
                if self.mode != "stall":
                    jpeg = self._jpeg(random)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    handler.wfile.write(head.encode() + jpeg + b"\r\n")
                    self.frames_sent += 1
                due = max(due + 1 / self.fps, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))
        except OSError:
            return  # the viewer has gone

    def _jpeg(self, random: np.random.Generator) -> bytes:
        ok, data = cv2.imencode(".jpg", self.picture())
        assert ok
        jpeg = bytes(data.tobytes())
        if self.mode != "garbage":
            return jpeg
        return jpeg[: len(jpeg) // 2] if random.random() < 0.5 else random.bytes(2000)
