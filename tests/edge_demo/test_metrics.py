"""The Prometheus text: read back by the library's own parser and compared with what happened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from edge_demo.capture import Item
from edge_demo.events import ResultEvent, StageMs
from edge_demo.live import Live, Recording
from edge_demo.loop import Prediction, Processed
from edge_demo.metrics import Metrics, temperature_c
from edge_demo.sources import Captured


def live(**changed: Any) -> Live:
    values: dict[str, Any] = {
        "model": 'di"gits 1\\0',
        "task": "classify",
        "source": "camera 0",
        "granted": "",
        "runtime": "onnxruntime",
        "precision": "int8",
        "threads": 1,
        "policy": "latest",
        "seconds": 9.0,
        "state": "LIVE",
        "reason": "",
        "unhealthy": "",
        "last_frame_s": 0.25,
        "captured": 100,
        "processed": 90,
        "dropped": 7,
        "stalls": 2,
        "reconnects": 3,
        "capture_fps": 30.5,
        "fps": None,
        "age_p50_ms": None,
        "age_p95_ms": None,
        "stage_p50_ms": None,
        "frame_id": None,
        "answer": "",
        "result": None,
        "paused": False,
        "overlay": True,
        "params": {},
        "recording": None,
    }
    return Live(**{**values, **changed})


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, content_type = metrics.text("")
    assert content_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def processed(age_ms: float) -> tuple[ResultEvent, Processed]:
    frame = np.zeros((4, 4, 3), np.uint8)
    item = Item(0, Captured(frame, time.monotonic_ns(), 5.0))
    event = ResultEvent(
        seq=0,
        source="camera 0",
        frame_id=0,
        t_capture_mono_ns=0,
        t_wall="",
        age_ms=age_ms,
        stage_ms=StageMs(capture=5, pre=1, infer=20, post=0),
        dropped_since_last=0,
        task="classify",
        width=4,
        height=4,
        result={},
    )
    return event, Processed(item, Prediction(None, 1.0, 20.0, 0.0), age_ms, 0)


def test_counters_and_gauges_are_those_of_the_demo() -> None:
    got = samples(Metrics(live, lambda: 2))
    assert got["edge_frames_captured_total", ()] == 100
    assert got["edge_frames_processed_total", ()] == 90
    assert got["edge_frames_dropped_total", (("reason", "model_busy"),)] == 7
    assert got["edge_stalls_total", ()] == 2
    assert got["edge_reconnects_total", ()] == 3
    assert got["edge_source_up", ()] == got["edge_healthy", ()] == 1
    assert got["edge_web_viewers", ()] == 2
    assert got["edge_last_frame_seconds", ()] == 0.25
    assert got["edge_fps", (("kind", "capture"),)] == 30.5
    assert ("edge_fps", (("kind", "infer"),)) not in got  # not known is not zero
    build = {"model": 'di"gits 1\\0', "task": "classify", "runtime": "onnxruntime", "precision": "int8"}
    assert got["edge_build_info", tuple(sorted(build.items()))] == 1


def test_trouble_is_zero() -> None:
    got = samples(Metrics(lambda: live(state="STALE", unhealthy="source STALE", last_frame_s=None), lambda: 0))
    assert got["edge_source_up", ()] == got["edge_healthy", ()] == 0
    assert ("edge_last_frame_seconds", ()) not in got


def test_recording_is_there_when_asked_for() -> None:
    now = Recording(state="recording", bytes=5000, dropped=4)
    got = samples(Metrics(lambda: live(recording=now), lambda: 0))
    assert (got["edge_recording", ()], got["edge_recording_bytes", ()]) == (1, 5000)
    assert got["edge_frames_dropped_total", (("reason", "disk_busy"),)] == 4


def test_histograms_count_each_frame() -> None:
    metrics = Metrics(live, lambda: 0)
    ages = [4.0, 30.0, 30.0, 700.0]
    for age_ms in ages:
        metrics.heard(*processed(age_ms))
    got = samples(metrics)
    assert got["edge_frame_age_seconds_count", ()] == 4
    assert got["edge_frame_age_seconds_sum", ()] == pytest.approx(sum(ages) / 1000)
    for upper, count in (("0.005", 1), ("0.035", 3), ("0.5", 3), ("1.0", 4), ("+Inf", 4)):
        assert got["edge_frame_age_seconds_bucket", (("le", upper),)] == count
    assert got["edge_stage_seconds_sum", (("stage", "infer"),)] == pytest.approx(0.08)


def test_a_scraper_may_ask_for_openmetrics() -> None:
    body, content_type = Metrics(live, lambda: 0).text("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert "edge_frames_captured" in {family.name for family in parse_openmetrics(body.decode())}


def test_the_hottest_zone_counts(tmp_path: Path) -> None:
    assert temperature_c(tmp_path) is None
    for name, text in (("thermal_zone0", "41000\n"), ("thermal_zone1", "56500\n"), ("thermal_zone2", "off\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "temp").write_text(text)
    assert temperature_c(tmp_path) == 56.5
