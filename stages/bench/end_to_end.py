"""The `e2e` body: JPEG bytes as a camera delivers them -> frame -> resized -> model -> decoded result, stage by stage.

Crop, resize, inference and decoding are the very call the demo makes (`edge_demo.loop.predictor`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_demo.image import Frame, load_cv2
from edge_demo.loop import predictor
from edge_demo.manifest import InputContract
from edge_demo.runtime import Runtime
from edge_demo.tasks import TASKS
from stages.bench.subject import Body, Request, Timed

SOURCE_WH = (640, 480)  # the mode every USB camera has; most deliver it as JPEG
QUALITY = 90
PICTURES = 8
STAGES = ("decode", "resize", "infer", "result")


def end_to_end(runtime: Runtime, request: Request) -> Body:
    """The body, on a few of the bundle's frames enlarged to `SOURCE_WH` and compressed."""
    cv2 = load_cv2()
    cv2.setNumThreads(request["threads"])
    task, contract = TASKS[request["task"]], InputContract.model_validate(request["contract"])
    predict = predictor(runtime, task, contract, request["params"])
    pictures = [_jpeg(cv2, frame) for frame in np.load(Path(request["frames"]), mmap_mode="r")[:PICTURES]]

    def body(seconds: float, min_runs: int) -> Timed:
        clock = time.perf_counter_ns
        times: list[int] = []
        spent = np.zeros(len(STAGES))
        before = clock()
        end = before + int(seconds * 1e9)
        while before < end or len(times) < min_runs:
            frame = cv2.imdecode(pictures[len(times) % len(pictures)], cv2.IMREAD_COLOR)
            decoded = clock()
            done = predict(frame)
            spent += ((decoded - before) / 1e6, done.pre_ms, done.infer_ms, done.post_ms)
            now = clock()
            times.append(now - before)
            before = now
        stages = dict(zip(STAGES, (spent / len(times) * 1e3).tolist(), strict=True))
        return Timed(len(times), sum(times), np.array(times, dtype=np.int64), {"stage_us": stages})

    return body


def _jpeg(cv2: Any, frame: Frame) -> np.ndarray[Any, Any]:
    encode: Callable[..., tuple[bool, np.ndarray[Any, Any]]] = cv2.imencode
    enlarged = cv2.resize(np.ascontiguousarray(frame), SOURCE_WH, interpolation=cv2.INTER_LINEAR)
    return encode(".jpg", enlarged, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
