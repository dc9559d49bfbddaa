"""How the demo ends: `python benchmarks/live_shutdown.py BUNDLE [--rounds 3] [--out FILE.json]`.

SIGTERM while a read blocks on a frozen camera (HTTP and RTSP) has to end the program within the read time-out and one
second, with recordings that play; after SIGKILL every closed file has to play, and the open one up to its last frames.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import cv2
import live

LIMIT_S = 2.0 + 1.0  # the read time-out, and one second
PATIENCE_S = 60.0
CAP_MB = 20  # a file is closed at a quarter of it


@contextmanager
def recording(bundle: Path, url: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The program as installed, recording; it never outlives this script."""
    command = [sys.executable, "-m", "pipeline", "demo", str(bundle), "--source", url, "--show", "none"]
    command += ["--runtime", "onnxruntime", "--threads", "1"]
    command += ["--web", "127.0.0.1:0", "--record", str(folder), "--record-cap-mb", str(CAP_MB)]
    demo = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield demo
    finally:
        demo.kill()
        demo.communicate(timeout=PATIENCE_S)


def until(condition: Callable[[], bool]) -> None:
    """Wait for it; ends the script when it never comes."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end_s:
            sys.exit("the demo does not record")
        time.sleep(0.05)


def frames(video: Path) -> int:
    """How many frames of the file can be read."""
    reader, count = cv2.VideoCapture(str(video)), 0
    while reader.read()[0]:
        count += 1
    reader.release()
    return count


def lines(video: Path) -> int:
    """How many frames its side file tells of."""
    stem = video.name.removesuffix(".avi").removesuffix(".part")
    text = video.with_name(f"{stem}.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line).get("type") == "result" for line in text)


def terminated(bundle: Path, kind: str) -> dict[str, Any]:
    """SIGTERM in a dead read: seconds to the end, exit code, and whether every recorded frame can be read."""
    with (
        live.camera(kind) as camera,
        tempfile.TemporaryDirectory() as name,
        recording(bundle, camera.url, folder := Path(name)) as demo,
    ):
        until(lambda: any(path.stat().st_size > 200_000 for path in folder.glob("*.part.avi")))
        camera.ask("stall")
        time.sleep(0.5)  # the capture thread sits in the read now
        since_s = time.monotonic()
        demo.send_signal(signal.SIGTERM)
        demo.wait(timeout=PATIENCE_S)
        seconds = time.monotonic() - since_s
        videos = sorted(folder.glob("*.avi"))
        whole = not list(folder.glob("*.part.*")) and all(frames(video) == lines(video) > 0 for video in videos)
    return {"seconds": seconds, "exit_code": demo.returncode, "frames_whole": whole and bool(videos)}


def killed(bundle: Path) -> dict[str, Any]:
    """SIGKILL with two closed files: whether they play whole, and how much of the open one does."""
    with (
        live.camera("http", fps=60) as camera,
        tempfile.TemporaryDirectory() as name,
        recording(bundle, camera.url, folder := Path(name)) as demo,
    ):
        until(lambda: len([path for path in folder.glob("*.avi") if ".part" not in path.name]) >= 2)
        until(lambda: any(path.stat().st_size > 500_000 for path in folder.glob("*.part.avi")))
        demo.kill()
        demo.wait(timeout=PATIENCE_S)
        parts = sorted(folder.glob("*.part.avi"))
        closed = [video for video in sorted(folder.glob("*.avi")) if video not in parts]
        whole = all(frames(video) == lines(video) > 0 for video in closed)
        open_frames, open_lines = (sum(count(part) for part in parts) for count in (frames, lines))
    return {"closed": len(closed), "closed_whole": whole, "open_frames": open_frames, "open_lines": open_lines}


def main() -> None:
    """Measure, print, write; exit code 1 when a claim does not hold."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    document = common.begin("live_shutdown")
    rows, held = [], True
    for kind in ("http", "rtsp"):
        runs = [terminated(options.bundle, kind) for _ in range(options.rounds)]
        document[f"sigterm_{kind}"] = runs
        kept = all(run["seconds"] <= LIMIT_S and run["exit_code"] == 0 and run["frames_whole"] for run in runs)
        held &= kept
        most = max(run["seconds"] for run in runs)
        found = f"{most:.2f} s at most, every recorded frame readable: {'yes' if kept else 'NO'}"
        rows.append((f"SIGTERM in a dead read, {kind}", str(len(runs)), found))
    runs = [killed(options.bundle) for _ in range(options.rounds)]
    document["sigkill"] = runs
    held &= all(run["closed_whole"] for run in runs)
    closed, frames_open, lines_open = (sum(run[key] for run in runs) for key in ("closed", "open_frames", "open_lines"))
    found = f"{closed} closed files whole: {'yes' if all(run['closed_whole'] for run in runs) else 'NO'}; "
    rows.append(("SIGKILL", str(len(runs)), f"{found}open files {frames_open} of {lines_open} frames"))
    document["held"] = held
    common.end(document, [common.table(("ended by", "n", "found"), rows)], options.out)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
