"""CPU of the demo at 30 FPS: `python benchmarks/live_cost.py BUNDLE [--seconds 20] [--rounds 3] [--out FILE.json]`.

The program as installed, with a web viewer that reads, against a bare loop that only decodes frames of a like camera
and encodes each as JPEG. Both run side by side, cameras in processes of their own; what the demo needs above the bare
loop has to stay below 15 % of one core.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import live

ABOVE = 0.15  # of one core
SETTLE_S = 6.0
BARE = """
import sys, cv2
cv2.setNumThreads(1)
reader = cv2.VideoCapture(sys.argv[1], cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
while True:
    ok, frame = reader.read()
    if not ok:
        break
    cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 80])
"""


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """The command, ended in order afterwards."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=20)


def web_address(demo: subprocess.Popen[str]) -> str:
    """What the demo says its web view is at."""
    assert demo.stderr
    for line in demo.stderr:
        if found := re.match(r"web view: (\S+)", line):
            threading.Thread(target=demo.stderr.read, daemon=True).start()
            return found[1]
    sys.exit("the demo has no web view")


def cpu_s(process: subprocess.Popen[str]) -> float:
    """CPU time of a running process. Source: proc_pid_stat(5), fields 14 and 15, in clock ticks."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(address: str, seconds: float) -> int:
    """Read the stream for that long; returns how many pictures came."""
    end_s, pictures = time.monotonic() + seconds, 0
    with urllib.request.urlopen(f"{address}stream.mjpg", timeout=10) as stream:
        while time.monotonic() < end_s:
            pictures += stream.read1(65536).count(b"Content-Length")
    return pictures


def measure(bundle: Path, seconds: float) -> dict[str, Any]:
    """One run of both; shares of one core."""
    demo_command = ("-m", "pipeline", "demo", str(bundle), "--show", "none", "--web", "127.0.0.1:0")
    engine = ("--runtime", "onnxruntime", "--threads", "1")
    with (
        live.camera("http") as first,
        live.camera("http") as second,
        running("-c", BARE, first.url) as bare,
        running(*demo_command, *engine, "--source", second.url) as demo,
    ):
        address = web_address(demo)
        pictures: list[int] = []
        viewer = threading.Thread(target=lambda: pictures.append(watch(address, SETTLE_S + seconds)))
        viewer.start()
        time.sleep(SETTLE_S)
        start_s, before = time.monotonic(), (cpu_s(bare), cpu_s(demo))
        time.sleep(seconds)
        span_s, after = time.monotonic() - start_s, (cpu_s(bare), cpu_s(demo))
        viewer.join()
    shares = [(late - early) / span_s for early, late in zip(before, after, strict=True)]
    fps = pictures[0] / (SETTLE_S + seconds)
    return {"bare": shares[0], "demo": shares[1], "above": shares[1] - shares[0], "viewer_fps": fps}


def main() -> None:
    """Measure, print, write; exit code 1 when a claim does not hold."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    document = common.begin("live_cost")
    runs = [measure(options.bundle, options.seconds) for _ in range(options.rounds)]
    held = all(run["above"] < ABOVE for run in runs)
    document |= {"runs": runs, "held": held}
    head = (f"30 FPS, 640x480, {options.rounds} x {options.seconds:g} s", "% of one core")
    names = {"bare": "decode and encode alone", "demo": "the demo, one web viewer", "above": "above"}
    rows = [(text, common.spread([100 * run[key] for run in runs], 1)) for key, text in names.items()]
    rows.append(("pictures the viewer got per s", common.spread([run["viewer_fps"] for run in runs], 1)))
    note = f"Below {ABOVE:.0%} of one core above decode and encode: {'yes' if held else 'NO'}."
    common.end(document, [common.table(head, rows), note], options.out)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
