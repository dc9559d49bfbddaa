"""The demo as it is now: one typed snapshot for every viewer, and the few things a viewer may change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from edge_demo.errors import InputError
from edge_demo.events import STRICT, Count, Event, Millis, StageMs, State
from edge_demo.image import Frame
from edge_demo.loop import Processed
from edge_demo.teach import Taught

Seconds = Annotated[FiniteFloat, Field(ge=0)]
RecordState = Literal["waiting", "recording", "stopped", "failed"]


class Recording(BaseModel):
    """What the recorder is doing; `reason` says why it is not recording."""

    model_config = STRICT
    state: RecordState
    reason: str = ""
    segments: Count = 0
    """Finished files of this run."""
    frames: Count = 0
    dropped: Count = 0
    """Frames lost because the disk was too slow."""
    bytes: Count = 0
    """All recordings in the folder."""


class Live(BaseModel):
    """The demo at one moment. Rates and percentiles are of the last five seconds; null: too few frames to say."""

    model_config = STRICT
    schema_: Annotated[Literal["edge-live/1"], Field(alias="schema")] = "edge-live/1"
    model: str
    """Name and version of the bundle."""
    task: str
    source: str
    """Without credentials."""
    granted: str
    runtime: str
    precision: str
    threads: Count
    policy: str
    seconds: Seconds
    """Since the start."""
    state: State | None
    reason: str
    unhealthy: str
    """Why no fresh frames are being processed; empty: they are."""
    warning: str = ""
    """What is wrong with what is seen: no fresh frames, or a frozen, black or cut-off picture."""
    behind_ms: Millis | None = None
    """Backlog of a stream that carries its own clock (RTSP); null for others."""
    last_frame_s: Seconds | None
    """Time since the newest processed frame was captured; null before the first."""
    captured: Count
    processed: Count
    dropped: Count
    stalls: Count
    reconnects: Count
    capture_fps: Seconds | None
    fps: Seconds | None
    age_p50_ms: Millis | None
    """From capture to the decoded result."""
    age_p95_ms: Millis | None
    stage_p50_ms: StageMs | None
    frame_id: Count | None
    answer: str
    """The newest result in one line; empty before the first."""
    result: dict[str, Any] | None
    paused: bool
    overlay: bool
    params: dict[str, float]
    """Decode parameters a viewer may change."""
    recording: Recording | None
    """Null without --record."""
    taught: Taught | None = None
    """Classes taught while running, with their examples and what they cost; null without --teach."""


class Change(BaseModel):
    """What a viewer asks for; what is left out stays as it is. The source is not among it, on purpose."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    paused: bool | None = None
    overlay: bool | None = None
    recording: bool | None = None
    teach: str | None = None
    """Name of a class that the newest frame is an example of."""
    forget: str | None = None
    """Name of a taught class to drop."""
    params: dict[str, float] = Field(default_factory=dict)


class Switch(Protocol):
    """What the controls need of a recorder."""

    def switch(self, on: bool) -> None:
        """Start a new file, or finish the open one."""
        ...

    def now(self) -> Recording:
        """What it is doing."""
        ...


class Teachable(Protocol):
    """What the controls need of teach mode."""

    def teach(self, label: str) -> None:
        """Take the newest frame as an example; InputError when it cannot."""
        ...

    def forget(self, label: str) -> None:
        """Drop a taught class; InputError when there is none."""
        ...

    def now(self) -> Taught:
        """What has been taught so far."""
        ...


class Listener(Protocol):
    """Told of everything that happens in a run. Must not block: it is called by the thread that made it happen."""

    def heard(self, event: Event, line: str, processed: Processed | None) -> None:
        """One event, the same as a JSON line, and with a result the processed frame."""
        ...


@dataclass(slots=True)
class Controls:
    """What may be changed while the demo runs.

    Args:
        params: The decode parameters in use; changed in place, so whoever holds them sees the change.
        adjustable: Names of those a viewer may change.
        check: Completes and checks parameters; InputError when one is out of range.
    """

    params: dict[str, Any]
    adjustable: tuple[str, ...]
    check: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    overlay: bool = True
    paused: threading.Event = field(default_factory=threading.Event)
    recorder: Switch | None = None
    teaching: Teachable | None = None
    one_by_one: threading.Lock = field(default_factory=threading.Lock)
    """Held while a change is applied: viewers ask from threads of their own."""

    def apply(self, body: bytes) -> None:
        """Apply a JSON `Change`, all of it or nothing.

        Raises:
            InputError: not JSON, an unknown key, a wrong type, or a value out of range.
        """
        change = parse_change(body)
        unknown = sorted(set(change.params) - set(self.adjustable))
        if unknown:
            known = ", ".join(self.adjustable) or "none of this task"
            raise InputError(f"params.{unknown[0]}: cannot be changed while running", f"known: {known}")
        if change.recording is not None and self.recorder is None:
            raise InputError("recording: no folder to record to", "start the demo with --record DIR")
        with self.one_by_one:
            self._apply(change)

    def _apply(self, change: Change) -> None:
        self._teach(change)
        # In place and per key: a thread that reads while this runs sees each value old or new, never half.
        self.params.update(self.check({**self.params, **change.params}))
        if change.overlay is not None:
            self.overlay = change.overlay
        if change.recording is not None and self.recorder is not None:
            self.recorder.switch(change.recording)
        if change.paused is not None:
            (self.paused.set if change.paused else self.paused.clear)()

    def _teach(self, change: Change) -> None:
        """First of all, because it can be refused."""
        if change.teach is None and change.forget is None:
            return
        if self.teaching is None:
            raise InputError("teach: the demo was not started for it", "start it with --teach FILE")
        if change.teach is not None:
            self.teaching.teach(change.teach)
        if change.forget is not None:
            self.teaching.forget(change.forget)


def parse_change(body: bytes) -> Change:
    """A `Change` from JSON text; InputError that names the first fault."""
    try:
        return Change.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InputError(f"{where}: {first['msg']}", f"known: {', '.join(Change.model_fields)}") from None


class Watched(Protocol):
    """A running demo, as those see it who show it elsewhere."""

    controls: Controls

    def live(self) -> Live:
        """What it is doing now."""
        ...

    def picture(self, processed: Processed, *, overlay: bool) -> Frame:
        """The frame as a viewer sees it: with the task's drawing, and a banner when its source is in trouble."""
        ...

    def newest(self) -> Processed | None:
        """The last processed frame."""
        ...

    def troubled(self) -> bool:
        """Whether what is shown is not fresh."""
        ...


def why_unhealthy(
    *,
    state: State | None,
    reason: str,
    paused: bool,
    silent_s: float | None,
    interval_s: float | None,
    stale_s: float,
) -> str:
    """Why no fresh frames are being processed, or empty.

    Args:
        state: Of the source.
        reason: Of that state.
        paused: A person stopped the processing.
        silent_s: Since the newest processed frame was captured; None before the first.
        interval_s: Mean time between results: a slow model is not a broken one.
        stale_s: Silence that counts as stale at any speed.
    """
    if paused:
        return "paused"
    if state != "LIVE":
        return f"source {state or 'CONNECTING'}" + (f": {reason}" if reason else "")
    if silent_s is None:
        return "no frame processed yet"
    limit_s = max(stale_s, 5 * (interval_s or 0.0))
    return f"no fresh frame processed for {silent_s:.1f} s" if silent_s > limit_s else ""
