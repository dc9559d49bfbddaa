"""The clock in the picture, and what the latency test makes of it."""

from __future__ import annotations

import time
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_demo.capture import Item
from edge_demo.errors import Error
from edge_demo.loop import Prediction, Processed
from edge_demo.source import Captured
from edge_demo.timecode import LatencyTest, coded, now_ms, read_code, write_code


@settings(max_examples=40)
@given(st.integers(0, 2**40 - 1), st.integers(0, 255), st.integers(50, 95))
def test_it_survives_jpeg(ms: int, level: int, quality: int) -> None:
    frame = np.full((480, 640, 3), level, np.uint8)
    write_code(frame, ms)
    assert (frame[16:] == level).all()
    jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    assert read_code(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), ms) == ms


def test_it_is_the_one_the_fake_cameras_write(camera_module: ModuleType) -> None:
    assert read_code(camera_module.stamp(1_234_567_890), 1_234_567_990) == 1_234_567_890
    assert camera_module.read_stamp(coded(np.zeros((480, 640, 3), np.uint8))) <= now_ms()


@pytest.mark.parametrize(
    "frame",
    [
        np.full((480, 640, 3), 128, np.uint8),
        np.zeros((480, 640, 3), np.uint8),  # a clock that says 0 is none of this boot
        np.zeros((480, 320, 3), np.uint8),
        np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8),
    ],
)
def test_an_ordinary_picture_is_no_clock(frame: Any) -> None:
    assert read_code(frame, 10**9) is None


def processed(code_ms: int | None, t_mono_ns: int, age_ms: float) -> Processed:
    frame = np.full((480, 640, 3), 128, np.uint8)
    if code_ms is not None:
        write_code(frame, code_ms)
    return Processed(Item(0, Captured(frame, t_mono_ns, 0.0)), Prediction(None, 0, 0, 0), age_ms, 0)


def test_what_the_demo_did_not_see_is_the_difference() -> None:
    test, event = LatencyTest(), SimpleNamespace()
    base = now_ms()
    for number in range(40):
        unseen_ms = 5 if number % 2 else 9
        test.heard(event, "", processed(base - 50 - unseen_ms, (base - 50) * 1_000_000, 30.0))
    test.heard(event, "", processed(None, time.monotonic_ns(), 30.0))
    test.heard(event, "", None)
    result = test.result()
    assert (result.n, result.without_code) == (40, 1)
    assert (result.true_p50_ms, result.true_p95_ms) == (37.0, 39.0)
    assert (result.reported_p95_ms, result.error_p95_ms) == (30.0, 9.0)
    assert "n = 40, 1 frames without a time code" in result.line()


def test_without_any_code_it_says_what_to_use() -> None:
    test = LatencyTest()
    test.heard(SimpleNamespace(), "", processed(None, time.monotonic_ns(), 1.0))
    with pytest.raises(Error, match="none of 1 frames carries a time code; use --source synthetic"):
        test.result()
