"""A network camera that does not open: what a person is told, against servers on loopback that do each thing wrong."""

from __future__ import annotations

import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator

import pytest

from edge_demo.errors import InputError
from edge_demo.source import Timeouts
from edge_demo.sources import open_source

NO_LOGIN = "user and password are needed, or are wrong); write it as "
PLAIN = "does not open; check that the camera is on"
LOGIN = b64encode(b"user:p@ss").decode()


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], int]]:
    """A server that gives every connection the same bytes and hangs up; call it for its port. Requests are kept."""
    listeners: list[socket.socket] = []
    asked: list[bytes] = []

    def serve(listener: socket.socket, answer: bytes) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    asked.append(connection.recv(4096))
                    connection.sendall(answer)
                except OSError:
                    continue

    def start(answer: bytes) -> int:
        listeners.append(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=serve, args=(listeners[-1], answer), daemon=True).start()
        return int(listeners[-1].getsockname()[1])

    start.asked = asked  # type: ignore[attr-defined]
    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def told(url: str, open_ms: int = 2000) -> str:
    """What opening it says."""
    with pytest.raises(InputError) as refused:
        open_source(url, Timeouts(open_ms=open_ms, read_ms=1000)).open()
    text = str(refused.value)
    assert "\n" not in text
    assert "p%40ss" not in text
    assert "p@ss" not in text
    return text


@pytest.mark.parametrize(
    ("scheme", "answer", "says"),
    [
        ("http", b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", "it sends text/html, which is no video"),
        ("http", b"HTTP/1.0 404 Not Found\r\n\r\n", "it answers 404 Not Found); check the path"),
        ("http", b"HTTP/1.0 401 Unauthorized\r\n\r\n", NO_LOGIN + "http:"),
        ("http", b"HTTP/1.0 200 OK\r\nContent-Type: video/mp4\r\n\r\nnothing", PLAIN),
        ("http", b"\x00\x01\x02\r\n\r\n", "it hangs up"),
        ("http", b"", "it hangs up"),
        ("rtsp", b"RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\n\r\n", NO_LOGIN + "rtsp:"),
        ("rtsp", b"RTSP/1.0 404 Stream Not Found\r\nCSeq: 1\r\n\r\n", "it answers 404 Stream Not Found"),
        ("rtsp", b"HTTP/1.0 400 Bad Request\r\n\r\n", "it speaks no RTSP); is it an http address?"),
        ("rtsp", b"", "it speaks no RTSP"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_told_as_it_is(
    scheme: str, answer: bytes, says: str, answering: Callable[[bytes], int]
) -> None:
    assert says in told(f"{scheme}://user:p%40ss@127.0.0.1:{answering(answer)}/live")
    if scheme == "http":  # asked as the decoder asks: a path, and who asks
        last = answering.asked[-1].decode()  # type: ignore[attr-defined]
        assert last.startswith("GET /live HTTP/1.1\r\n")
        assert f"Authorization: Basic {LOGIN}\r\n" in last


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for scheme in ("http", "rtsp"):
        assert f"nobody listens at port {port}" in told(f"{scheme}://user:p%40ss@127.0.0.1:{port}/live")


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_black_hole_takes_the_time_limit_and_says_so(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the system accepts, nobody answers
        url = f"{scheme}://user:p%40ss@127.0.0.1:{listener.getsockname()[1]}/live"
        assert "does not open (no stream within 0.5 s)" in told(url, open_ms=500)


def test_no_such_host() -> None:
    assert "there is no host nowhere.invalid" in told("http://user:p%40ss@nowhere.invalid/live")
