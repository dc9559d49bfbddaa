"""Where a run goes besides the window and JSON lines: the web view, recordings, an MQTT broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_demo.errors import InputError
from edge_demo.image import Frame
from edge_demo.loop import Processed
from edge_demo.mqtt import Broker, Publisher, parse_broker
from edge_demo.record import Recorder, RecordOptions, record_options
from edge_demo.session import Session
from edge_demo.web import WebView
from edge_demo.web_access import Access, parse_access

CAP_MB = 2000.0
CLOSE_S = 5.0  # for the last frames to reach a slow disk


@dataclass(frozen=True, slots=True)
class Outputs:
    """Checked options; None: not asked for."""

    web: Access | None = None
    record: RecordOptions | None = None
    mqtt: Broker | None = None


def parse_outputs(
    *,
    web: str | None,
    web_token_file: Path | None,
    record: Path | None,
    record_format: str,
    record_cap_mb: float,
    mqtt: str | None,
    mqtt_password_file: Path | None,
) -> Outputs:
    """Check what was asked for before anything is opened; InputError says what is wrong, or has no effect."""
    idle = {
        "--web-token-file": (web is None and web_token_file is not None, "--web"),
        "--record-format": (record is None and record_format != "avi", "--record DIR"),
        "--record-cap-mb": (record is None and record_cap_mb != CAP_MB, "--record DIR"),
        "--mqtt-password-file": (mqtt is None and mqtt_password_file is not None, "--mqtt URL"),
    }
    for option, (useless, needed) in idle.items():
        if useless:
            raise InputError(f"{option} has no effect without {needed}", f"add {needed}, or leave it out")
    return Outputs(
        parse_access(web, web_token_file) if web is not None else None,
        record_options(record, record_format, record_cap_mb) if record is not None else None,
        parse_broker(mqtt, mqtt_password_file) if mqtt is not None else None,
    )


@contextmanager
def attached(session: Session, outputs: Outputs, say: Callable[[str], None], stop: threading.Event) -> Iterator[None]:
    """The outputs of a session that has not started, closed in order after it has ended.

    Raises:
        InputError: the web address cannot be used, or a library is not installed.
    """
    with ExitStack() as stack:
        if outputs.record:
            recorder = _recorder(session, outputs.record, say, stop)
            session.controls.recorder = recorder
            session.listeners.append(recorder)
            stack.callback(_close_recorder, recorder, say)
        if outputs.mqtt:
            publisher = Publisher(outputs.mqtt, session.plan.source_name, session.live, say, spawn=session.thread)
            session.listeners.append(publisher)
            stack.callback(publisher.close, 2.0)
        if outputs.web:
            view = WebView(session, outputs.web, session.thread)
            session.listeners.append(view)
            stack.callback(view.close)
            say(f"web view: {view.address}" + (" (keep this address to yourself)" if outputs.web.token else ""))
        yield


def _recorder(session: Session, options: RecordOptions, say: Callable[[str], None], stop: threading.Event) -> Recorder:
    plan = session.plan

    def draw(processed: Processed) -> Frame:
        return session.drawn(processed, overlay=session.controls.overlay)

    def fps() -> float | None:
        return 1 / plan.source.pace_s if plan.source.pace_s and not plan.source.live else None

    return Recorder(options, draw, say, spawn=session.thread, stop=stop, lossless=plan.policy == "every", fps=fps)


def _close_recorder(recorder: Recorder, say: Callable[[str], None]) -> None:
    done = recorder.close(CLOSE_S)
    now = recorder.now()
    if not done:
        say("recording: the disk did not take the last frames in time; the last file is the .part file")
    elif now.segments:
        lost = f", {now.dropped} frames lost to a slow disk" if now.dropped else ""
        say(f"recorded {now.frames} frames in {now.segments} file{'s' if now.segments > 1 else ''}{lost}")
