"""The live demo: `run_demo` chooses, opens and wires everything; the main thread owns the window and the signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np

from edge_demo.capture import Timing
from edge_demo.errors import InputError
from edge_demo.events import StatsEvent
from edge_demo.image import load_cv2
from edge_demo.loop import predictor
from edge_demo.manifest import Manifest
from edge_demo.outputs import CAP_MB, Outputs, attached, parse_outputs
from edge_demo.runtime import Runtime
from edge_demo.session import Plan, Policy, Session
from edge_demo.sinks import JsonLines
from edge_demo.sources import Source, Timeouts, open_source
from edge_demo.synthetic import SIZE_WH, SyntheticSource
from edge_demo.tasks import TASKS, Task
from edge_demo.view import Screen
from edge_demo.window import open_window, why_no_window

FLUSH_S = 2.0  # how long the last lines may take to reach their reader


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a person can ask of the demo."""

    bundle: Path
    source: str
    """Camera number, http/https/rtsp URL, video file, image, folder of images, or `synthetic`."""
    show: Literal["auto", "window", "none"] = "auto"
    jsonl: str | None = None
    """File for JSON lines, or `-` for standard output."""
    runtime: str = "onnxruntime"
    precision: str = "auto"
    """`auto` is the precision the bundle recommends."""
    threads: int | None = None
    """None: one less than the usable CPUs, so that capture and drawing have one."""
    roi: float | None = None
    """Side of the centred square the network looks at, as a share of the short side; None: the bundle's own for
    cameras, streams, videos and synthetic, the whole frame for images."""
    duration_s: float | None = None
    max_frames: int | None = None
    """End after that many processed frames."""
    web: str | None = None
    """HOST:PORT of the web view; other than a loopback address it asks for a token."""
    web_token_file: Path | None = None
    """File with the token; without it one is made up and printed where one is needed."""
    record: Path | None = None
    """Folder for recordings."""
    record_format: str = "avi"
    """`avi` survives a power cut, `webm` plays in browsers."""
    record_cap_mb: float = CAP_MB
    """Size of all recordings together; the oldest are deleted."""
    mqtt: str | None = None
    """mqtt[s]://[USER@]HOST[:PORT][/PREFIX]; the password comes from the environment or a file."""
    mqtt_password_file: Path | None = None
    policy: Literal["auto", "latest", "every"] = "auto"
    """`latest`: the newest frame wins, older ones are dropped and counted; `every`: each frame, the source waits.
    `auto`: latest for cameras, streams and synthetic, every for files."""


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What happened; figures as in the `stats` event."""

    stats: StatsEvent
    unwritten: int
    """JSON lines that could not be written before the end."""

    def line(self) -> str:
        """One line for people."""
        stats = self.stats

        def number(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        text = (
            f"{stats.ended}: {stats.processed} frames in {stats.seconds:.1f} s, {number(stats.fps, '.1f')} FPS, "
            f"age p50 {number(stats.age_p50_ms, '.1f')} ms p95 {number(stats.age_p95_ms, '.1f')} ms, "
            f"{stats.dropped} dropped"
        )
        more = {
            "stalls": stats.stalls,
            "reconnects": stats.reconnects,
            "JSON lines dropped": stats.events_dropped,
            "JSON lines not written": self.unwritten,
        }
        return text + "".join(f", {count} {what}" for what, count in more.items() if count)


class OpenBundle(Protocol):
    """What the demo needs of an opened, verified bundle."""

    @property
    def manifest(self) -> Manifest:
        """Its description."""
        ...

    def model_bytes(self, precision: str) -> bytes:
        """The verified bytes of a variant's model."""
        ...


def _open_bundle(path: Path) -> OpenBundle:
    from edge_demo.bundle import open_bundle

    return open_bundle(path)


def _open_runtime(name: str, model: bytes, threads: int) -> Runtime:
    from edge_demo.runtime import open_runtime

    return open_runtime(name, model, threads=threads, batch=1)


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class Parts:
    """What the demo is built from; replaced in tests."""

    open_bundle: Callable[[Path], OpenBundle] = _open_bundle
    open_runtime: Callable[[str, bytes, int], Runtime] = _open_runtime
    why_no_window: Callable[[], str] = why_no_window
    open_window: Callable[[], Screen] = open_window
    say: Callable[[str], None] = _say
    timeouts: Timeouts = field(default_factory=Timeouts)
    timing: Timing = field(default_factory=Timing)


def run_demo(
    options: DemoOptions,
    *,
    stop: threading.Event | None = None,
    parts: Parts = Parts(),
) -> DemoSummary:
    """Run the demo until its source, its limits or a person ends it.

    Call it from the main thread: SIGINT and SIGTERM then end the run in order, a second one at once (exit code 130).
    Sentences go to standard error; standard output carries JSON lines or nothing.

    Args:
        options: What to do.
        stop: Set it from another thread to end the run.
        parts: What to build from.

    Raises:
        InputError: an option, the bundle or the source is not usable.
        Error: the run failed midway; the JSON lines up to there are written.
    """
    stop = stop or threading.Event()
    _check(options)
    outputs = parse_outputs(
        web=options.web,
        web_token_file=options.web_token_file,
        record=options.record,
        record_format=options.record_format,
        record_cap_mb=options.record_cap_mb,
        mqtt=options.mqtt,
        mqtt_password_file=options.mqtt_password_file,
    )
    with stop_on_signals(stop):
        summary = _demo(options, outputs, stop, parts)
    parts.say(summary.line())
    return summary


def _demo(options: DemoOptions, outputs: Outputs, stop: threading.Event, parts: Parts) -> DemoSummary:
    load_cv2().setNumThreads(1)
    bundle = parts.open_bundle(options.bundle)
    manifest = bundle.manifest
    task = TASKS[manifest.task]
    precision = _precision(options, manifest)
    source, policy, params = _source(options, manifest, task, parts.timeouts)
    windowed = _wants_window(options, parts)
    threads = options.threads or max(1, _usable_cpus() - 1)
    runtime = parts.open_runtime(options.runtime, bundle.model_bytes(precision), threads)
    try:
        parts.say(_chosen(manifest, precision, runtime.name, threads, policy, params))
        plan = Plan(
            source=source,
            model=f"{manifest.name} {manifest.version}",
            task_name=manifest.task,
            task=task,
            labels=manifest.labels,
            params=params,
            predict=predictor(runtime, task, manifest.input, params),
            policy=policy,
            paced=source.live or policy == "latest" or windowed or outputs.web is not None,
            runtime=runtime.name,
            precision=precision,
            threads=threads,
            duration_s=options.duration_s,
            max_frames=options.max_frames,
            read_timeout_s=parts.timeouts.read_ms / 1000 + 1,
            timing=parts.timing,
        )
        return _run(plan, options, outputs, stop, windowed, parts)
    finally:
        runtime.close()


def _run(
    plan: Plan, options: DemoOptions, outputs: Outputs, stop: threading.Event, windowed: bool, parts: Parts
) -> DemoSummary:
    sink = JsonLines(options.jsonl, lossy=plan.policy == "latest", stop=stop) if options.jsonl else None
    screen = parts.open_window() if windowed else None
    unwritten = 0
    try:
        session = Session(plan, stop, sink, parts.say)
        with attached(session, outputs, parts.say, stop):
            stats = session.run(screen)
        if session.failure:  # of an output, after the run
            raise session.failure
    finally:
        if screen:
            screen.close()
        if sink:
            unwritten = sink.close(FLUSH_S)
    if sink and sink.failure:
        raise sink.failure
    return DemoSummary(stats, unwritten)


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set `stop`; the second one ends the process at once with 130. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(130)
        asked = True
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check(options: DemoOptions) -> None:
    for name, value in (("--duration", options.duration_s), ("--max-frames", options.max_frames)):
        if value is not None and not value > 0:
            raise InputError(f"{name} {value}: must be above 0", "leave it out to run until the source ends")
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads {options.threads}: must be 1 or more", "leave it out for the default")
    choices = {
        "--show": (options.show, ("auto", "window", "none")),
        "--policy": (options.policy, ("auto", "latest", "every")),
    }
    for name, (given, known) in choices.items():
        if given not in known:
            raise InputError(f"{name} {given}: unknown", f"known: {', '.join(known)}")


def _precision(options: DemoOptions, manifest: Manifest) -> str:
    if options.precision == "auto":
        return manifest.recommended
    known = [variant.precision for variant in manifest.variants]
    if options.precision not in known:
        raise InputError(f"--precision {options.precision}: not in this bundle", f"it has: {', '.join(known)}, or auto")
    return options.precision


def _source(
    options: DemoOptions, manifest: Manifest, task: Task, timeouts: Timeouts
) -> tuple[Source, Policy, dict[str, Any]]:
    """The source, its policy and the decode parameters that go with it."""
    given = {} if options.roi is None else {"roi": options.roi}
    params = task.check_params({**manifest.decode, **given}, manifest.labels)
    if options.source == "synthetic":
        live = options.policy != "every"
        canvas = np.zeros((SIZE_WH[1], SIZE_WH[0], 3), dtype=np.uint8)
        return SyntheticSource(task.region(canvas, params), live=live), "latest" if live else "every", params
    source = open_source(options.source, timeouts)
    if source.kind == "images" and options.roi is None and "roi" in params:
        params = {
            **params,
            "roi": 1.0,
        }  # a stored picture is framed already; only a camera needs a place to hold things
    policy: Policy = ("latest" if source.live else "every") if options.policy == "auto" else options.policy
    return source, policy, params


def _wants_window(options: DemoOptions, parts: Parts) -> bool:
    if options.show == "none":
        return False
    reason = parts.why_no_window()
    if not reason:
        return True
    if options.show == "window":
        raise InputError(f"--show window: {reason}", "use --show none, or --jsonl - for the results")
    parts.say(f"no window: {reason}; going on without")
    return False


def _chosen(manifest: Manifest, precision: str, runtime: str, threads: int, policy: str, params: dict[str, Any]) -> str:
    looks = ""
    if "roi" in params:
        side = f"the centred square, {params['roi']:.0%} of the short side"
        looks = f"; looks at {'the whole frame' if params['roi'] >= 1 else side}"
    frames = {"latest": "the newest frame wins", "every": "every frame"}[policy]
    return (
        f"{manifest.name} {manifest.version} ({manifest.task}): {runtime} {precision}, "
        f"{threads} thread{'s' if threads > 1 else ''}; {frames}{looks}"
    )


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
