"""The web view: one page with the live picture, its figures and controls, and the same as plain endpoints.

`/` page, `/stream.mjpg?fps=`, `/snapshot.jpg?overlay=0`, `/stats.json`, `/events` (SSE), `/metrics` (Prometheus),
`/healthz` (200 only while fresh frames are processed), `POST /control`. What may be changed is in `live.Change`; the
source is not: a URL given by a viewer would let him read this device's files and network.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_demo.errors import InputError, missing_extra
from edge_demo.events import Event
from edge_demo.image import load_cv2
from edge_demo.live import Watched
from edge_demo.loop import Processed
from edge_demo.metrics import Metrics
from edge_demo.web_access import Access, security_headers
from edge_demo.web_frames import Pictures, encode

if TYPE_CHECKING:
    from starlette.types import Receive, Send

PAGE = Path(__file__).with_name("web_page.html")
CONNECTIONS = 64
SEND_S = 5.0  # a viewer that takes nothing for so long is cut off
SEND_BUFFER = 256 * 1024  # bytes; the system's own would hold seconds of pictures for a slow viewer
EVENTS = 100  # lines a new listener gets
SNAPSHOT_QUALITY = 92
CLOSE_S = 2
BOUNDARY = b"--frame\r\n"


class WebView:
    """The server, in its own thread. Listening starts at once, so that a port in use is known before anything runs.

    Args:
        demo: What to show.
        access: Where to listen and whom to let in.
        spawn: Starts a thread whose failure ends the demo.

    Raises:
        InputError: the address cannot be used, or a library is not installed.
    """

    def __init__(
        self, demo: Watched, access: Access, spawn: Callable[[str, Callable[[], None]], threading.Thread]
    ) -> None:
        uvicorn = _library()
        from edge_demo.web_routes import VIEWERS, application

        self._demo, self._access = demo, access
        self._most = VIEWERS
        self._socket = listen(access)
        self.port = int(self._socket.getsockname()[1])
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._closing = False
        self._lines: deque[tuple[int, str]] = deque(maxlen=EVENTS)
        self._listeners = 0
        self._metrics = Metrics(demo.live, lambda: self._pictures.viewers)
        self._pictures = Pictures(demo, lambda: self._loop, spawn)
        page = PAGE.read_text(encoding="utf-8")
        config = uvicorn.Config(
            application(self, page, access, security_headers(page)),
            http="h11",
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=CLOSE_S,
            h11_max_incomplete_event_size=16 * 1024,
        )
        self._server = uvicorn.Server(config)
        self._thread = spawn("web", self._serve)
        self._ready.wait(5.0)

    @property
    def address(self) -> str:
        """What to type into a browser; with the token where one is needed."""
        host = self._access.host
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/" + (f"?token={self._access.token}" if self._access.token else "")

    def heard(self, event: Event, line: str, processed: Processed | None) -> None:
        """Note what happened; everything else is done when somebody asks."""
        self._lines.append((event.seq, line))
        self._metrics.heard(event, processed)
        if processed is not None:
            self._pictures.offer(processed)

    def close(self) -> None:
        """Say good-bye to the viewers; bounded, whatever they do."""
        self._closing = True
        self._server.should_exit = True
        self._pictures.close()
        self._thread.join(CLOSE_S + 1.0)

    def _serve(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._ready.set()
            try:
                await self._server.serve(sockets=[self._socket])
            finally:
                self._loop = None

        with self._socket:
            asyncio.run(serve())

    # --- endpoints -----------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """`Live`, with what only the server knows."""
        return {
            **self._demo.live().model_dump(by_alias=True),
            "viewers": self._pictures.viewers,
            "viewers_max": self._most,
            "shown_fps": self._pictures.fps(),
            "shown_age_p50_ms": self._pictures.age_ms(50),
            "shown_age_p95_ms": self._pictures.age_ms(95),
        }

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """The Prometheus text and its content type."""
        return self._metrics.text(accept)

    def snapshot(self, *, overlay: bool | None) -> tuple[bytes, int] | None:
        """The newest frame as JPEG with its number: as shown, or (False) exactly as captured; None before the first."""
        processed = self._demo.newest()
        if processed is None:
            return None
        if overlay is False:
            frame = processed.item.captured.frame
        else:
            frame = self._demo.picture(processed, overlay=self._demo.controls.overlay)
        return encode(frame, SNAPSHOT_QUALITY), processed.item.frame_id

    def health(self) -> str:
        """Why it is not healthy, or empty."""
        return self._demo.live().unhealthy

    def control(self, body: bytes) -> None:
        """Apply a change; InputError when it is refused."""
        self._demo.controls.apply(body)

    def full(self, kind: str) -> bool:
        """Whether no more streams of this kind are taken."""
        return (self._pictures.viewers if kind == "stream" else self._listeners) >= self._most

    async def stream(self, fps: float | None, receive: Receive, send: Send) -> None:
        """Parts of JPEG pictures, each the newest when it is sent."""
        number = self._pictures.enter()
        try:
            async with _connected(receive) as gone:
                await _start(send, b"multipart/x-mixed-replace; boundary=frame")
                await _send(send, BOUNDARY)
                while not (gone.is_set() or self._closing):
                    begun_s = time.monotonic()
                    jpeg = await self._pictures.after(number, 0.25)
                    if jpeg is None:
                        continue
                    number = jpeg.number
                    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg.data)}\r\n\r\n".encode()
                    # The next boundary goes with the picture: browsers show a part only once they see its end.
                    await _send(send, head + jpeg.data + b"\r\n" + BOUNDARY)
                    if fps:
                        await asyncio.sleep(max(0.0, 1 / fps - (time.monotonic() - begun_s)))
                if not gone.is_set():
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            return  # a viewer that is stuck: the connection is given up
        finally:
            self._pictures.leave()

    async def events(self, receive: Receive, send: Send) -> None:
        """Server-sent events: the last lines, then each new one; a slow listener misses the oldest."""
        self._listeners += 1
        try:
            async with _connected(receive) as gone:
                await _start(send, b"text/event-stream")
                last, silent_s = -1, time.monotonic()
                while not (gone.is_set() or self._closing):
                    fresh = [(seq, line) for seq, line in list(self._lines) if seq > last]
                    if fresh:
                        last, silent_s = fresh[-1][0], time.monotonic()
                        await _send(send, "".join(f"id: {seq}\ndata: {line}\n" for seq, line in fresh).encode())
                    elif time.monotonic() - silent_s >= SEND_S:
                        silent_s = time.monotonic()
                        await _send(send, b": still here\n\n")
                    await asyncio.sleep(0.1)
                if not gone.is_set():
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            return
        finally:
            self._listeners -= 1


@asynccontextmanager
async def _connected(receive: Receive) -> AsyncIterator[asyncio.Event]:
    """An event that is set once the client has gone."""
    gone = asyncio.Event()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watcher = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _start(send: Send, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send(send: Send, data: bytes) -> None:
    async with asyncio.timeout(SEND_S):
        await send({"type": "http.response.body", "body": data, "more_body": True})


# --- the socket ------------------------------------------------------------------------------------------------------


def listen(access: Access) -> socket.socket:
    """A listening socket; InputError that says why there is none."""
    where = f"{access.host}:{access.port}"
    try:
        family, _, _, _, place = socket.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(place[:2], family=family, backlog=16)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = f"stop the other program, or type: --web {access.host}:{access.port + 1}"
            raise InputError(f"--web {where}: the port is in use", hint) from None
        raise InputError(f"--web {where}: cannot listen there ({error.strerror})", "try --web 127.0.0.1:8080") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # The system drops a connection whose other end takes nothing; taken over by every accepted connection.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_S * 1000))
    return listener


def _library() -> Any:
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        extra = "edge" if load_cv2().currentUIFramework() else "headless"
        raise missing_extra("--web", error.name or "a library", extra) from None
    return uvicorn
