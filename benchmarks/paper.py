"""MNIST test digits on a sheet of paper, before the demo: `python benchmarks/paper.py BUNDLE --data DIR [--out ...]`.

Writes a video of test digits printed on paper (uneven light, blur, grain; every second one light on dark), runs
Writes a video of test digits on paper (uneven light, blur, grain; every second one light on dark), runs
Paper is composed; the digits are real and were never trained on. Needs numpy and OpenCV.
"""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import common
import cv2
import numpy as np
from numpy.typing import NDArray

SIZE_WH = (640, 480)
HOLD = 3  # frames a digit stays: the middle one is counted
FPS = 30


def digits(data: Path, n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """`n` MNIST test digits, uint8 (n, 28, 28), and their labels."""
    folder = data / "mnist"
    pixels = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    chosen = np.random.default_rng(seed).permutation(10_000)[:n]
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    return images[chosen], np.frombuffer(labels, np.uint8, offset=8)[chosen]


def on_paper(digit: NDArray[np.uint8], light_ink: bool, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A BGR frame with the digit about 200 px high in the middle; dark ink on light paper, or the other way round."""
    width, height = SIZE_WH
    paper, ink = (
        (rng.uniform(30, 80), rng.uniform(190, 240)) if light_ink else (rng.uniform(170, 235), rng.uniform(20, 70))
    )
    side = 240
    cover = np.zeros((height, width), np.float32)
    x, y = (np.array(SIZE_WH) - side) // 2 + rng.integers(-8, 9, 2)
    cover[y : y + side, x : x + side] = (
        cv2.resize(digit, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 255) / 255.0
    )
    light = (
        1
        + rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, width)[None]
        + rng.uniform(-0.1, 0.1) * np.linspace(-1, 1, height)[:, None]
    )
    picture = (paper + (ink - paper) * cover) * light
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 2.0)) + rng.normal(
        0, rng.uniform(2, 6), (height, width)
    )
    tint = np.array([0.93, 0.98, 1.0]) if not light_ink else np.ones(3)
    return (picture[:, :, None] * tint).clip(0, 255).astype(np.uint8)


def write_video(path: Path, images: NDArray[np.uint8], seed: int) -> None:
    """Each digit for `HOLD` frames; odd ones in light ink."""
    rng = np.random.default_rng(seed)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, SIZE_WH)
    for index, image in enumerate(images):
        frame = on_paper(image, index % 2 == 1, rng)
        for _ in range(HOLD):
            writer.write(frame)
    writer.release()


def snapshot(bundle: Path, video: Path, picture: Path) -> None:
    """Run the demo with its web view at the video's own rate and keep what `/snapshot.jpg` shows."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["pipeline", "demo", str(bundle), "--source", str(video), "--show", "none", "--policy", "latest"]
    demo = subprocess.Popen([sys.executable, "-m", *command, "--web", f"127.0.0.1:{port}"], stderr=subprocess.DEVNULL)
    try:
        time.sleep(6)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/snapshot.jpg", timeout=5) as response:
            picture.write_bytes(response.read())
    finally:
        demo.terminate()
        demo.wait(timeout=20)


def main() -> None:
    """Measure, print, write."""
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("bundle", type=Path)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--digits", type=int, default=1000)
    arguments.add_argument("--picture", type=Path)
    options = arguments.parse_args()
    document = common.begin("paper")
    images, labels = digits(options.data, options.digits, seed=0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "paper.avi"
        write_video(video, images, seed=1)
        for precision in ("fp32", "int8"):
            events = Path(folder) / f"{precision}.jsonl"
            common.pipeline(
                *("demo", str(options.bundle), "--source", str(video), "--show", "none", "--precision", precision),
                *("--jsonl", str(events)),
            )
            lines = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
            shown = [line["result"]["class_id"] for line in lines if line["type"] == "result"]
            right = np.array(shown[HOLD // 2 :: HOLD]) == labels
            if len(shown) != HOLD * len(labels):
                sys.exit(f"{len(shown)} answers for {HOLD * len(labels)} frames")
            for ink, part in (("dark on light", right[0::2]), ("light on dark", right[1::2])):
                rows.append({"precision": precision, "ink": ink, "n": len(part), "accuracy": float(part.mean())})
        if options.picture:
            snapshot(options.bundle, video, options.picture)
    document["rows"] = rows
    head = ("precision", "ink", "n", "read rightly")
    cells = [(row["precision"], row["ink"], str(row["n"]), f"{row['accuracy']:.2%}") for row in rows]
    common.end(document, [common.table(head, cells)], options.out)


if __name__ == "__main__":
    main()
