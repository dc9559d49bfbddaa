"""The demo as a process: standard output, signals, readers that are slow, stuck or gone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_demo.sinks import JsonLines

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from types import SimpleNamespace
from edge_demo.app import DemoOptions, Parts, run_demo
from edge_demo.manifest import InputContract
from edge_demo.runtime import Bound

manifest = SimpleNamespace(task="classify", name="digits", version="1", labels=tuple("0123456789"), decode={"roi": 0.5},
    recommended="int8", variants=(), input=InputContract(size_wh=(28, 28), colour="gray", mean=(0.0,), std=(1.0,)))
outputs = {"scores": np.eye(10, dtype=np.float32)[[3]], "embedding": np.zeros((1, 4), np.float32)}
runtime = SimpleNamespace(name="onnxruntime", close=lambda: None,
    bind=lambda feeds: Bound(dict(feeds), outputs, lambda: None))
parts = Parts(open_bundle=lambda path: SimpleNamespace(manifest=manifest, model_bytes=lambda precision: b""),
    open_runtime=lambda *given: runtime)
run_demo(DemoOptions(Path("x"), sys.argv[1], jsonl="-", policy=sys.argv[2]), parts=parts)
"""


def start(source: str, policy: str = "auto", **options: Any) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, source, policy],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


class TestSink:
    @pytest.fixture
    def pipe(self, tmp_path: Path) -> Iterator[tuple[Path, int]]:
        """A named pipe and the end that a reader has open but does not read."""
        path = tmp_path / "pipe"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        yield path, reader
        os.close(reader)

    def test_live_a_stuck_reader_costs_the_oldest_lines_and_never_waits(self, pipe: tuple[Path, int]) -> None:
        path, reader = pipe
        stop = threading.Event()
        sink = JsonLines(str(path), lossy=True, stop=stop)
        count, line = 3000, "x" * 400
        for number in range(count):
            sink.put(f"{number} {line}\n")  # would block here for ever
        assert sink.dropped > 0
        written = ""
        closing: list[int] = []
        closer = threading.Thread(target=lambda: closing.append(sink.close(10)))
        closer.start()
        while closer.is_alive():
            with contextlib.suppress(BlockingIOError):
                written += os.read(reader, 65536).decode()
            time.sleep(0.001)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(reader, 65536):
                written += data.decode()
        assert closing == [0]
        numbers = [int(text.split()[0]) for text in written.splitlines()]
        assert numbers == sorted(numbers)
        assert numbers[-1] == count - 1
        assert len(numbers) == count - sink.dropped
        assert not stop.is_set()

    def test_a_reader_that_never_reads_is_given_up(self, pipe: tuple[Path, int]) -> None:
        sink = JsonLines(str(pipe[0]), lossy=True, stop=threading.Event())
        for _ in range(300):
            sink.put("x" * 1000 + "\n")
        assert sink.close(0.2) > 0


class TestProcess:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it_in_order(self, number: int) -> None:
        process = start("synthetic")
        assert process.stdout
        head = [process.stdout.readline() for _ in range(5)]
        process.send_signal(number)
        out, err = process.communicate(timeout=15)
        assert process.returncode == 0, err
        parsed = [json.loads(line) for line in head + out.splitlines()]
        assert parsed[-1]["type"] == "stats"
        assert parsed[-1]["ended"] == "stopped"
        assert "Traceback" not in err
        assert err.splitlines()[0].startswith("no window: ")
        assert err.splitlines()[-1].startswith("stopped: ")
        assert " FPS, age p50 " in err.splitlines()[-1]

    def test_a_reader_that_leaves_is_an_ordinary_end(self) -> None:
        with start("synthetic") as process:
            assert process.stdout
            assert process.stderr
            process.stdout.readline()
            process.stdout.close()
            err = process.stderr.read()
            assert process.wait(timeout=15) == 0, err
        assert "reader gone: " in err
        assert "BrokenPipe" not in err

    def test_a_reader_that_sleeps_does_not_keep_it_alive(self) -> None:
        with start("synthetic") as process:
            assert process.stdout
            assert process.stderr
            process.stdout.readline()
            if sys.platform == "linux":
                fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)  # about ten lines
            time.sleep(1.5)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=15) == 0
            assert "JSON lines not written" in process.stderr.read().splitlines()[-1]

    def test_with_every_a_slow_reader_gets_every_line(self, levels_video: Path) -> None:
        process = start(str(levels_video))
        time.sleep(1.5)
        out, err = process.communicate(timeout=15)
        assert process.returncode == 0, err
        results = [json.loads(line) for line in out.splitlines()]
        assert [line["frame_id"] for line in results if line["type"] == "result"] == list(range(40))

    def test_a_second_signal_ends_it_at_once(self, camera: Any) -> None:
        process = start(camera.url)
        assert process.stdout
        process.stdout.readline()
        camera.mode = "stall"  # the capture thread is now blocked in a read of up to two seconds
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 130
        process.communicate()
