"""The web view on loopback: who is let in, what is shown, what may be changed, and viewers that are stuck."""

from __future__ import annotations

import http.client
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_demo.app import DemoOptions, DemoSummary, Parts, run_demo
from edge_demo.capture import Timing
from edge_demo.errors import InputError
from edge_demo.live import why_unhealthy
from edge_demo.sources import Timeouts
from edge_demo.tasks import TASKS
from edge_demo.web import PAGE
from edge_demo.web_access import (
    Access,
    is_loopback,
    meant_for_us,
    parse_access,
    parse_address,
    same_origin,
    security_headers,
    token_matches,
)

TOKEN = "a-token-of-enough-letters"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A demo with a web view in a thread of its own."""

    def __init__(self, parts: Parts, options: DemoOptions) -> None:
        self.said: list[str] = []
        self.stop = threading.Event()
        self.summary: DemoSummary | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(replace(parts, say=self.said.append), options))
        self._thread.start()
        self.port = self._find_port()

    def _run(self, parts: Parts, options: DemoOptions) -> None:
        try:
            self.summary = run_demo(options, stop=self.stop, parts=parts)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def _find_port(self) -> int:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self._thread.is_alive():
            for sentence in list(self.said):
                if found := re.match(r"web view: http://[^/]*:(\d+)/", sentence):
                    return int(found[1])
            time.sleep(0.01)
        raise AssertionError(f"no web view: {self.said} {self.error}")

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def control(self, **change: Any) -> Answer:
        return self.ask("/control", "POST", json.dumps(change).encode(), Content_Type="application/json")

    def until(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 10) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            stats: dict[str, Any] = self.ask("/stats.json").json()
            if condition(stats):
                return stats
            time.sleep(0.02)
        raise AssertionError(f"never: {stats}")

    def open_stream(self, path: str = "/stream.mjpg") -> socket.socket:
        """A connection that asked for the stream and has read nothing yet."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(5)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
        return connection

    def close(self) -> float:
        """End the demo; returns the seconds that took."""
        start_s = time.monotonic()
        self.stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        return time.monotonic() - start_s


@pytest.fixture
def demo(fake_bundle: Any, brightness_runtime: Callable[..., Any]) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(source: str = "synthetic", **options: Any) -> Running:
        parts = Parts(
            open_bundle=lambda path: fake_bundle,
            open_runtime=lambda *given: brightness_runtime(),
            why_no_window=lambda: "there is no display",
            timeouts=Timeouts(open_ms=1000, read_ms=1000),
            timing=Timing(stale_s=0.5, backoff_s=0.05, backoff_max_s=0.2),
        )
        given = {"bundle": Path("x"), "source": source, "web": "127.0.0.1:0", **options}
        running.append(Running(parts, DemoOptions(**given)))
        return running[-1]

    yield start
    for each in running:
        each.close()


@contextmanager
def reading(stream: socket.socket) -> Iterator[list[bytes]]:
    """The complete JPEG parts that arrive, read by a thread."""
    parts: list[bytes] = []

    def read() -> None:
        held = b""
        while True:
            try:
                data = stream.recv(65536)
            except OSError:
                return
            if not data:
                return
            held += data
            while found := re.search(rb"Content-Length: (\d+)\r\n\r\n", held):
                end = found.end() + int(found[1])
                if len(held) < end:
                    break
                parts.append(held[found.end() : end])
                held = held[end:]

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    yield parts
    stream.close()
    thread.join(5)


def decoded(jpeg: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


class TestAccess:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("127.0.0.1:8080", ("127.0.0.1", 8080)),
            ("[::1]:1", ("::1", 1)),
            ("0.0.0.0:65535", ("0.0.0.0", 65535)),
            ("my-device.local:80", ("my-device.local", 80)),
        ],
    )
    def test_addresses(self, text: str, expected: tuple[str, int]) -> None:
        assert parse_address(text) == expected

    @pytest.mark.parametrize(
        "text", ["", "8080", "127.0.0.1", "127.0.0.1:65536", "http://a:1", "a:b", "::1:80", "a :1"]
    )
    def test_what_is_no_address_is_refused(self, text: str) -> None:
        with pytest.raises(InputError, match=r"not HOST:PORT; type: --web 127\.0\.0\.1:8080"):
            parse_access(text, None)

    def test_only_other_machines_need_a_token(self, tmp_path: Path) -> None:
        for local in ("127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"):
            assert parse_access(local, None).token is None
        first, second = (parse_access("0.0.0.0:1", None).token for _ in range(2))
        assert first
        assert len(first) >= 32
        assert first != second
        file = tmp_path / "token"
        file.write_text(f"{TOKEN}\n")
        assert parse_access("127.0.0.1:1", file).token == TOKEN

    @pytest.mark.parametrize("text", ["", "short", "two words of token text", "naïve-token-naïve-token", "a;b" * 9])
    def test_a_bad_token_file_is_refused(self, text: str, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="needs one token of 16 or more"):
            parse_access("0.0.0.0:1", file)
        with pytest.raises(InputError, match="cannot be read"):
            parse_access("0.0.0.0:1", tmp_path / "absent")

    def test_host_names(self) -> None:
        local = parse_access("127.0.0.1:8080", None)
        for own in ("127.0.0.1:8080", "localhost", "LOCALHOST:9", "[::1]:8080"):
            assert meant_for_us(local, own), own
        for foreign in ("", "evil.example:8080", "192.168.1.5:8080", "localhost.evil.example", "[", "127.0.0.1@evil:1"):
            assert not meant_for_us(local, foreign), foreign
        shared = parse_access("0.0.0.0:8080", None)
        for own in ("192.168.1.5:8080", "localhost:8080", f"{socket.gethostname()}:8080"):
            assert meant_for_us(shared, own), own
        assert not meant_for_us(shared, "rebound.example:8080")

    def test_origins(self) -> None:
        assert same_origin("127.0.0.1:8080", None)
        assert same_origin("127.0.0.1:8080", "http://127.0.0.1:8080")
        for foreign in ("http://evil.example", "null", "http://127.0.0.1:8081", "http://127.0.0.1", ""):
            assert not same_origin("127.0.0.1:8080", foreign), foreign

    @given(st.text(max_size=40))
    def test_only_the_token_matches(self, text: str) -> None:
        access = Access("0.0.0.0", 1, TOKEN, frozenset())
        assert token_matches(access, text) == (text == TOKEN)
        assert not token_matches(access, None)

    def test_loopback(self) -> None:
        assert is_loopback("LocalHost")
        assert not is_loopback("localhost.example")
        assert not is_loopback("0.0.0.0")


class TestHealth:
    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({}, ""),
            ({"state": "STALE", "reason": "no frame for 3.0 s"}, "source STALE: no frame for 3.0 s"),
            ({"state": None}, "source CONNECTING"),
            ({"paused": True}, "paused"),
            ({"silent_s": None}, "no frame processed yet"),
            ({"silent_s": 2.5}, "no fresh frame processed for 2.5 s"),
            ({"silent_s": 2.5, "interval_s": 1.0}, ""),
        ],
    )
    def test_reasons(self, changed: dict[str, Any], expected: str) -> None:
        good = {"state": "LIVE", "reason": "", "paused": False, "silent_s": 0.1, "interval_s": 0.03, "stale_s": 2.0}
        assert why_unhealthy(**{**good, **changed}) == expected  # type: ignore[arg-type]


class TestPage:
    def test_it_stands_alone_and_is_safe(self) -> None:
        page = PAGE.read_text(encoding="utf-8")
        assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!/snapshot\.jpg|data:)""", page)
        assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # the only one is a name, not an address
        assert "innerHTML" not in page
        assert not re.findall(r"\son\w+=", page)
        assert " style=" not in page
        policy = security_headers(page)["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy

    def test_every_answer_carries_the_headers(self, demo: Callable[..., Running]) -> None:
        running = demo()
        for path in ("/", "/stats.json", "/nothing", "/healthz", "/metrics"):
            headers = running.ask(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert headers["content-security-policy"].startswith("default-src 'none'")
            assert "server" not in headers
        assert running.ask("/").headers["content-type"].startswith("text/html")


class TestShown:
    def test_stats_agree_with_what_the_demo_does(self, demo: Callable[..., Running]) -> None:
        running = demo()
        stats = running.until(lambda stats: stats["processed"] > 20)
        assert stats["schema"] == "edge-live/1"
        assert (stats["model"], stats["task"], stats["precision"]) == ("digits 0.1.0", "classify", "int8")
        assert stats["state"] == "LIVE"
        assert stats["unhealthy"] == ""
        assert stats["params"] == {}  # classify has nothing to adjust
        assert stats["recording"] is None
        assert 0 <= stats["last_frame_s"] < 1
        assert stats["processed"] + stats["dropped"] <= stats["captured"]
        assert set(stats["stage_p50_ms"]) == {"capture", "pre", "infer", "post"}
        running.close()
        assert running.summary
        assert running.summary.stats.processed >= stats["processed"]

    def test_a_snapshot_without_overlay_is_the_captured_frame(
        self, demo: Callable[..., Running], camera: Any, camera_module: ModuleType
    ) -> None:
        running = demo(camera.url)
        running.until(lambda stats: stats["processed"] > 3)
        bare = decoded(running.ask("/snapshot.jpg?overlay=0").body)
        truth = camera_module.stamp(camera_module.read_stamp(bare))
        assert bare.shape == truth.shape
        assert np.abs(bare.astype(int) - truth).mean() < 1.5
        assert np.abs(decoded(running.ask("/snapshot.jpg").body).astype(int) - truth).max() > 60

    def test_overlay_shows_and_hides_the_drawing_of_the_same_frame(self, demo: Callable[..., Running]) -> None:
        running = demo()
        running.until(lambda stats: stats["processed"] > 3)
        running.control(paused=True)
        time.sleep(0.3)
        shown, bare = running.ask("/snapshot.jpg"), running.ask("/snapshot.jpg?overlay=0")
        assert shown.headers["x-frame-id"] == bare.headers["x-frame-id"]
        assert shown.headers["content-type"] == "image/jpeg"
        drawn = np.abs(decoded(shown.body).astype(int) - decoded(bare.body)).max(axis=2)
        assert drawn[120, 200:440].mean() > 40  # the upper edge of the region of interest: half the short side
        assert drawn[300:, :150].mean() < 3
        running.control(overlay=False)
        hidden = running.ask("/snapshot.jpg")
        assert np.abs(decoded(hidden.body).astype(int) - decoded(bare.body)).max() == 0
        assert running.ask("/snapshot.jpg?overlay=2").status == 400

    def test_the_stream_shows_the_newest_frame(
        self, demo: Callable[..., Running], camera: Any, camera_module: ModuleType
    ) -> None:
        running = demo(camera.url)
        running.control(overlay=False)
        with reading(running.open_stream()) as parts:
            ages = []
            deadline = time.monotonic() + 5
            while len(ages) < 20 and time.monotonic() < deadline:
                if len(parts) > len(ages):
                    now_ms = time.monotonic_ns() // 1_000_000
                    ages.append(now_ms - camera_module.read_stamp(decoded(parts[-1])))
                time.sleep(0.005)
        assert len(ages) == 20
        assert min(ages) >= 0
        assert np.median(ages) < 500

    def test_a_slow_viewer_is_asked_for_fewer_pictures(self, demo: Callable[..., Running]) -> None:
        running = demo()
        with (
            reading(running.open_stream("/stream.mjpg?fps=5")) as few,
            reading(running.open_stream("/stream.mjpg")) as many,
        ):
            time.sleep(2)
        assert 3 <= len(few) <= 12
        assert len(many) > 1.5 * len(few)
        for wrong in ("0", "-1", "x", "nan", "inf"):
            assert running.ask(f"/stream.mjpg?fps={wrong}").status == 400

    def test_events_tell_the_last_lines_and_go_on(self, demo: Callable[..., Running]) -> None:
        running = demo()
        running.until(lambda stats: stats["processed"] > 10)
        stream = running.open_stream("/events")
        text = b""
        deadline = time.monotonic() + 5
        while text.count(b"\ndata: ") < 30 and time.monotonic() < deadline:
            text += stream.recv(65536)
        stream.close()
        lines = [json.loads(line[6:]) for line in text.decode().split("\n")[:-1] if line.startswith("data: {")][:-1]
        numbers = [line["seq"] for line in lines]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert {line["schema"] for line in lines} == {"edge-event/1"}

    def test_health_follows_a_stalled_camera(self, demo: Callable[..., Running], camera: Any) -> None:
        running = demo(camera.url)
        running.until(lambda stats: stats["unhealthy"] == "")
        assert running.ask("/healthz").status == 200
        camera.mode = "stall"
        sick = running.until(lambda stats: stats["unhealthy"] != "")
        assert sick["state"] in ("STALE", "LOST", "BACKOFF", "CONNECTING", "LIVE")
        answer = running.ask("/healthz")
        assert answer.status == 503
        assert answer.body.decode().strip()
        camera.mode = "run"
        running.until(lambda stats: stats["unhealthy"] == "")
        assert running.ask("/healthz").body == b"ok\n"

    def test_credentials_are_never_shown(self, demo: Callable[..., Running], camera: Any) -> None:
        running = demo(camera.url)
        running.until(lambda stats: stats["processed"] > 3)
        everything = b"".join(running.ask(path).body for path in ("/", "/stats.json", "/metrics"))
        assert b"secret" not in everything
        assert "secret" not in "".join(running.said)


class TestControl:
    def test_pause_stops_the_results_and_resume_goes_on_with_the_newest(self, demo: Callable[..., Running]) -> None:
        running = demo()
        running.until(lambda stats: stats["processed"] > 3)
        assert running.control(paused=True).json()["paused"] is True
        time.sleep(0.2)
        before = running.ask("/stats.json").json()
        assert running.ask("/healthz").body == b"paused\n"
        time.sleep(0.5)
        after = running.ask("/stats.json").json()
        assert after["processed"] == before["processed"]
        assert after["captured"] > before["captured"]
        running.control(paused=False)
        resumed = running.until(lambda stats: stats["processed"] > before["processed"])
        assert resumed["last_frame_s"] < 0.5

    def test_a_threshold_can_be_moved_while_it_runs(
        self, demo: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(TASKS, "classify", replace(TASKS["classify"], adjustable=("roi",)))
        running = demo()
        assert running.until(lambda stats: stats["processed"] > 3)["params"] == {"roi": 0.5}
        assert running.control(params={"roi": 0.25}).json()["params"] == {"roi": 0.25}
        running.control(paused=True)
        time.sleep(0.3)
        shown, bare = running.ask("/snapshot.jpg"), running.ask("/snapshot.jpg?overlay=0")
        drawn = np.abs(decoded(shown.body).astype(int) - decoded(bare.body)).max(axis=2)
        assert drawn[180, 260:380].mean() > 40  # the region is now a quarter of the short side
        for wrong in ({"roi": 0.0}, {"roi": 2}, {"roi": "x"}, {"other": 0.5}, {"roi": None}):
            assert running.control(params=wrong).status == 400
        assert running.ask("/stats.json").json()["params"] == {"roi": 0.25}

    def test_a_class_is_taught_counted_and_forgotten(
        self, tiny_bundle: Path, tmp_path: Path, demo: Callable[..., Running]
    ) -> None:
        assert demo().ask("/stats.json").json()["taught"] is None
        options = {"bundle": tiny_bundle, "source": "synthetic", "show": "none", "threads": 1, "web": "127.0.0.1:0"}
        running = Running(Parts(), DemoOptions(**options, teach=tmp_path / "taught.npz"))
        try:
            running.until(lambda stats: stats["processed"] > 0)
            name = "eine Tasse \u2615"
            for number in (1, 2):
                before = running.ask("/stats.json").json()["processed"]
                assert running.control(teach=name).status == 200
                stats = running.until(lambda stats, before=before: stats["processed"] > before + 1)
                assert stats["taught"]["examples"] == {name: number}
            assert stats["taught"]["own_accuracy"] is not None
            assert stats["taught"]["old_n"] == len(json.loads((tiny_bundle / "eval" / "truth.json").read_text()))
            refused = running.control(teach=" ")
            assert refused.status == 400
            assert "not a usable name" in refused.json()["error"]
            assert running.control(forget=name).json()["taught"]["examples"] == {}
        finally:
            running.close()

    @pytest.mark.parametrize(
        "change",
        [{"source": "file:///etc/passwd"}, {"paused": "yes"}, {"recording": True}, {"params": {"roi": 0.1}}, [1], None],
    )
    def test_anything_else_is_refused_and_changes_nothing(self, demo: Callable[..., Running], change: Any) -> None:
        running = demo()
        headers = {"Content_Type": "application/json"}
        answer = running.ask("/control", "POST", json.dumps(change).encode(), **headers)
        assert answer.status == 400
        assert answer.json()["error"]
        stats = running.ask("/stats.json").json()
        assert (stats["paused"], stats["overlay"], stats["source"]) == (False, True, "synthetic")

    def test_the_shape_of_a_request(self, demo: Callable[..., Running]) -> None:
        running = demo()
        good = b'{"overlay": false}'
        assert running.ask("/control", "POST", good, Content_Type="text/plain").status == 415
        assert running.ask("/control", "POST", good).status == 415
        huge = b'{"overlay": false' + b" " * 100_000 + b"}"
        assert running.ask("/control", "POST", huge, Content_Type="application/json").status == 413
        assert running.ask("/control", "POST", b"{", Content_Type="application/json").status == 400
        assert running.ask("/control").status == 405
        for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"):
            answer = running.ask("/", method)
            assert answer.status == 405
            assert answer.headers["allow"] == "GET, POST"
        assert running.ask("/stats.json").json()["overlay"] is True
        assert running.ask("/" + "a" * 20_000).status in (400, 404, 414)

    def test_foreign_pages_and_names_are_refused(self, demo: Callable[..., Running]) -> None:
        running = demo()
        assert running.ask("/stats.json", Host="evil.example").status == 421
        body, kind = b'{"overlay": false}', "application/json"
        for origin in ("http://evil.example", "null"):
            answer = running.ask("/control", "POST", body, Content_Type=kind, Origin=origin)
            assert answer.status == 403
        own = f"http://127.0.0.1:{running.port}"
        assert running.ask("/control", "POST", body, Content_Type=kind, Origin=own).status == 200


class TestToken:
    @pytest.fixture
    def running(self, demo: Callable[..., Running], tmp_path: Path) -> Running:
        file = tmp_path / "token"
        file.write_text(TOKEN)
        return demo(web_token_file=file)

    def test_nothing_is_shown_without_it(self, running: Running) -> None:
        for path in ("/", "/stats.json", "/stream.mjpg", "/snapshot.jpg", "/events", "/metrics", "/healthz", "/x"):
            assert running.ask(path).status == 401, path
            assert running.ask(path, Authorization="Bearer wrong-token-wrong").status == 401, path
        assert running.ask(f"/stats.json?token={TOKEN}").status == 401  # addresses end up in logs
        assert running.ask("/stats.json", Authorization=f"Basic {TOKEN}").status == 401

    def test_the_address_with_the_token_opens_the_page(self, running: Running) -> None:
        assert f"?token={TOKEN}" in next(line for line in running.said if line.startswith("web view"))
        assert running.ask("/?token=wrong").status == 401
        welcome = running.ask(f"/?token={TOKEN}")
        assert (welcome.status, welcome.headers["location"]) == (303, "/")
        cookie = welcome.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert running.ask("/", Cookie=cookie.split(";")[0]).status == 200
        assert running.ask("/stats.json", Authorization=f"Bearer {TOKEN}").status == 200


class TestServer:
    def test_a_port_in_use_is_said_at_the_start(self, demo: Callable[..., Running]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(AssertionError) as caught:
                demo(web=f"127.0.0.1:{port}")
        assert f"127.0.0.1:{port}: the port is in use" in str(caught.value)

    def test_a_missing_library_is_said_with_what_to_type(
        self, demo: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        with pytest.raises(AssertionError, match=r"--web needs uvicorn.*pip install 'train-to-edge\[headless\]'"):
            demo()

    def test_an_address_of_another_machine_is_refused(self, demo: Callable[..., Running]) -> None:
        with pytest.raises(AssertionError, match="cannot listen there"):
            demo(web="192.0.2.1:8080")

    def test_stuck_viewers_do_not_slow_the_demo_and_the_seventh_is_refused(self, demo: Callable[..., Running]) -> None:
        running = demo()
        running.until(lambda stats: stats["processed"] > 10)

        def rate(seconds: float) -> float:
            first, start_s = running.ask("/stats.json").json()["processed"], time.monotonic()
            time.sleep(seconds)
            return (running.ask("/stats.json").json()["processed"] - first) / (time.monotonic() - start_s)

        alone = rate(1.5)
        stuck = [running.open_stream() for _ in range(2)]
        with ExitStack() as stack:
            seen = [stack.enter_context(reading(running.open_stream())) for _ in range(4)]
            running.until(lambda stats: stats["viewers"] == 6)
            assert running.ask("/stream.mjpg").status == 503
            # Another job on this machine may take a moment away; a demo that is held up is slow each time.
            assert any(rate(1.2) >= 0.9 * alone for _ in range(3))
            assert min(len(pictures) for pictures in seen) > 10
        # The stuck ones take nothing for five seconds and lose their places.
        stats = running.until(lambda stats: stats["viewers"] == 0, timeout_s=15)
        assert stats["viewers"] == 0
        for connection in stuck:
            connection.close()

    def test_open_streams_do_not_hold_up_the_end(self, demo: Callable[..., Running]) -> None:
        running = demo()
        streams = [running.open_stream() for _ in range(2)] + [running.open_stream("/events")]
        running.until(lambda stats: stats["viewers"] == 2)
        assert running.close() < 6
        assert running.error is None
        for stream in streams:
            stream.close()
