"""An RTSP camera on loopback for tests: JPEG over RTP, interleaved in the control connection (TCP only).

Sources: RFC 2326 (RTSP 1.0, section 10.12 for interleaving), RFC 3550 (RTP header), RFC 2435 (JPEG payload).
"""

from __future__ import annotations

import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2

CLOCK_HZ = 90_000
PAYLOAD = 1400
IN_BAND = 255  # Q value: quantisation tables come with the first packet of each frame


def parse_jpeg(jpeg: bytes) -> tuple[bytes, int, int, int, bytes]:
    """(quantisation tables, width, height, RFC 2435 type, entropy-coded data) of a baseline JPEG."""
    tables, width, height, kind, at = b"", 0, 0, 1, 2
    while True:
        marker, length = jpeg[at + 1], struct.unpack_from(">H", jpeg, at + 2)[0]
        body = jpeg[at + 4 : at + 2 + length]
        if marker == 0xDB:
            tables += b"".join(body[i + 1 : i + 65] for i in range(0, len(body), 65))
        elif marker == 0xC0:
            height, width = struct.unpack_from(">HH", body, 1)
            kind = {0x21: 0, 0x22: 1}[body[7]]  # 4:2:2 or 4:2:0
        elif marker == 0xDA:
            return tables, width, height, kind, jpeg[at + 2 + length : -2]
        at += 2 + length


def packetise(jpeg: bytes, sequence: int, timestamp: int) -> Iterator[bytes]:
    """The RTP packets of one frame; the last carries the marker bit."""
    tables, width, height, kind, scan = parse_jpeg(jpeg)
    offset = 0
    while offset < len(scan):
        head = struct.pack(">I", offset) + bytes([kind, IN_BAND, width // 8, height // 8])
        if offset == 0:
            head += struct.pack(">BBH", 0, 0, len(tables)) + tables
        part = scan[offset : offset + PAYLOAD - len(head)]
        offset += len(part)
        last = 0x80 if offset >= len(scan) else 0
        yield struct.pack(">BBHII", 0x80, 26 | last, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, 7) + head + part
        sequence += 1


class FakeRtsp:
    """`picture` makes a BGR frame, its sides multiples of 8; `mode` is `run` or `stall`."""

    def __init__(self, picture: Callable[[], Any], fps: float = 30.0) -> None:
        self.picture, self.fps, self.mode = picture, fps, "run"
        self.asked: list[str] = []
        self.frames_sent = 0
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"rtsp://user:secret@127.0.0.1:{self._port}/live"

    def start(self) -> None:
        """Listen; again on the same port after `kill`."""
        camera = self

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                """Quiet: a viewer that leaves is ordinary."""

        class Handler(socketserver.StreamRequestHandler):
            disable_nagle_algorithm = True  # the end of a frame must not wait for an acknowledgement (40 ms)

            def handle(self) -> None:
                camera._serve(self)

        self._alive = threading.Event()
        self._alive.set()
        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def kill(self) -> None:
        """Hang up on everybody and stop listening."""
        self._alive.clear()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: Any) -> None:
        while self._alive.is_set():
            first = handler.rfile.read(1)
            if not first:
                return
            if first == b"$":  # an interleaved RTCP packet of the viewer
                handler.rfile.read(struct.unpack(">BH", handler.rfile.read(3))[1])
                continue
            method, address = (first + handler.rfile.readline()).decode().split()[:2]
            headers = {}
            while line := handler.rfile.readline().decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            self.asked.append(method)
            self._answer(handler, method, address, headers)

    def _answer(self, handler: Any, method: str, address: str, headers: dict[str, str]) -> None:
        status, more, body = "200 OK", "", ""
        if method == "OPTIONS":
            more = "Public: DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n"
        elif method == "DESCRIBE":
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\n"
                f"m=video 0 RTP/AVP 26\r\na=control:t0\r\na=framerate:{self.fps:g}\r\n"
            )
            more = f"Content-Type: application/sdp\r\nContent-Base: {address}/\r\n"
        elif method == "SETUP" and "TCP" not in headers.get("transport", ""):
            status = "461 Unsupported Transport"
        elif method == "SETUP":
            more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq', '0')}\r\nSession: 1\r\n{more}{length}\r\n"
        handler.wfile.write((head + body).encode())
        if method == "PLAY":
            threading.Thread(target=self._pump, args=(handler, self._alive), daemon=True).start()

    def _pump(self, handler: Any, alive: threading.Event) -> None:
        sequence, due, begun = 0, time.monotonic(), time.monotonic()
        try:
            while alive.is_set():
                if self.mode == "run":
                    jpeg = cv2.imencode(".jpg", self.picture())[1].tobytes()
                    for packet in packetise(jpeg, sequence, int((time.monotonic() - begun) * CLOCK_HZ)):
                        handler.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
                        sequence += 1
                    self.frames_sent += 1
                due = max(due + 1 / self.fps, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))
            handler.connection.close()
        except (OSError, ValueError):
            return  # the viewer has gone
