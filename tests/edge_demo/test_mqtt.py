"""MQTT against a small broker on loopback that speaks what the client needs of MQTT 3.1.1, and can be stuck or killed.

Source of the packet layouts: OASIS, "MQTT Version 3.1.1", 2014, chapter 3.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_demo.app import DemoOptions, Parts, run_demo
from edge_demo.errors import InputError
from edge_demo.mqtt import parse_broker, topic_level

pytest.importorskip("paho.mqtt.client")
CONNECT, CONNACK, PUBLISH, PUBACK, PINGREQ, DISCONNECT = 1, 2, 3, 4, 12, 14


@dataclass
class Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool

    def json(self) -> Any:
        return json.loads(self.payload)


class Broker:
    """Keeps what is published; delivers the will of a client that goes without a word."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.messages: list[Message] = []
        self.users: list[tuple[str | None, str | None]] = []
        self.stuck = False
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        will: Message | None = None
        try:
            while True:
                kind, flags, body = self._packet(connection)
                if kind == CONNECT:
                    will = self._connect(body)
                    connection.sendall(bytes([CONNACK << 4, 2, 0, self.answer]))
                elif kind == PUBLISH:
                    self._publish(connection, flags, body)
                elif kind == PINGREQ:
                    connection.sendall(b"\xd0\x00")
                elif kind == DISCONNECT:
                    will = None
                    return
        except OSError:
            return
        finally:
            if will:
                self.messages.append(will)
            connection.close()

    def _packet(self, connection: socket.socket) -> tuple[int, int, bytes]:
        def read(count: int) -> bytes:
            data = b""
            while len(data) < count:
                while self.stuck:
                    time.sleep(0.01)
                more = connection.recv(count - len(data))
                if not more:
                    raise OSError("gone")
                data += more
            return data

        first = read(1)[0]
        length, shift = 0, 0
        while True:
            byte = read(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                return first >> 4, first & 15, read(length)

    def _connect(self, body: bytes) -> Message | None:
        fields, at = [], 10
        flags = body[7]
        while at < len(body):
            (size,) = struct.unpack(">H", body[at : at + 2])
            fields.append(body[at + 2 : at + 2 + size])
            at += 2 + size
        fields.pop(0)
        will = None
        if flags & 4:
            will = Message(fields.pop(0).decode(), fields.pop(0), flags >> 3 & 3, bool(flags & 32))
        user = fields.pop(0).decode() if flags & 128 else None
        self.users.append((user, fields.pop(0).decode() if flags & 64 else None))
        return will

    def _publish(self, connection: socket.socket, flags: int, body: bytes) -> None:
        (size,) = struct.unpack(">H", body[:2])
        qos, rest = flags >> 1 & 3, body[2 + size :]
        if qos:
            connection.sendall(bytes([PUBACK << 4, 2]) + rest[:2])
            rest = rest[2:]
        self.messages.append(Message(body[2 : 2 + size].decode(), rest, qos, bool(flags & 1)))

    def hang_up(self) -> None:
        for connection in self._connections:
            with_linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, with_linger)
            connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def close(self) -> None:
        self.stuck = False
        self._listener.close()
        for connection in self._connections:
            connection.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.close()


@pytest.fixture
def publish(
    fake_bundle: Any, brightness_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, list[str]]]:
    """Runs a demo that publishes; returns its summary and what it said."""
    monkeypatch.setattr("edge_demo.mqtt.STATS_S", 0.3)
    monkeypatch.delenv("EDGE_MQTT_PASSWORD", raising=False)

    def run(url: str, **options: Any) -> tuple[Any, list[str]]:
        said: list[str] = []
        parts = Parts(
            open_bundle=lambda path: fake_bundle,
            open_runtime=lambda *given: brightness_runtime(),
            why_no_window=lambda: "no display",
            say=said.append,
        )
        given = {"bundle": Path("x"), "source": "synthetic", "duration_s": 1.5, "mqtt": url, **options}
        return run_demo(DemoOptions(**given), parts=parts), said

    return run


def test_results_states_and_stats_arrive(broker: Broker, publish: Callable[..., Any]) -> None:
    summary, said = publish(f"mqtt://127.0.0.1:{broker.port}/plant/line 1/")
    by_topic: dict[str, list[Message]] = {}
    for message in broker.messages:
        by_topic.setdefault(message.topic, []).append(message)
    assert set(by_topic) == {f"plant/line 1/synthetic/{what}" for what in ("results", "state", "stats")}
    results = [message.json() for message in by_topic["plant/line 1/synthetic/results"]]
    assert {result["schema"] for result in results} == {"edge-event/1"}
    frames = [result["frame_id"] for result in results]
    assert frames == sorted(frames)
    assert len(frames) > summary.stats.processed // 2
    states = by_topic["plant/line 1/synthetic/state"]
    assert {(message.qos, message.retain) for message in states} == {(1, True)}
    assert states[-1].json()["state"] == "OFFLINE"
    assert "LIVE" in {message.json()["state"] for message in states}
    assert by_topic["plant/line 1/synthetic/stats"][0].json()["schema"] == "edge-live/1"
    assert any("connected" in sentence for sentence in said)


def test_a_client_that_dies_leaves_its_will(broker: Broker, publish: Callable[..., Any]) -> None:
    thread = threading.Thread(target=publish, args=(f"mqtt://127.0.0.1:{broker.port}",), kwargs={"duration_s": 3})
    thread.start()
    deadline = time.monotonic() + 5
    while not any(message.topic.endswith("results") for message in broker.messages) and time.monotonic() < deadline:
        time.sleep(0.02)
    broker.hang_up()
    while not any(
        message.topic.endswith("state") and b"connection lost" in message.payload for message in broker.messages
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    will = next(message for message in broker.messages if b"connection lost" in message.payload)
    assert (will.topic, will.qos, will.retain) == ("edge/synthetic/state", 1, True)
    assert will.json()["state"] == "OFFLINE"
    thread.join(15)
    assert len(broker.users) >= 2  # it came back
    after = broker.messages[broker.messages.index(will) + 1 :]
    assert after[0].json()["state"] == "LIVE"


def test_a_broker_that_is_away_costs_results_not_the_demo(publish: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    summary, said = publish(f"mqtt://127.0.0.1:{port}")
    assert summary.stats.processed > 20
    assert [sentence for sentence in said if sentence.startswith("mqtt")] == [
        f"mqtt 127.0.0.1:{port}: not reached; the demo goes on, and tries again"
    ]


def test_a_broker_that_refuses_is_said_once(publish: Callable[..., Any]) -> None:
    broker = Broker(answer=5)  # not authorized
    summary, said = publish(f"mqtt://127.0.0.1:{broker.port}")
    broker.close()
    assert summary.stats.processed > 20
    (sentence,) = [sentence for sentence in said if sentence.startswith("mqtt")]
    assert "Not authorized" in sentence


def test_a_broker_that_takes_nothing_does_not_hold_up_the_demo(broker: Broker, publish: Callable[..., Any]) -> None:
    threading.Timer(0.5, lambda: setattr(broker, "stuck", True)).start()
    start_s = time.monotonic()
    summary, _ = publish(f"mqtt://127.0.0.1:{broker.port}", duration_s=1.2)
    assert summary.stats.processed > 20
    assert time.monotonic() - start_s < 12


def test_user_and_password(broker: Broker, publish: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret\n")
    _, said = publish(f"mqtt://me@127.0.0.1:{broker.port}", mqtt_password_file=file, duration_s=0.5)
    assert broker.users == [("me", "s3cret")]
    assert "s3cret" not in " ".join(said)
    assert parse_broker("mqtts://me@host", None, {"EDGE_MQTT_PASSWORD": "env"}).password == "env"


def test_a_missing_library_is_said_with_what_to_type(
    publish: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt", None)
    with pytest.raises(InputError, match=r"--mqtt needs paho-mqtt.*train-to-edge\[mqtt\]"):
        publish("mqtt://127.0.0.1")


def test_defaults() -> None:
    plain, secure = parse_broker("mqtt://host", None, {}), parse_broker("mqtts://host/a/b", None, {})
    assert (plain.host, plain.port, plain.tls, plain.prefix) == ("host", 1883, False, "edge")
    assert (secure.port, secure.tls, secure.prefix) == (8883, True, "a/b")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("host:1883", "not a broker's address"),
        ("http://host", "not a broker's address"),
        ("mqtt://", "not a broker's address"),
        ("mqtt://host:port", "the port is not a number"),
        ("mqtt://me:secret@host", "a password on the command line"),
        ("mqtt://host/a/#", "not a broker's address"),
        ("mqtt://host/a%23", "wildcard"),
        ("mqtt://host/+/x", "wildcard"),
    ],
)
def test_what_is_no_broker_is_refused(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_broker(url, None, {})
    assert "secret" not in str(caught.value)


def test_a_password_needs_a_user_and_a_file_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no user"):
        parse_broker("mqtt://host", None, {"EDGE_MQTT_PASSWORD": "x"})
    with pytest.raises(InputError, match="cannot be read"):
        parse_broker("mqtt://me@host", tmp_path / "absent", {})


@pytest.mark.parametrize(
    ("source", "level"),
    [
        ("camera 0", "camera_0"),
        ("http://***@10.0.0.5:80/a#b+c", "http_10.0.0.5_80_a_b_c"),
        ("///", "source"),
    ],
)
def test_a_source_is_one_level_of_a_topic(source: str, level: str) -> None:
    assert topic_level(source) == level
