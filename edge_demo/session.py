"""One run of the demo: starts the threads, watches them from the main thread, counts, and ends them in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from edge_demo.capture import Item, Timing, capture
from edge_demo.channel import Channel
from edge_demo.events import ErrorEvent, Event, ResultEvent, StageMs, State, StateEvent, StatsEvent, to_line
from edge_demo.feeds import Feeds, opened, start
from edge_demo.figures import STAGES, Figures, stage_ms
from edge_demo.image import Frame
from edge_demo.live import Controls, Listener, Live, why_unhealthy
from edge_demo.loop import Follow, Predict, Processed, infer
from edge_demo.mosaic import Tile, mosaic
from edge_demo.notify import Notifier
from edge_demo.render import Overlay, answer, banner, compose, enlarge
from edge_demo.sinks import JsonLines
from edge_demo.source import Source
from edge_demo.tasks import Task
from edge_demo.teaching import LABEL, Teaching
from edge_demo.view import Screen, Shown, View

Policy = Literal["latest", "every"]
QUEUE = 4  # frames decoded ahead where every frame counts
TROUBLE = ("CONNECTING", "STALE", "LOST", "BACKOFF")
Display = Literal["synced", "smooth"]
STUCK_S = 30.0  # a model that has a frame and gives no answer for so long is not slow but stuck


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run does, all choices made."""

    source: Source
    model: str
    """Name and version of the bundle."""
    task_name: str
    task: Task
    labels: Sequence[str]
    params: dict[str, Any]
    """Decode parameters; `predict` reads them at each frame."""
    predict: Predict
    policy: Policy
    paced: bool
    runtime: str
    precision: str
    threads: int
    duration_s: float | None
    max_frames: int | None
    read_timeout_s: float
    timing: Timing
    others: tuple[Source, ...] = ()
    """Further sources, processed in turn with the first."""
    wait: bool = False
    """Live sources that are not there at first are waited for."""
    follow: Follow | None = None
    """Follows objects from frame to frame."""
    display: Display = "synced"
    """`synced` shows the frame a result belongs to, `smooth` each captured frame with the last result."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All of them."""
        return (self.source, *self.others)

    @property
    def live(self) -> bool:
        """Whether frames arrive by themselves."""
        return any(source.live for source in self.sources)

    @property
    def source_name(self) -> str:
        """For people and events."""
        return ", ".join(source.name for source in self.sources)


class Session:
    """The threads of one run and what they share.

    Args:
        plan: What to do.
        stop: Ends the run; set by signals, a gone reader, a closed window.
        sink: Where JSON lines go, or None.
        say: Where sentences for people go.
    """

    def __init__(self, plan: Plan, stop: threading.Event, sink: JsonLines | None, say: Callable[[str], None]) -> None:
        live = plan.policy == "latest"
        self.plan, self.stop, self.sink, self.say = plan, stop, sink, say
        self.feeds = Feeds(plan.sources, self._changed, plan.timing, capacity=1 if live else QUEUE, newest_wins=live)
        self.frames = self.feeds.frames
        self.shown: Channel[Processed] = Channel(1, newest_wins=True)
        self.figures = Figures()
        self.controls = Controls(
            plan.params, plan.task.adjustable, lambda params: plan.task.check_params(params, plan.labels)
        )
        self.listeners: list[Listener] = []
        """Told of every event; complete before `run`."""
        self.failure: Exception | None = None
        self.view: View | None = None
        """The window's, once there is one."""
        self._pressed: Callable[[str], None] | None = None
        self._spoken: dict[str, str] = {}
        self._shown = Shown(None, None, None)
        self._stages_p50: dict[str, float | None] = dict.fromkeys(STAGES)
        self._latest: dict[int, Processed] = {}
        self._seq = 0
        self._start_s = time.monotonic()
        self._telling = threading.Lock()

    def run(self, screen: Screen | None) -> StatsEvent:
        """Run to the end from the main thread; raises what made a thread fail."""
        start_s = self._start_s = time.monotonic()
        plan = self.plan
        threads = start(self.feeds, self.thread, self._capture)
        worker = self.thread(
            "infer",
            lambda: infer(
                self.frames,
                plan.predict,
                self._processed,
                self.stop,
                max_frames=plan.max_frames,
                paused=self.controls.paused,
                follow=plan.follow,
            ),
        )
        threads.append(worker)
        notifier = Notifier()
        try:
            ended = self._watch(worker, screen, start_s, notifier)
        finally:
            notifier.stopping()
            self.stop.set()
            self.frames.close()
            self._join(threads)
        if ended != "source ended":
            self.feeds.end(ended)
        if self.failure is not None:
            self._tell(lambda seq, now: ErrorEvent(
                seq=seq, source=plan.source_name, t_wall=now, message=str(self.failure)
            ))  # fmt: skip
        stats = self._stats(ended, time.monotonic() - start_s)
        self._put(stats)
        if self.failure is not None:
            raise self.failure
        return stats

    def thread(self, name: str, body: Callable[[], None]) -> threading.Thread:
        """Start a thread of the run: what makes it fail ends the run and is raised in the main thread."""

        def guarded() -> None:
            try:
                body()
            except Exception as error:  # noqa: BLE001 - raised again in the main thread
                self.failure = self.failure or error
                self.stop.set()

        # Daemons: one that is stuck in a library must not keep a process alive that was told to end.
        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _capture(self, index: int) -> None:
        """The body of one capture thread."""
        plan = self.plan
        capture(
            plan.sources[index],
            self.feeds.channel(index),
            self.feeds.statuses[index],
            self.stop,
            paced=plan.paced,
            wait=plan.wait,
            index=index,
            tap=self._show_at_once if plan.display == "smooth" else None,
        )

    def _show_at_once(self, item: Item) -> None:
        """Smooth display: the new frame with the last result of its source, which is a little older."""
        latest = self._latest.get(item.source)
        if latest is not None:
            self.shown.put(replace(latest, item=item))

    def _watch(self, worker: threading.Thread, screen: Screen | None, start_s: float, notifier: Notifier) -> str:
        """The main thread's part: window, clocks and watchdog; returns why the run ended."""
        plan = self.plan
        view = self.view = View(screen, self.shown, self._paint, self._renewed, self._pressed) if screen else None
        told: set[int] = set()
        notifier.ready(f"{plan.model}, {plan.source_name}")  # a camera that is not there yet is no failed start
        while not self.stop.is_set():
            now_s = time.monotonic()
            for sentence in opened(self.feeds, told):
                self.say(sentence)
            self.feeds.check_stale(now_s)
            if not self._stuck(now_s):
                notifier.alive(now_s, self.feeds.state or "CONNECTING")
            if plan.duration_s is not None and now_s - start_s >= plan.duration_s:
                return "duration reached"
            if view and not view.refresh(now_s, troubled=self.troubled()):
                return "window closed"
            if not worker.is_alive() and not (view and plan.source.kind == "images"):
                return self._why_finished()
            if not view:
                worker.join(0.05)
        if self.failure is not None:
            return "failed"
        return "reader gone" if self.sink and self.sink.gone else "stopped"

    def _stuck(self, now_s: float) -> bool:
        """Whether frames wait and the model has given no answer for long: only a restart helps."""
        idle = len(self.frames) == 0 or self.controls.paused.is_set()
        return not idle and now_s - max(self.figures.last_s, self._start_s) > STUCK_S

    def _why_finished(self) -> str:
        if self.failure is not None:
            return "failed"
        return "frame limit reached" if self.figures.processed == self.plan.max_frames else "source ended"

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        """Wait for the threads; a read that blocks ends within its timeout, a reader that is stuck is given up."""
        for thread in threads:
            thread.join(1.0)
        if self.sink and self.plan.policy == "every" and any(thread.is_alive() for thread in threads):
            self.sink.abort()
        for thread in threads:
            thread.join(self.plan.read_timeout_s)

    def _processed(self, processed: Processed) -> None:
        """Called by the inference thread for each frame."""
        self.figures.add(processed, time.monotonic())
        self._latest[processed.item.source] = processed
        if self.plan.display == "synced":
            self.shown.put(processed)
            time.sleep(0)  # the window's thread goes first: writing the event holds the interpreter for a millisecond
        self._tell(lambda seq, now: self._result(processed, seq), processed)

    def _result(self, processed: Processed, seq: int) -> ResultEvent:
        captured = processed.item.captured
        age_now_s = (time.monotonic_ns() - captured.t_mono_ns) / 1e9
        return ResultEvent(
            seq=seq,
            source=self.plan.sources[processed.item.source].name,
            frame_id=processed.item.frame_id,
            item=captured.item,
            t_capture_mono_ns=captured.t_mono_ns,
            t_wall=_wall(time.time() - age_now_s),
            age_ms=round(processed.age_ms, 3),
            stage_ms=StageMs(**{name: round(value, 3) for name, value in stage_ms(processed).items()}),
            dropped_since_last=processed.dropped,
            task=self.plan.task_name,
            width=captured.frame.shape[1],
            height=captured.frame.shape[0],
            truth=captured.truth,
            result=self.plan.task.to_json(processed.prediction.result, self.plan.labels),
        )

    def _changed(self, source: Source, state: State, reason: str) -> None:
        """Called by whichever thread changed a source's state."""
        self._tell(lambda seq, now: StateEvent(seq=seq, source=source.name, t_wall=now, state=state, reason=reason))
        # An ordinary LIVE has the same reason every time: what was granted. Another one is a warning, or its end.
        ordinary = state == "LIVE" and not reason.startswith(("black", "frozen", "garbled", "the picture"))
        sentence = state if ordinary else reason if state == "LIVE" else f"{state} ({reason})" if reason else state
        if not source.live or state not in ("LIVE", "STALE", "LOST"):
            return
        kind = state if state != "LIVE" or ordinary else reason.partition(" ")[0]
        if kind == self._spoken.get(source.name, "LIVE"):
            return
        self._spoken[source.name] = kind
        self.say(f"source {source.name}: {sentence}" + (f" ({reason})" if ordinary and reason else ""))

    def _tell(self, make: Callable[[int, str], Event], processed: Processed | None = None) -> None:
        if self.sink is None and not self.listeners:
            return
        with self._telling:  # the order of the lines is the order of `seq`
            event = make(self._seq, _wall(time.time()))
            line = to_line(event)
            self._seq += 1
            for listener in self.listeners:
                listener.heard(event, line, processed)
            if self.sink:
                self.sink.put(line)

    def _put(self, stats: StatsEvent) -> None:
        self._tell(lambda seq, now: stats.model_copy(update={"seq": seq}))

    def _stats(self, ended: str, seconds: float) -> StatsEvent:
        figures, status = self.figures, self.feeds
        shown = self.view.ages if self.view else None
        with figures.lock:
            p50 = {name: figures.stages[name].percentile(50) for name in STAGES}
            return StatsEvent(
                seq=0,
                source=self.plan.source_name,
                t_wall=_wall(time.time()),
                seconds=round(seconds, 3),
                captured=status.captured,
                processed=figures.processed,
                dropped=self.frames.dropped,
                events_dropped=self.sink.dropped if self.sink else 0,
                reconnects=status.reconnects,
                stalls=status.stalls,
                capture_fps=_rounded(status.captured / seconds if seconds > 0 else None),
                fps=_rounded(figures.fps()),
                age_p50_ms=_rounded(figures.ages.percentile(50)),
                age_p95_ms=_rounded(figures.ages.percentile(95)),
                age_p99_ms=_rounded(figures.ages.percentile(99)),
                shown_p50_ms=_rounded(shown.percentile(50) if shown else None),
                shown_p95_ms=_rounded(shown.percentile(95) if shown else None),
                stage_p50_ms=_stages(p50),
                runtime=self.plan.runtime,
                precision=self.plan.precision,
                threads=self.plan.threads,
                policy=self.plan.policy,
                ended=ended,
            )

    def live(self) -> Live:
        """What the demo is doing now."""
        plan, status, figures, controls = self.plan, self.feeds, self.figures, self.controls
        now_s = time.monotonic()
        with figures.lock:
            newest, processed, interval_s = figures.newest, figures.processed, figures.interval_s()
            fps = figures.rate.per_s(now_s)
            ages = [figures.recent_ages.percentile(q, now_s) for q in (50, 95)]
            p50 = {name: figures.recent_stages[name].percentile(50, now_s) for name in STAGES}
        silent_s = None if newest is None else max(0.0, now_s - newest.item.captured.t_mono_ns / 1e9)
        state, reason, warning = status.state, status.reason, status.warnings(now_s)
        return Live(
            model=plan.model,
            task=plan.task_name,
            source=plan.source_name,
            granted=status.granted,
            runtime=plan.runtime,
            precision=plan.precision,
            threads=plan.threads,
            policy=plan.policy,
            seconds=round(now_s - self._start_s, 3),
            state=state,
            reason=reason,
            unhealthy=why_unhealthy(
                state=state,
                reason=reason,
                paused=controls.paused.is_set(),
                silent_s=silent_s,
                interval_s=interval_s,
                stale_s=plan.timing.stale_s,
            )
            or (warning if "frozen picture" in warning else ""),
            warning=warning,
            behind_ms=_rounded(status.behind_ms),
            last_frame_s=_rounded(silent_s),
            captured=status.captured,
            processed=processed,
            dropped=self.frames.dropped,
            stalls=status.stalls,
            reconnects=status.reconnects,
            capture_fps=_rounded(status.fps(now_s)),
            fps=_rounded(fps),
            age_p50_ms=_rounded(ages[0]),
            age_p95_ms=_rounded(ages[1]),
            stage_p50_ms=_stages(p50),
            frame_id=newest.item.frame_id if newest else None,
            answer=self._answer(newest) if newest else "",
            result=plan.task.to_json(newest.prediction.result, plan.labels) if newest else None,
            paused=controls.paused.is_set(),
            overlay=controls.overlay,
            params={name: controls.params[name] for name in controls.adjustable},
            recording=controls.recorder.now() if controls.recorder else None,
            taught=controls.teaching.now() if controls.teaching else None,
        )

    def teach_with(self, teaching: Teaching, label: str | None) -> None:
        """Let keys and viewers teach; `label` is what the key t teaches."""
        self.controls.teaching = teaching
        self._pressed = lambda key: teaching.key(key, label or LABEL)

    def newest_result(self) -> Any | None:
        """The last result, or None before the first."""
        newest = self.figures.newest
        return newest.prediction.result if newest else None

    def newest(self) -> Processed | None:
        """The last processed frame."""
        return self.figures.newest

    def picture(self, processed: Processed, *, overlay: bool) -> Frame:
        """The BGR frame for a viewer elsewhere: drawn on or bare, with a banner when its source is in trouble."""
        drawn = self.drawn(processed, overlay=overlay)
        return banner(enlarge(drawn), self.feeds.warnings(time.monotonic()) if not self.plan.others else "")

    def drawn(self, processed: Processed, *, overlay: bool) -> Frame:
        """The BGR frame, drawn on or bare; of several sources the newest frame of each, side by side."""
        if not self.plan.others:
            return self._drawn_one(processed, overlay=overlay)
        now_s = time.monotonic()
        latest = {**self._latest, processed.item.source: processed}
        tiles = []
        for index, source in enumerate(self.plan.sources):
            own = latest.get(index)
            frame = self._drawn_one(own, overlay=overlay) if own else None
            tiles.append(Tile(frame, source.name, self.feeds.warning(index, now_s)))
        return mosaic(tiles)

    def _drawn_one(self, processed: Processed, *, overlay: bool) -> Frame:
        plan, frame = self.plan, processed.item.captured.frame
        return plan.task.draw(frame, processed.prediction.result, plan.labels, plan.params) if overlay else frame

    def _renewed(self, shown: Shown, now_s: float) -> None:
        """Medians for the strip, as often as the figures of what is shown."""
        with self.figures.lock:
            p50 = {name: self.figures.recent_stages[name].percentile(50, now_s) for name in STAGES}
        self._shown, self._stages_p50 = shown, p50

    def _paint(self, processed: Processed, now_s: float) -> Frame:
        """The picture in the window, with the strip as it is now."""
        plan, shown = self.plan, self._shown
        with self.figures.lock:
            fps = self.figures.rate.per_s(now_s)
        overlay = Overlay(
            answer=self._answer(processed),
            capture_fps=self.feeds.fps(now_s),
            fps=fps,
            shown_fps=shown.fps,
            age_ms=shown.age_p50_ms,
            age_p95_ms=shown.age_p95_ms,
            stage_ms=self._stages_p50,
            dropped=self.frames.dropped,
            state=self.feeds.state or "CONNECTING",
            engine=f"{plan.runtime} {plan.precision}",
            warning=self.feeds.warnings(now_s),
            note=self._lag(processed),
        )
        return compose(self.drawn(processed, overlay=True), overlay)

    def _lag(self, processed: Processed) -> str:
        """Smooth display: how much older the result is than the frame it is drawn on."""
        latest = self._latest.get(processed.item.source)
        if self.plan.display == "synced" or latest is None:
            return ""
        lag_ms = (processed.item.captured.t_mono_ns - latest.item.captured.t_mono_ns) / 1e6
        return f"result {max(0.0, lag_ms):.0f} ms older than the picture"

    def _answer(self, processed: Processed) -> str:
        return answer(self.plan.task.to_json(processed.prediction.result, self.plan.labels))

    def troubled(self) -> bool:
        """Whether the source gives no fresh frames."""
        return self.plan.live and self.feeds.state in TROUBLE


def _stages(p50: dict[str, float | None]) -> StageMs | None:
    values = {name: round(value, 3) for name, value in p50.items() if value is not None}
    return StageMs(**values) if len(values) == len(STAGES) else None


def _wall(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
