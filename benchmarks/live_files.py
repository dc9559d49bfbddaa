"""Frames per second on a video file, ours and the naive loop's: `python benchmarks/live_files.py [--out FILE.json]`.

Both decode, resize, infer and write one JSON line per frame, every frame in order. The runs alternate, the ratio is
taken within each round and its median is quoted. Models are stand-ins that wait like an accelerator.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import cv2
import live
import numpy as np

from edge_demo.loop import predictor
from edge_demo.tasks import TASKS

MODELS_MS = (0.0, 3.0, 6.0, 20.0)
SIZE_WH = (1280, 720)
# "Can overlap": decoding and the model side by side would take two thirds of one after the other, or less.
OVERLAP = 1.5
LEAST, GAIN = 0.95, 1.2


def make_video(path: Path, frames: int) -> None:
    """A textured MJPEG video."""
    random = np.random.default_rng(0)
    base = cv2.resize(random.integers(0, 255, (24, 42, 3), dtype=np.uint8), SIZE_WH)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, SIZE_WH)
    for number in range(frames):
        writer.write(np.roll(base, number * 7, axis=1))
    writer.release()


def naive(video: Path, out: Path, delay_s: float) -> tuple[float, int]:
    """(seconds, frames) of read, predict, write, one after the other."""
    task, params = TASKS["classify"], {"roi": 0.5}
    predict = predictor(live.StandIn(delay_s), task, live.CONTRACT, params)
    reader, count = cv2.VideoCapture(str(video)), 0
    start = time.perf_counter()
    with out.open("w") as lines:
        while True:
            ok, frame = reader.read()
            if not ok:
                break
            prediction = predict(frame)
            line = {"frame_id": count, "result": task.to_json(prediction.result, live.MANIFEST.labels)}
            lines.write(json.dumps(line) + "\n")
            count += 1
    seconds = time.perf_counter() - start
    reader.release()
    return seconds, count


def ours(video: Path, out: Path, delay_s: float) -> tuple[float, int]:
    """(seconds, frames) of the demo; order and completeness are checked from its lines."""
    summary = live.demo({"source": str(video), "jsonl": str(out), "show": "none"}, delay_s)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    numbers = [line["frame_id"] for line in lines if line["type"] == "result"]
    if numbers != list(range(len(numbers))):
        sys.exit("the demo's lines are not complete and in order")
    return summary.stats.seconds, len(numbers)


def decode_ms(video: Path) -> float:
    """Median time to decode one frame."""
    reader, times = cv2.VideoCapture(str(video)), []
    while True:
        start = time.perf_counter()
        if not reader.read()[0]:
            return 1e3 * statistics.median(times)
        times.append(time.perf_counter() - start)


def main() -> None:
    """Measure, print, write; exit code 1 when a claim does not hold."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=400)
    options = parser.parse_args()
    document = common.begin("live_files")
    cv2.setNumThreads(1)
    rows, results, held = [], [], True
    with tempfile.TemporaryDirectory() as folder:
        video, out = Path(folder) / "video.avi", Path(folder) / "out.jsonl"
        make_video(video, options.frames)
        decoding_ms = decode_ms(video)
        for model_ms in MODELS_MS:
            rounds: list[dict[str, Any]] = []
            for number in range(options.rounds):
                pair = [("naive", naive), ("ours", ours)]
                seconds = {}
                for name, function in pair if number % 2 else reversed(pair):
                    seconds[name], count = function(video, out, model_ms / 1e3)
                    if count != options.frames:
                        sys.exit(f"{name}: {count} of {options.frames} frames")
                rounds.append({"naive_s": seconds["naive"], "ours_s": seconds["ours"]})
            ratios = [entry["naive_s"] / entry["ours_s"] for entry in rounds]
            ratio = statistics.median(ratios)
            ideal = (decoding_ms + model_ms) / max(decoding_ms, model_ms)
            overlap = ideal >= OVERLAP
            held &= ratio >= (GAIN if overlap else LEAST)
            results.append({"model_ms": model_ms, "rounds": rounds, "ratio": ratio, "ideal": ideal})
            fps = [options.frames / statistics.median(entry[key] for entry in rounds) for key in ("naive_s", "ours_s")]
            shown = f"{ratio:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            rows.append([f"{model_ms:g} ms", *(f"{value:.0f}" for value in fps), shown, f"{ideal:.2f}"])
    document |= {"decode_ms": decoding_ms, "results": results, "held": held}
    head = [
        f"model ({options.frames} frames, {options.rounds} rounds)",
        "naive FPS",
        "demo FPS",
        "ratio",
        "ideal",
    ]
    note = (
        f"Decoding takes {decoding_ms:.1f} ms a frame. At least {GAIN}x where {OVERLAP}x is ideal, {LEAST}x elsewhere: "
    )
    common.end(document, [common.table(head, rows), note + ("yes." if held else "NO.")], options.out)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
