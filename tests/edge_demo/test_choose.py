"""Automatic choice, acceptance, and the supervisor's datagrams."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_demo.acceptance import Expectation
from edge_demo.bundle import open_bundle
from edge_demo.choose import candidates, choose
from edge_demo.errors import Error, GateError, InputError
from edge_demo.events import StatsEvent
from edge_demo.notify import Notifier
from edge_demo.runtime import Bound, open_runtime


class Slowed:
    """A runtime that takes longer than it has to."""

    def __init__(self, name: str, model: bytes, delays_s: dict[str, float]) -> None:
        self._inner, self._delay_s = open_runtime(name, model), delays_s[name]

    def bind(self, feeds: Any) -> Bound:
        bound = self._inner.bind(feeds)

        def run() -> None:
            time.sleep(self._delay_s)
            bound.run()

        return Bound(bound.inputs, bound.outputs, run)

    def close(self) -> None:
        self._inner.close()


def opener(**delays_s: float) -> Callable[[str, bytes], Any]:
    return lambda name, model: Slowed(name, model, delays_s)


BOTH = [("onnxruntime", "fp32"), ("openvino", "fp32")]


class TestChoose:
    @pytest.mark.parametrize("fast", ["onnxruntime", "openvino"])
    def test_the_faster_one_is_taken_and_both_are_told(self, fast: str, tiny_bundle: Path) -> None:
        delays_s = {"onnxruntime": 0.02, "openvino": 0.02, fast: 0.002}
        choice = choose(open_bundle(tiny_bundle), BOTH, opener(**delays_s), budget_s=0.3)
        assert (choice.runtime, choice.precision) == (fast, "fp32")
        assert all(candidate.ms is not None for candidate in choice.tried)
        assert choice.line().startswith(f"auto: {fast} fp32, the fastest here that gives the golden answers (onnx")

    def test_one_that_answers_otherwise_is_out_however_fast(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "edge_demo.choose.why_not", lambda bundle, precision, name: "raw: no" if name == "openvino" else ""
        )
        choice = choose(open_bundle(tiny_bundle), BOTH, opener(onnxruntime=0.02, openvino=0.0), budget_s=0.2)
        assert choice.runtime == "onnxruntime"
        assert "openvino fp32 out: raw: no" in choice.line()

    def test_none_that_is_right_is_an_error(self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("edge_demo.choose.why_not", lambda *_: "raw: scores differ")
        with pytest.raises(Error, match=r"no runtime gives the golden answers .* onnxruntime fp32 raw: scores differ"):
            choose(open_bundle(tiny_bundle), BOTH, opener(), budget_s=0.1)

    @pytest.mark.parametrize(
        ("int8", "want"),
        [
            ({"onnxruntime.accuracy": 0.979, "openvino.accuracy": 0.95}, [("onnxruntime", "int8")]),
            ({"onnxruntime.accuracy": 0.9, "openvino.accuracy": 0.9}, []),
            ({}, []),
        ],
    )
    def test_a_worse_precision_is_never_taken_for_its_speed(self, int8: dict[str, float], want: Any) -> None:
        own = {"onnxruntime.accuracy": 0.98, "openvino.accuracy": 0.98}
        variants = {"fp32": own, "int8": int8}
        manifest = SimpleNamespace(
            task="classify",
            recommended="fp32",
            variants=[SimpleNamespace(precision=name, metrics=metrics) for name, metrics in variants.items()],
            variant=lambda precision: SimpleNamespace(metrics=variants[precision]),
        )
        assert candidates(manifest, "auto", "auto") == [*BOTH, *want]
        assert candidates(manifest, "auto", "int8") == [("onnxruntime", "int8"), ("openvino", "int8")]


def stats(**given: Any) -> StatsEvent:
    values: dict[str, Any] = {
        "seq": 0, "source": "x", "t_wall": "", "seconds": 1, "captured": 50, "processed": 50, "dropped": 0,
        "events_dropped": 0, "reconnects": 0, "stalls": 0, "capture_fps": 30, "fps": 29.5, "age_p50_ms": 20,
        "age_p95_ms": 40, "age_p99_ms": None, "stage_p50_ms": None, "runtime": "x", "precision": "x", "threads": 1,
        "policy": "latest", "ended": "duration reached",
    }  # fmt: skip
    return StatsEvent(**{**values, **given})


class TestAcceptance:
    def test_met(self) -> None:
        assert Expectation(40, 29.5).check(stats()) == (
            "accepted: age at the result p95 40.0 ms, expected at most 40 ms; FPS 29.5, expected at least 29.5 (n = 50)"
        )
        assert Expectation().check(stats(fps=None)) == ""

    @pytest.mark.parametrize(
        ("limits", "given", "says"),
        [
            ((39.9, None), {}, "p95 40.0 ms, expected at most 39.9"),
            ((None, 30), {}, "FPS 29.5, expected at least 30"),
            ((100, None), {"age_p95_ms": None}, "too few frames to say"),
            ((None, 1), {"fps": None}, "too few frames to say"),
            ((50, None), {"shown_p95_ms": 60.0}, "age of shown frames p95 60.0 ms"),
        ],
    )
    def test_missed_is_exit_3(self, limits: Any, given: Any, says: str) -> None:
        with pytest.raises(GateError, match=says) as missed:
            Expectation(*limits).check(stats(**given))
        assert missed.value.exit_code == 3

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_limit_is_a_positive_number(self, value: float) -> None:
        with pytest.raises(InputError, match="--expect-p95"):
            Expectation(p95_ms=value).check_options()
        with pytest.raises(InputError, match="--expect-fps"):
            Expectation(fps=value).check_options()


class TestNotify:
    def test_a_supervisor_hears_ready_alive_and_stopping(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(tmp_path / "n"))
            listener.setblocking(False)
            notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "4000000"})
            notifier.ready("digits")
            for now_s in (0.0, 1.0, 1.9, 2.0, 3.0, 4.1):
                notifier.alive(now_s, "LIVE")
            notifier.stopping()
            heard = []
            while True:
                try:
                    heard.append(listener.recv(999).decode())
                except BlockingIOError:
                    break
        assert heard == ["READY=1\nSTATUS=digits", "STATUS=LIVE", *["WATCHDOG=1"] * 3, "STOPPING=1"]

    def test_an_abstract_socket_of_linux(self) -> None:
        name = f"train-to-edge-test-{time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            try:
                listener.bind(f"\0{name}")
            except OSError:
                pytest.skip("no abstract sockets here")
            Notifier({"NOTIFY_SOCKET": f"@{name}"}).stopping()
            assert listener.recv(99) == b"STOPPING=1"

    def test_nobody_there_is_no_failure(self, tmp_path: Path) -> None:
        Notifier({}).ready("x")
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")
