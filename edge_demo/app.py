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
from typing import Any, Literal

from edge_demo.acceptance import Expectation
from edge_demo.bundle import Bundle
from edge_demo.capture import Timing
from edge_demo.errors import InputError
from edge_demo.events import StatsEvent
from edge_demo.image import load_cv2
from edge_demo.inputs import inputs
from edge_demo.loop import following, predictor
from edge_demo.manifest import Manifest
from edge_demo.outputs import CAP_MB, Outputs, attached, parse_outputs
from edge_demo.runtime import Runtime
from edge_demo.session import Plan, Session
from edge_demo.sinks import JsonLines
from edge_demo.source import Timeouts
from edge_demo.tasks import TASKS
from edge_demo.teach import Teacher
from edge_demo.teaching import KEYS, LABEL, Teaching, taught_predictor, teacher_for
from edge_demo.timecode import Latency, LatencyTest
from edge_demo.view import Screen
from edge_demo.window import open_window, why_no_window

TURN_S = 0.0005
FLUSH_S = 2.0  # how long the last lines may take to reach their reader


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a person can ask of the demo."""

    bundle: Path
    source: str
    """Camera number or v4l2:..., http/https/rtsp URL, video file, image, folder, %d pattern, or `synthetic`."""
    more_sources: tuple[str, ...] = ()
    """Further sources, processed in turn with the first and shown side by side."""
    wait: bool = False
    """A live source that is not there at first is waited for."""
    insecure_tls: bool = False
    """Accept any certificate of https and rtsps sources."""
    show: Literal["auto", "window", "none"] = "auto"
    jsonl: str | None = None
    """File for JSON lines, or `-` for standard output."""
    runtime: str = "onnxruntime"
    """`auto`: the fastest here that gives the bundle's golden answers, measured for two seconds at the start."""
    precision: str = "auto"
    """`auto` is the precision the bundle recommends, or with runtime `auto` the fastest that is as good."""
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
    display: Literal["synced", "smooth"] = "synced"
    """What the window shows: the frame a result belongs to, or each captured frame with the last result."""
    track: bool = True
    """Follow boxes from frame to frame, where the task has boxes and the source an order of frames."""
    expect_p95_ms: float | None = None
    """GateError when the p95 age of the frames is above."""
    expect_fps: float | None = None
    """GateError when fewer frames per second were processed."""
    latency_test: bool = False
    """Compare the reported age of each frame with the time code in its picture."""
    teach: Path | None = None
    """File of taught classes: loaded when it is there, written whenever something is taught."""
    teach_label: str | None = None
    """Class that the key t teaches; None: `taught`."""


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What happened; figures as in the `stats` event."""

    stats: StatsEvent
    unwritten: int
    """JSON lines that could not be written before the end."""
    latency: Latency | None = None
    """Of the latency test, when it was asked for."""

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


def _open_bundle(path: Path) -> Bundle:
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

    open_bundle: Callable[[Path], Bundle] = _open_bundle
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
    expected = Expectation(options.expect_p95_ms, options.expect_fps)
    expected.check_options()
    outputs = parse_outputs(
        web=options.web,
        web_token_file=options.web_token_file,
        record=options.record,
        record_format=options.record_format,
        record_cap_mb=options.record_cap_mb,
        mqtt=options.mqtt,
        mqtt_password_file=options.mqtt_password_file,
    )
    with stop_on_signals(stop), quick_turns():
        summary = _demo(options, outputs, stop, parts)
    parts.say(summary.line())
    if options.latency_test and summary.latency is not None:
        parts.say(summary.latency.line())
    if accepted := expected.check(summary.stats):
        parts.say(accepted)
    return summary


@contextmanager
def quick_turns() -> Iterator[None]:
    """Threads that compute in Python hand over after half a millisecond, for the time of the demo.

    With Python's own 5 ms, a frame that is ready to be shown may wait for as long.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _demo(options: DemoOptions, outputs: Outputs, stop: threading.Event, parts: Parts) -> DemoSummary:
    load_cv2().setNumThreads(1)
    bundle = parts.open_bundle(options.bundle)
    manifest = bundle.manifest
    task = TASKS[manifest.task]
    if not options.track and task.follower is None:
        raise InputError(f"--no-track has no effect: {manifest.task} tracks nothing", "leave it out")
    given = inputs(
        (options.source, *options.more_sources),
        manifest,
        task,
        policy=options.policy,
        roi=options.roi,
        timeouts=parts.timeouts,
        verify_tls=not options.insecure_tls,
        timecode=options.latency_test,
    )
    windowed = _wants_window(options, parts)
    threads = options.threads or max(1, _usable_cpus() - 1)
    name, precision = _engine(options, bundle, threads, parts)
    runtime = parts.open_runtime(name, bundle.model_bytes(precision), threads)
    try:
        parts.say(_chosen(manifest, precision, runtime.name, threads, given.policy, given.params))
        teacher = teacher_for(bundle, task, runtime, options.teach) if options.teach is not None else None
        predict = predictor(runtime, task, manifest.input, given.params)
        plan = Plan(
            source=given.sources[0],
            others=given.sources[1:],
            model=f"{manifest.name} {manifest.version}",
            task_name=manifest.task,
            task=task,
            labels=teacher.labels if teacher else manifest.labels,
            params=given.params,
            predict=taught_predictor(predict, task, teacher) if teacher else predict,
            policy=given.policy,
            paced=given.sources[0].live or given.policy == "latest" or windowed or outputs.web is not None,
            runtime=runtime.name,
            precision=precision,
            threads=threads,
            duration_s=options.duration_s,
            max_frames=options.max_frames,
            read_timeout_s=parts.timeouts.read_ms / 1000 + 1,
            timing=parts.timing,
            wait=options.wait,
            follow=following(task, [source.kind != "images" for source in given.sources]) if options.track else None,
            display=options.display,
        )
        return _run(plan, options, outputs, stop, windowed, parts, teacher)
    finally:
        runtime.close()


def _run(
    plan: Plan,
    options: DemoOptions,
    outputs: Outputs,
    stop: threading.Event,
    windowed: bool,
    parts: Parts,
    teacher: Teacher | None,
) -> DemoSummary:
    sink = JsonLines(options.jsonl, lossy=plan.policy == "latest", stop=stop) if options.jsonl else None
    screen = parts.open_window() if windowed else None
    test = LatencyTest() if options.latency_test else None
    unwritten = 0
    try:
        session = Session(plan, stop, sink, parts.say)
        if test:
            session.listeners.append(test)
        if teacher:
            session.teach_with(Teaching(teacher, session.newest_result, parts.say), options.teach_label)
            parts.say(teacher.now().line() + (f"; {KEYS} {options.teach_label or LABEL!r}" if windowed else ""))
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
    return DemoSummary(stats, unwritten, test.result() if test else None)


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
    if options.teach is None and options.teach_label is not None:
        raise InputError("--teach-label has no effect without --teach", "add --teach FILE")
    choices = {
        "--show": (options.show, ("auto", "window", "none")),
        "--policy": (options.policy, ("auto", "latest", "every")),
        "--display": (options.display, ("synced", "smooth")),
    }
    for name, (given, known) in choices.items():
        if given not in known:
            raise InputError(f"{name} {given}: unknown", f"known: {', '.join(known)}")


def _engine(options: DemoOptions, bundle: Bundle, threads: int, parts: Parts) -> tuple[str, str]:
    """Runtime and precision: as asked for, or the fastest of those that give the golden answers here."""
    manifest = bundle.manifest
    known = [variant.precision for variant in manifest.variants]
    if options.precision not in (*known, "auto"):
        raise InputError(f"--precision {options.precision}: not in this bundle", f"it has: {', '.join(known)}, or auto")
    if options.runtime != "auto":
        return options.runtime, manifest.recommended if options.precision == "auto" else options.precision
    from edge_demo.choose import candidates, choose

    pairs = candidates(manifest, options.runtime, options.precision)
    choice = choose(bundle, pairs, lambda name, model: parts.open_runtime(name, model, threads))
    parts.say(choice.line())
    return choice.runtime, choice.precision


def _wants_window(options: DemoOptions, parts: Parts) -> bool:
    reason = "--show none was asked for" if options.show == "none" else parts.why_no_window()
    if not reason:
        return True
    if options.display == "smooth":
        raise InputError(f"--display smooth has no effect without a window: {reason}", "leave it out")
    if options.show == "none":
        return False
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
