"""The inference thread: one frame in flight, from the captured frame to the decoded result, each part timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_demo.capture import Item
from edge_demo.channel import Channel, InTurn
from edge_demo.image import Frame, crop, fit
from edge_demo.manifest import InputContract
from edge_demo.runtime import Runtime
from edge_demo.tasks import Task


@dataclass(frozen=True, slots=True)
class Prediction:
    """The task's result for one frame, and the ms spent on crop and resize, in the model, and decoding."""

    result: Any
    pre_ms: float
    infer_ms: float
    post_ms: float


@dataclass(frozen=True, slots=True)
class Processed:
    """A frame with its prediction. `age_ms` from capture to the decoded result; `dropped` frames since the last one."""

    item: Item
    prediction: Prediction
    age_ms: float
    dropped: int


Predict = Callable[[Frame], Prediction]
Follow = Callable[[int, Any], Any]
"""(number of the source, result of its next frame) -> the result with its objects followed."""


def predictor(runtime: Runtime, task: Task, contract: InputContract, params: Mapping[str, Any]) -> Predict:
    """The call that turns a BGR uint8 HWC frame of any size into a result, on buffers bound once.

    Region, crop, resize and decode are the ones that verify and bench use: what they measured is what runs here.
    Coordinates in the result are pixels of the frame.
    """
    width, height = contract.size_wh
    bound = runtime.bind({contract.name: np.zeros((1, height, width, 3), dtype=np.uint8)})
    batch = bound.inputs[contract.name]

    def predict(frame: Frame) -> Prediction:
        start = time.perf_counter_ns()
        region = task.region(frame, params)
        batch[0] = fit(crop(frame, region), contract.size_wh, contract.resize)[0]
        ready = time.perf_counter_ns()
        bound.run()
        ran = time.perf_counter_ns()
        # The next run overwrites the bound outputs, and a result may be drawn after it has begun.
        raw = {name: array.copy() for name, array in bound.outputs.items()}
        result = task.decode(raw, params)[0]
        if task.to_frame is not None:
            result = task.to_frame(result, region, contract.resize, contract.size_wh)
        done = time.perf_counter_ns()
        return Prediction(result, (ready - start) / 1e6, (ran - ready) / 1e6, (done - ran) / 1e6)

    return predict


def following(task: Task, sources: Sequence[bool]) -> Follow | None:
    """A tracker for each source that has an order of frames (true); None where the task tracks nothing."""
    if task.follower is None or not any(sources):
        return None
    followers = [task.follower() if moving else None for moving in sources]

    def follow(source: int, result: Any) -> Any:
        own = followers[source]
        return result if own is None else own(result)

    return follow


def infer(
    frames: Channel[Item] | InTurn[Item],
    predict: Predict,
    publish: Callable[[Processed], None],
    stop: threading.Event,
    *,
    max_frames: int | None = None,
    paused: threading.Event | None = None,
    follow: Follow | None = None,
) -> None:
    """Body of the inference thread: take, predict, publish; until the frames end, `max_frames` or `stop`.

    While `paused` is set nothing is taken: a live source goes on dropping frames, a file waits.

    One request in flight: two raise the rate by a third and double the delay (measured), wrong for a live picture.
    """
    last_ids: dict[int, int] = {}
    processed = 0
    while not stop.is_set() and processed != max_frames:
        if paused is not None and paused.is_set():
            stop.wait(0.05)
            continue
        item = frames.get(0.1)
        if item is None:
            if frames.ended:
                return
            continue
        prediction = predict(item.captured.frame)
        if follow is not None:
            prediction = replace(prediction, result=follow(item.source, prediction.result))
        age_ms = (time.monotonic_ns() - item.captured.t_mono_ns) / 1e6
        publish(Processed(item, prediction, age_ms, item.frame_id - last_ids.get(item.source, -1) - 1))
        last_ids[item.source] = item.frame_id
        processed += 1
