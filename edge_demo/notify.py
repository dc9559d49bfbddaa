"""Tells systemd that the demo is ready, alive and stopping: one datagram each, no library.

Source: sd_notify(3); NOTIFY_SOCKET names a datagram socket, WATCHDOG_USEC how often to be heard of.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Does nothing where no supervisor asked for it.

    Args:
        environment: With NOTIFY_SOCKET and WATCHDOG_USEC, as systemd sets them.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        pid = environment.get("WATCHDOG_PID", "")
        micros = environment.get("WATCHDOG_USEC", "")
        mine = pid in ("", str(os.getpid()))
        self._every_s = int(micros) / 2e6 if micros.isdigit() and mine else 0.0
        self._last_s: float | None = None
        self._status = ""

    def ready(self, status: str) -> None:
        """Everything is open and running."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self, now_s: float, status: str) -> None:
        """To be called often, and only while work is being done; sends at half the interval that is asked for."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")
        if self._every_s and (self._last_s is None or now_s - self._last_s >= self._every_s):
            self._last_s = now_s
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The run is being ended in order."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A leading @ is an abstract socket of Linux, whose name starts with a zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            try:
                channel.setblocking(False)
                channel.sendto(text.encode(), address)
            except OSError:
                return  # a supervisor that has gone is no reason to stop showing
