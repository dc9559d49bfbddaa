"""The inference loop: what it computes, and how old its answers are when the model is slower than the camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from edge_demo.capture import Item, Status, capture
from edge_demo.channel import Channel
from edge_demo.loop import Prediction, Processed, infer, predictor
from edge_demo.manifest import InputContract, Resize
from edge_demo.sources import Captured, open_source
from edge_demo.tasks import TASKS

CONTRACT = InputContract(size_wh=(28, 28), resize=Resize(), colour="gray", mean=(0.0,), std=(1.0,))


def item(frame_id: int, level: int = 0) -> Item:
    frame = np.full((48, 64, 3), level, dtype=np.uint8)
    return Item(frame_id, Captured(frame, time.monotonic_ns(), 0.5))


def run(frames: Channel[Item], predict: Any, **options: Any) -> list[Processed]:
    published: list[Processed] = []
    infer(frames, predict, published.append, threading.Event(), **options)
    return published


def test_the_network_sees_the_region_at_its_own_size(brightness_runtime: Callable[..., Any]) -> None:
    runtime = brightness_runtime()
    predict = predictor(runtime, TASKS["classify"], CONTRACT, {"roi": 0.5})
    frame = np.full((480, 640, 3), 250, dtype=np.uint8)
    frame[120:360, 200:440] = 100  # exactly the centred square of half the short side
    prediction = predict(frame)
    assert prediction.result.class_id == 100 // 26
    assert runtime.batches == [((1, 28, 28, 3), "uint8")]
    whole = predictor(runtime, TASKS["classify"], CONTRACT, {"roi": 1.0})(frame)
    inside = 240 * 240 / (640 * 480)
    assert whole.result.class_id == int(inside * 100 + (1 - inside) * 250) // 26


def test_a_result_is_not_overwritten_by_the_next_frame(brightness_runtime: Callable[..., Any]) -> None:
    predict = predictor(brightness_runtime(), TASKS["classify"], CONTRACT, {"roi": 1.0})
    first = predict(np.full((30, 30, 3), 10, dtype=np.uint8)).result
    predict(np.full((30, 30, 3), 250, dtype=np.uint8))
    assert int(first.scores.argmax()) == first.class_id == 0


def test_gaps_in_frame_numbers_are_counted_as_drops() -> None:
    frames: Channel[Item] = Channel(9, newest_wins=False)
    for frame_id in (0, 1, 5, 7):
        frames.put(item(frame_id))
    frames.close()
    published = run(frames, lambda frame: Prediction(None, 0, 0, 0))
    assert [done.item.frame_id for done in published] == [0, 1, 5, 7]
    assert [done.dropped for done in published] == [0, 0, 3, 1]


def test_it_ends_at_the_frame_limit() -> None:
    frames: Channel[Item] = Channel(9, newest_wins=False)
    for frame_id in range(5):
        frames.put(item(frame_id))
    assert len(run(frames, lambda frame: Prediction(None, 0, 0, 0), max_frames=3)) == 3


def test_a_failing_model_is_not_swallowed() -> None:
    frames: Channel[Item] = Channel(1, newest_wins=True)
    frames.put(item(0))

    def broken(frame: Any) -> Prediction:
        raise RuntimeError("model gone")

    with pytest.raises(RuntimeError, match="model gone"):
        run(frames, broken)


def test_a_slow_model_is_behind_by_a_frame_and_not_by_the_whole_past(camera: Any, camera_module: ModuleType) -> None:
    """30 FPS camera, 100 ms of work per frame, 4 s: the true age is read from the frame's own time code."""
    work_s, run_s = 0.1, 4.0
    stop = threading.Event()
    naive_ms: list[float] = []

    def true_age_ms(frame: Any) -> float:
        return time.monotonic_ns() / 1e6 - camera_module.read_stamp(frame)

    def naive() -> None:
        reader = cv2.VideoCapture(camera.url, cv2.CAP_FFMPEG)
        while not stop.is_set():
            ok, frame = reader.read()
            assert ok
            time.sleep(work_s)
            naive_ms.append(true_age_ms(frame))
        reader.release()

    ages_ms: list[float] = []
    claimed_ms: list[float] = []

    def predict(frame: Any) -> Prediction:
        time.sleep(work_s)
        ages_ms.append(true_age_ms(frame))
        return Prediction(None, 0, work_s * 1000, 0)

    frames: Channel[Item] = Channel(1, newest_wins=True)
    status = Status(lambda state, reason: None)
    threads = [
        threading.Thread(target=capture, args=(open_source(camera.url), frames, status, stop), kwargs={"paced": True}),
        threading.Thread(target=infer, args=(frames, predict, lambda done: claimed_ms.append(done.age_ms), stop)),
        threading.Thread(target=naive),
    ]
    for thread in threads:
        thread.start()
    time.sleep(run_s)
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()

    assert len(ages_ms) >= 10
    assert frames.dropped > 0
    assert np.percentile(ages_ms, 95) < 500
    # The naive reader works off the past: its last frames are far older than ours, ours do not age with the run.
    assert np.median(naive_ms[-5:]) > 3 * np.median(ages_ms[-5:])
    assert np.median(ages_ms[-5:]) < 2 * np.median(ages_ms[:5]) + 100
    # What the demo states as age is the time since capture: the truth less the way through network and decoder.
    gap_ms = np.median(np.array(ages_ms[: len(claimed_ms)]) - np.array(claimed_ms[: len(ages_ms)]))
    assert -5 < gap_ms < 100
