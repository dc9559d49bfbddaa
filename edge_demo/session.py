"""One run of the demo: starts the threads, watches them from the main thread, counts, and ends them in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from edge_demo.capture import Item, Status, Timing, capture
from edge_demo.channel import Channel
from edge_demo.events import ErrorEvent, Event, ResultEvent, StageMs, State, StateEvent, StatsEvent, to_line
from edge_demo.figures import STAGES, Figures, stage_ms
from edge_demo.image import Frame
from edge_demo.live import Controls, Listener, Live, why_unhealthy
from edge_demo.loop import Predict, Processed, infer
from edge_demo.render import Overlay, answer, banner, compose, enlarge
from edge_demo.sinks import JsonLines
from edge_demo.sources import Source
from edge_demo.tasks import Task
from edge_demo.view import Screen, View

Policy = Literal["latest", "every"]
QUEUE = 4  # frames decoded ahead where every frame counts
TROUBLE = ("CONNECTING", "STALE", "LOST", "BACKOFF")


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
        self.frames: Channel[Item] = Channel(1 if live else QUEUE, newest_wins=live)
        self.shown: Channel[Processed] = Channel(1, newest_wins=True)
        self.status = Status(self._changed, plan.timing)
        self.figures = Figures()
        self.controls = Controls(
            plan.params, plan.task.adjustable, lambda params: plan.task.check_params(params, plan.labels)
        )
        self.listeners: list[Listener] = []
        """Told of every event; complete before `run`."""
        self.failure: Exception | None = None
        self._spoken: State = "LIVE"
        self._seq = 0
        self._start_s = time.monotonic()
        self._telling = threading.Lock()

    def run(self, screen: Screen | None) -> StatsEvent:
        """Run to the end from the main thread; raises what made a thread fail."""
        start_s = self._start_s = time.monotonic()
        plan = self.plan
        threads = [
            self.thread(
                "capture",
                lambda: capture(plan.source, self.frames, self.status, self.stop, paced=plan.paced),
            ),
            self.thread(
                "infer",
                lambda: infer(
                    self.frames,
                    plan.predict,
                    self._processed,
                    self.stop,
                    max_frames=plan.max_frames,
                    paused=self.controls.paused,
                ),
            ),
        ]
        try:
            ended = self._watch(threads[1], screen, start_s)
        finally:
            self.stop.set()
            self.frames.close()
            self._join(threads)
        if ended != "source ended":
            self.status.to("STOPPED", ended)
        if self.failure is not None:
            self._tell(lambda seq, now: ErrorEvent(
                seq=seq, source=plan.source.name, t_wall=now, message=str(self.failure)
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

    def _watch(self, worker: threading.Thread, screen: Screen | None, start_s: float) -> str:
        """The main thread's part: window, clocks and watchdog; returns why the run ended."""
        view = View(screen, self.shown, self._paint) if screen else None
        announced = False
        while not self.stop.is_set():
            now_s = time.monotonic()
            if not announced and self.status.opened.is_set() and self.status.granted:
                self.say(f"source {self.plan.source.name}: {self.status.granted}")
                announced = True
            if self.plan.source.live:
                self.status.check_stale(now_s)
            if self.plan.duration_s is not None and now_s - start_s >= self.plan.duration_s:
                return "duration reached"
            if view and not view.refresh(now_s, troubled=self.troubled()):
                return "window closed"
            if not worker.is_alive() and not (view and self.plan.source.kind == "images"):
                return self._why_finished()
            if not view:
                worker.join(0.05)
        if self.failure is not None:
            return "failed"
        return "reader gone" if self.sink and self.sink.gone else "stopped"

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
        self.shown.put(processed)
        self._tell(lambda seq, now: self._result(processed, seq), processed)

    def _result(self, processed: Processed, seq: int) -> ResultEvent:
        captured = processed.item.captured
        age_now_s = (time.monotonic_ns() - captured.t_mono_ns) / 1e9
        return ResultEvent(
            seq=seq,
            source=self.plan.source.name,
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

    def _changed(self, state: State, reason: str) -> None:
        """Called by whichever thread changed the source's state."""
        source = self.plan.source
        self._tell(lambda seq, now: StateEvent(seq=seq, source=source.name, t_wall=now, state=state, reason=reason))
        if source.live and state in ("LIVE", "STALE", "LOST") and state != self._spoken:
            self._spoken = state
            self.say(f"source {source.name}: {state}" + (f" ({reason})" if reason else ""))

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
        figures, status = self.figures, self.status
        with figures.lock:
            p50 = {name: figures.stages[name].percentile(50) for name in STAGES}
            return StatsEvent(
                seq=0,
                source=self.plan.source.name,
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
                stage_p50_ms=_stages(p50),
                runtime=self.plan.runtime,
                precision=self.plan.precision,
                threads=self.plan.threads,
                policy=self.plan.policy,
                ended=ended,
            )

    def live(self) -> Live:
        """What the demo is doing now."""
        plan, status, figures, controls = self.plan, self.status, self.figures, self.controls
        now_s = time.monotonic()
        with figures.lock:
            newest, processed, interval_s = figures.newest, figures.processed, figures.interval_s()
            fps = figures.rate.per_s(now_s)
            ages = [figures.recent_ages.percentile(q, now_s) for q in (50, 95)]
            p50 = {name: figures.recent_stages[name].percentile(50, now_s) for name in STAGES}
        silent_s = None if newest is None else max(0.0, now_s - newest.item.captured.t_mono_ns / 1e9)
        state, reason = status.state, status.reason
        return Live(
            model=plan.model,
            task=plan.task_name,
            source=plan.source.name,
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
            ),
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
        )

    def newest(self) -> Processed | None:
        """The last processed frame."""
        return self.figures.newest

    def picture(self, processed: Processed, *, overlay: bool) -> Frame:
        """The BGR frame for a viewer elsewhere: drawn on or bare, with a banner when its source is in trouble."""
        plan, captured = self.plan, processed.item.captured
        drawn = captured.frame
        if overlay:
            drawn = plan.task.draw(captured.frame, processed.prediction.result, plan.labels, plan.params)
        return banner(enlarge(drawn), self._warning(time.monotonic()))

    def _paint(self, processed: Processed, age_ms: float | None, now_s: float) -> Frame:
        """The picture in the window, with the strip as it is now."""
        plan, status, result = self.plan, self.status, processed.prediction.result
        with self.figures.lock:
            fps = self.figures.rate.per_s(now_s)
        overlay = Overlay(
            answer=self._answer(processed),
            capture_fps=status.fps(now_s),
            fps=fps,
            age_ms=age_ms,
            engine=f"{plan.runtime} {plan.precision}",
            warning=self._warning(now_s),
        )
        return compose(plan.task.draw(processed.item.captured.frame, result, plan.labels, plan.params), overlay)

    def _answer(self, processed: Processed) -> str:
        return answer(self.plan.task.to_json(processed.prediction.result, self.plan.labels))

    def _warning(self, now_s: float) -> str:
        return f"{self.status.state}: last frame {self.status.silent_s(now_s):.0f} s ago" if self.troubled() else ""

    def troubled(self) -> bool:
        """Whether the source gives no fresh frames."""
        return self.plan.source.live and self.status.state in TROUBLE


def _stages(p50: dict[str, float | None]) -> StageMs | None:
    values = {name: round(value, 3) for name, value in p50.items() if value is not None}
    return StageMs(**values) if len(values) == len(STAGES) else None


def _wall(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
