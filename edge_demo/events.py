"""The demo's machine-readable output, `edge-event/1`: one JSON object per line, strict models, never NaN."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from edge_demo.errors import Error

SCHEMA = "edge-event/1"
State = Literal["CONNECTING", "LIVE", "STALE", "LOST", "BACKOFF", "ENDED", "STOPPED"]
STRICT = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
Schema = Annotated[Literal["edge-event/1"], Field(alias="schema")]
Millis = Annotated[FiniteFloat, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class StageMs(BaseModel):
    """Time spent on one frame, in ms: `capture` decoding, `pre` crop and resize, `infer` the model, `post` decoding."""

    model_config = STRICT
    capture: Millis
    pre: Millis
    infer: Millis
    post: Millis


class ResultEvent(BaseModel):
    """One processed frame."""

    model_config = STRICT
    schema_: Schema = "edge-event/1"
    type: Literal["result"] = "result"
    seq: Count
    """Line counter of this run over all types; a gap means lines were dropped because the reader was too slow."""
    source: str
    """As given, without credentials."""
    frame_id: Count
    """Counts captured frames from 0; a gap means frames were dropped."""
    item: str | None = None
    """File name, for images."""
    t_capture_mono_ns: int
    """Monotonic clock at capture: comparable within one machine and boot."""
    t_wall: str
    """Wall clock at capture, ISO 8601 UTC: for people."""
    age_ms: Millis
    """From capture to the decoded result."""
    stage_ms: StageMs
    dropped_since_last: Count
    task: str
    width: int
    height: int
    """Size of the captured frame in pixels; coordinates in `result` refer to it."""
    truth: str | None = None
    """What the frame really shows, where the source knows (`synthetic`)."""
    result: dict[str, Any]
    """The task's own `to_json`."""


class StateEvent(BaseModel):
    """The source changed its state."""

    model_config = STRICT
    schema_: Schema = "edge-event/1"
    type: Literal["state"] = "state"
    seq: Count
    source: str
    t_wall: str
    state: State
    reason: str


class ErrorEvent(BaseModel):
    """The run ends because of this."""

    model_config = STRICT
    schema_: Schema = "edge-event/1"
    type: Literal["error"] = "error"
    seq: Count
    source: str
    t_wall: str
    message: str


class StatsEvent(BaseModel):
    """The whole run in figures; the last line. A percentile is null when there are too few frames to have one."""

    model_config = STRICT
    schema_: Schema = "edge-event/1"
    type: Literal["stats"] = "stats"
    seq: Count
    source: str
    t_wall: str
    seconds: Millis
    captured: Count
    processed: Count
    dropped: Count
    """Captured frames replaced by a newer one before the model was free."""
    events_dropped: Count
    """Lines dropped because their reader was too slow."""
    reconnects: Count
    stalls: Count
    capture_fps: Millis | None
    fps: Millis | None
    """Processed frames per second, first to last result; null below ten frames."""
    age_p50_ms: Millis | None
    age_p95_ms: Millis | None
    age_p99_ms: Millis | None
    shown_p50_ms: Millis | None = None
    """Age of the frames in the window when they appeared there; null without a window."""
    shown_p95_ms: Millis | None = None
    stage_p50_ms: StageMs | None
    runtime: str
    precision: str
    threads: int
    policy: str
    ended: str
    """Why the run ended."""


Event = ResultEvent | StateEvent | ErrorEvent | StatsEvent


def to_line(event: Event) -> str:
    """One JSON line with its newline.

    Raises:
        Error: a result holds NaN or infinity, which JSON has no word for.
    """
    try:
        return json.dumps(event.model_dump(by_alias=True), allow_nan=False, separators=(",", ":")) + "\n"
    except ValueError as error:
        raise Error(
            f"{event.source}: the model's result is not finite ({error})", "check it: pipeline verify BUNDLE"
        ) from error
