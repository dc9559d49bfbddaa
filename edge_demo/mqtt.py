"""Results to an MQTT broker: `PREFIX/SOURCE/results`, `/state` (retained, last will) and `/stats`.

`results` are `edge-event/1` lines at QoS 0; `stats` the `edge-live/1` snapshot every ten seconds; `state` is
`{"state", "reason", "t_wall"}`, retained at QoS 1, with OFFLINE as last will and at the end. Bounded everywhere: a
broker that is slow or away costs results, never the demo.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from edge_demo.channel import Channel
from edge_demo.errors import InputError, missing_extra
from edge_demo.events import Event, StateEvent
from edge_demo.live import Live
from edge_demo.loop import Processed

PASSWORD_VARIABLE = "EDGE_MQTT_PASSWORD"
QUEUE = 64  # results
STATS_S = 10.0
STUCK_S = 5.0
KEEPALIVE_S = 15
RECONNECT_S = (1, 30)
EXAMPLE = "type: --mqtt mqtt://HOST:1883/PREFIX"


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to publish. `prefix` starts every topic."""

    host: str
    port: int
    tls: bool
    prefix: str
    user: str | None
    password: str | None

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.host}:{self.port}"


def parse_broker(url: str, password_file: Path | None, environment: Mapping[str, str] = os.environ) -> Broker:
    """`mqtt[s]://[USER@]HOST[:PORT][/PREFIX]`, with the password from a file or the environment.

    Raises:
        InputError: not such a URL, a password in it (other users see the command line), or an unreadable file.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise InputError("--mqtt: the port is not a number from 0 to 65535", EXAMPLE) from None
    if parts.password is not None:
        raise InputError(
            "--mqtt: a password on the command line is seen by every user",
            f"set {PASSWORD_VARIABLE}, or give --mqtt-password-file FILE",
        )
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or set(url) & set("?#"):
        raise InputError(f"--mqtt {url}: not a broker's address", EXAMPLE)
    prefix = unquote(parts.path).strip("/") or "edge"
    if set(prefix) & set("+#\0"):
        raise InputError(f"--mqtt: the prefix {prefix} holds a wildcard", EXAMPLE)
    user = unquote(parts.username) if parts.username else None
    password = environment.get(PASSWORD_VARIABLE)
    if password_file is not None:
        try:
            password = password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--mqtt-password-file {password_file}: cannot be read ({error})", "check it") from None
    if password is not None and user is None:
        raise InputError("--mqtt: there is a password but no user", "type: --mqtt mqtt://USER@HOST/PREFIX")
    tls = parts.scheme == "mqtts"
    return Broker(parts.hostname, port or (8883 if tls else 1883), tls, prefix, user, password)


def topic_level(source: str) -> str:
    """A source's name as one level of a topic."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", source).strip("_") or "source"


class Publisher:
    """Publishes what happens, from its own thread.

    Args:
        broker: Where.
        source: Name of the source, without credentials.
        live: The demo as it is now.
        say: Where sentences for people go.
        spawn: Starts a thread whose failure ends the demo.

    Raises:
        InputError: the library is not installed.
    """

    def __init__(
        self,
        broker: Broker,
        source: str,
        live: Callable[[], Live],
        say: Callable[[str], None],
        *,
        spawn: Callable[[str, Callable[[], None]], threading.Thread],
    ) -> None:
        paho = _library()
        self._broker, self._live, self._say = broker, live, say
        self._topic = f"{broker.prefix}/{topic_level(source)}"
        self._results: Channel[str] = Channel(QUEUE, newest_wins=True)
        self._state = _state_text("CONNECTING", "", "")
        self._connected = threading.Event()
        self._complained = False
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.will_set(f"{self._topic}/state", _state_text("OFFLINE", "connection lost", ""), qos=1, retain=True)
        self._client.reconnect_delay_set(*RECONNECT_S)
        if broker.user is not None:
            self._client.username_pw_set(broker.user, broker.password)
        if broker.tls:
            self._client.tls_set()
        self._client.connect_async(broker.host, broker.port, KEEPALIVE_S)
        self._client.loop_start()
        self._thread = spawn("mqtt", self._publish_all)

    @property
    def dropped(self) -> int:
        """Results lost to a slow or absent broker."""
        return self._results.dropped

    def heard(self, event: Event, line: str, processed: Processed | None) -> None:
        """Queue a result; keep the newest state."""
        if isinstance(event, StateEvent):
            self._state = _state_text(event.state, event.reason, event.t_wall)
            if self._connected.is_set():
                self._client.publish(f"{self._topic}/state", self._state, qos=1, retain=True)
        elif processed is not None:
            self._results.put(line)

    def close(self, timeout_s: float) -> None:
        """Say OFFLINE and leave; bounded."""
        deadline = time.monotonic() + timeout_s
        self._results.close()
        self._thread.join(timeout_s)
        if self._connected.is_set():
            text = _state_text("OFFLINE", "stopped", "")
            told = self._client.publish(f"{self._topic}/state", text, qos=1, retain=True)
            _wait(told, max(0.0, deadline - time.monotonic()))
        self._client.disconnect()
        self._client.loop_stop()

    def _publish_all(self) -> None:
        next_stats_s = time.monotonic() + STATS_S
        while not self._results.ended:
            line = self._results.get(0.2)
            if not self._connected.is_set():
                continue
            if line is not None:
                self._publish("results", line.rstrip("\n"))
            if time.monotonic() >= next_stats_s:
                next_stats_s = time.monotonic() + STATS_S
                self._publish("stats", self._live().model_dump_json(by_alias=True))

    def _publish(self, what: str, text: str) -> None:
        """One message in flight: the library's own queue for a broker that takes nothing has no bound."""
        _wait(self._client.publish(f"{self._topic}/{what}", text), STUCK_S)

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._complain(f"refused: {reason}")
            return
        self._complained = False
        self._connected.set()
        self._say(f"mqtt {self._broker.where}: connected, topics {self._topic}/results, state, stats")
        client.publish(f"{self._topic}/state", self._state, qos=1, retain=True)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        was_connected = self._connected.is_set()
        self._connected.clear()
        if was_connected and reason.is_failure:
            self._complain(f"connection lost ({reason})")

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        self._complain("not reached")

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._complained = True
            self._say(f"mqtt {self._broker.where}: {what}; the demo goes on, and tries again")


def _state_text(state: str, reason: str, t_wall: str) -> str:
    return json.dumps({"state": state, "reason": reason, "t_wall": t_wall}, separators=(",", ":"))


def _wait(told: Any, timeout_s: float) -> None:
    try:
        told.wait_for_publish(timeout_s)
    except (RuntimeError, ValueError):
        return  # not connected any more: the message is lost, as QoS 0 allows


def _library() -> Any:
    try:
        from paho.mqtt import client
    except ImportError:
        raise missing_extra("--mqtt", "paho-mqtt", "mqtt") from None
    return client
