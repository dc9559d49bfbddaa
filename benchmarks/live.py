"""What the live benchmarks share: a camera in a process of its own, and a demo on a stand-in model of known speed."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "edge_demo"))  # the loopback cameras of the tests

from edge_demo.app import DemoOptions, DemoSummary, Parts, run_demo  # noqa: E402
from edge_demo.manifest import InputContract  # noqa: E402
from edge_demo.runtime import Bound  # noqa: E402
from edge_demo.timecode import now_ms, read_code  # noqa: E402

SIZE_WH = (28, 28)


class StandIn:
    """A model on an accelerator: the CPU waits `delay_s` for its answer."""

    name, effective = "onnxruntime", {}

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s

    def bind(self, feeds: Mapping[str, Any]) -> Bound:
        """Buffers of ten classes."""
        outputs = {"scores": np.full((1, 10), 0.1, np.float32), "embedding": np.ones((1, 4), np.float32)}
        return Bound(dict(feeds), outputs, lambda: time.sleep(self.delay_s))

    def close(self) -> None:
        """Nothing to free."""


CONTRACT = InputContract(size_wh=SIZE_WH, colour="gray", mean=(0.0,), std=(1.0,))
MANIFEST = SimpleNamespace(
    task="classify",
    name="stand-in",
    version="1",
    labels=tuple("0123456789"),
    decode={"roi": 0.5},
    recommended="fp32",
    variants=(SimpleNamespace(precision="fp32"),),
    input=CONTRACT,
)


def demo(
    options: Mapping[str, Any],
    delay_s: float,
    screen: Any = None,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> DemoSummary:
    """`run_demo` with the stand-in model, and a window that is `screen`."""
    bundle: Any = SimpleNamespace(manifest=MANIFEST, model_bytes=lambda precision: b"")
    runtime: Any = StandIn(delay_s)
    parts = Parts(
        open_bundle=lambda path: bundle,
        open_runtime=lambda *given: runtime,
        why_no_window=lambda: "" if screen else "none here",
        open_window=lambda: screen,
        say=say,
    )
    return run_demo(DemoOptions(bundle=Path("stand-in"), **options), stop=stop, parts=parts)


@dataclass
class Shown:
    """A window that keeps (monotonic ms, time code in ms, height in px) of each picture; a warning makes it higher."""

    pictures: list[tuple[float, int | None, int]] = field(default_factory=list)

    def show(self, frame: Any) -> bool:
        """A window's `show`; without a frame it takes a millisecond, like a look at the keys."""
        if frame is None:
            time.sleep(0.001)
            return True
        at_ms = time.monotonic_ns() / 1e6
        self.pictures.append((at_ms, read_code(frame, now_ms()), frame.shape[0]))
        return True

    def key(self) -> str:
        """No keys."""
        return ""

    def close(self) -> None:
        """Nothing to take away."""

    def ages(self) -> list[tuple[float, float]]:
        """(monotonic s, true age in ms) of each picture that carries a time code and was new."""
        seen: set[int] = set()
        pairs = []
        for at_ms, code, _ in self.pictures:
            if code is not None and code not in seen:
                seen.add(code)
                pairs.append((at_ms / 1e3, at_ms - code))
        return pairs


@dataclass(frozen=True)
class Camera:
    """A loopback camera in its own process: `ask("stall")`, `run`, `close`, `kill`, `start`, or `since MS`."""

    url: str
    pipe: Connection

    def ask(self, verb: str) -> int:
        """The answer once it has been done: frames whose time code is that of `since MS` or later, else 0."""
        self.pipe.send(verb)
        return int(self.pipe.recv())


@contextmanager
def camera(kind: str = "http", fps: float = 30.0, there: bool = True) -> Iterator[Camera]:
    """A camera whose pictures carry the time.

    Args:
        kind: `http` (MJPEG), `rtsp` (JPEG over RTP), or `bank`: MJPEG of a few pictures that are encoded beforehand,
            moving and noisy, without a time code, for high rates.
        fps: Frames per second.
        there: Whether it can be reached from the start.
    """
    here, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(other, kind, fps, there), daemon=True)
    process.start()
    other.close()  # so that a camera that dies is noticed here
    try:
        yield Camera(here.recv(), here)
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, kind: str, fps: float, there: bool) -> None:
    import fake_camera
    import fake_rtsp

    codes: list[int] = []

    def clock() -> Any:
        codes.append(now_ms())
        return fake_camera.stamp(codes[-1])

    served: Any = fake_rtsp.FakeRtsp(clock, fps) if kind == "rtsp" else fake_camera.FakeCamera(fps)
    served.picture = clock
    if kind == "bank":
        jpegs = _bank()
        served._jpeg = lambda random: jpegs[served.frames_sent % len(jpegs)]
    if not there:
        served.kill()
    pipe.send(served.url)
    while True:
        try:
            verb = pipe.recv()
        except EOFError:
            return
        if verb in ("kill", "start"):
            getattr(served, verb)()
        elif not verb.startswith("since "):
            served.mode = verb
        pipe.send(sum(code >= int(verb[6:]) for code in codes) if verb.startswith("since ") else 0)


def _bank(count: int = 30) -> list[bytes]:
    """JPEG pictures of 320x240: a bright square that wanders over noise."""
    import cv2

    random = np.random.default_rng(0)
    jpegs = []
    for number in range(count):
        frame = random.integers(60, 100, (240, 320, 3), dtype=np.uint8)
        frame[90:150, 8 * number : 8 * number + 60] = 230
        jpegs.append(cv2.imencode(".jpg", frame)[1].tobytes())
    return jpegs
