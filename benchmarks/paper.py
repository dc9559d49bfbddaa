"""MNIST test digits on a sheet of paper, before the demo: `python benchmarks/paper.py BUNDLE --data DIR [--out ...]`.

Shows the demo the same digits twice: as they are ("clean"), and on paper (texture, perspective, a shadow, blur, grain;
every second one light on dark). FP32 and INT8 each have to keep 95 % of their clean accuracy on paper. `--picture FILE`
keeps what the web view shows of it. Paper is composed; the digits are real and were never trained on.
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
from typing import Any

import common
import cv2
import numpy as np
from numpy.typing import NDArray

SIZE_WH = (640, 480)
HOLD = 3  # frames a digit stays: the middle one is counted
FPS = 30
KEPT = 0.95  # share of the clean accuracy


def digits(data: Path, n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """`n` MNIST test digits, uint8 (n, 28, 28), and their labels."""
    folder = data / "mnist"
    pixels = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    chosen = np.random.default_rng(seed).permutation(10_000)[:n]
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    return images[chosen], np.frombuffer(labels, np.uint8, offset=8)[chosen]


def on_paper(digit: NDArray[np.uint8], light_ink: bool, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A BGR frame with the digit about 200 px high in the middle; dark ink on light paper, or the other way round.

    Flat sheet first (fibres, ink), then seen by a camera: tilted, lit unevenly, in a shadow, out of focus, with grain.
    """
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
    picture = tilted((paper + (ink - paper) * cover + texture(rng)).astype(np.float32), rng)
    picture = picture * lit(rng) * shadow(rng)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 2.0))
    picture = picture + rng.normal(0, rng.uniform(2, 6), (height, width))
    tint = np.array([0.93, 0.98, 1.0]) if not light_ink else np.ones(3)
    return (picture[:, :, None] * tint).clip(0, 255).astype(np.uint8)


def texture(rng: np.random.Generator) -> NDArray[np.float32]:
    """Fibres and blotches of paper: grey levels to add, float32 (height, width)."""
    width, height = SIZE_WH
    grain = rng.normal(0, 1, (height, width)).astype(np.float32)
    fibres = cv2.GaussianBlur(grain, (0, 0), 0.8, sigmaY=2.5)
    blotches = cv2.resize(grain[: height // 16, : width // 16], SIZE_WH, interpolation=cv2.INTER_CUBIC)
    return np.asarray(fibres / fibres.std() * 3 + blotches * 2, dtype=np.float32)


def tilted(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The sheet seen from a little aside: corners moved by up to 8 % of the picture, turned by up to 6 degrees."""
    width, height = SIZE_WH
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-6, 6), 1.0)
    seen = corners @ turn[:, :2].T + turn[:, 2] + rng.uniform(-0.08, 0.08, (4, 2)) * SIZE_WH
    matrix = cv2.getPerspectiveTransform(corners, seen.astype(np.float32))
    return np.asarray(cv2.warpPerspective(picture, matrix, SIZE_WH, borderMode=cv2.BORDER_REFLECT), dtype=np.float32)


def lit(rng: np.random.Generator) -> NDArray[np.float64]:
    """Uneven light: a factor around 1 that changes across the picture."""
    across, down = (np.linspace(-1, 1, length) for length in SIZE_WH)
    return np.asarray(1 + rng.uniform(-0.15, 0.15) * across[None] + rng.uniform(-0.1, 0.1) * down[:, None])


def shadow(rng: np.random.Generator) -> NDArray[np.float64]:
    """The soft shadow of something beside the camera: a half plane whose edge goes through the middle part."""
    across, down = (np.linspace(-1, 1, length) for length in SIZE_WH)
    angle, edge, soft = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4), rng.uniform(0.05, 0.3)
    distance = across[None] * np.cos(angle) + down[:, None] * np.sin(angle) - edge
    return np.asarray(1 - rng.uniform(0.1, 0.3) / (1 + np.exp(-distance / soft)))


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


def read(bundle: Path, source: Path, precision: str, events: Path) -> NDArray[np.int64]:
    """What the demo reads on each frame of a video or a folder of pictures: class ids, int64 (frames,)."""
    common.pipeline(
        *("demo", str(bundle), "--source", str(source), "--show", "none", "--precision", precision),
        *("--jsonl", str(events)),
    )
    lines = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    return np.array([line["result"]["class_id"] for line in lines if line["type"] == "result"])


def main() -> None:
    """Measure, print, write; exit code 1 when a claim does not hold."""
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
        video, stills = Path(folder) / "paper.avi", Path(folder) / "clean"
        write_video(video, images, seed=1)
        stills.mkdir()
        for index, image in enumerate(images):
            cv2.imwrite(str(stills / f"{index:05d}.png"), image)
        for precision in ("fp32", "int8"):
            events = Path(folder) / f"{precision}.jsonl"
            clean = read(options.bundle, stills, precision, events)
            shown = read(options.bundle, video, precision, events)
            if (len(clean), len(shown)) != (len(labels), HOLD * len(labels)):
                sys.exit(f"{len(clean)} and {len(shown)} answers for {len(labels)} digits, each held {HOLD} frames")
            rows += kept(precision, clean == labels, shown[HOLD // 2 :: HOLD] == labels)
        if options.picture:
            snapshot(options.bundle, video, options.picture)
    held = all(row["kept"] >= KEPT for row in rows)
    document |= {"rows": rows, "held": held}
    head = ("precision", "ink", "n", "clean", "on paper", "kept")
    cells = [
        (row["precision"], row["ink"], str(row["n"]), *(f"{row[key]:.2%}" for key in ("clean", "paper", "kept")))
        for row in rows
    ]
    note = f"At least {KEPT:.0%} of the clean accuracy kept: {'yes' if held else 'NO'}."
    common.end(document, [common.table(head, cells), note], options.out)
    sys.exit(0 if held else 1)


def kept(precision: str, clean: NDArray[np.bool_], paper: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """A row per ink: the same digits clean and on paper."""
    rows = []
    for offset, ink in enumerate(("dark on light", "light on dark")):
        before, after = clean[offset::2], paper[offset::2]
        row = {"clean": float(before.mean()), "paper": float(after.mean()), "kept": float(after.mean() / before.mean())}
        rows.append({"precision": precision, "ink": ink, "n": len(after), **row})
    return rows


if __name__ == "__main__":
    main()
