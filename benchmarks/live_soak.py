"""Memory over half an hour: `python benchmarks/live_soak.py BUNDLE [--minutes 30] [--rate 240] [--out FILE.json]`.

The program as installed, recording, with four web viewers that read and two that are stuck (each comes back once it was
thrown out), on a loopback camera. Accelerated: the camera sends `--rate` frames per second, and a minute is the 1800
frames of a minute at 30 FPS. After five minutes, in which percentiles and queues fill up, memory may not grow by 2 %.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import common
import live
from live_cost import running, web_address

GROWTH = 0.02
MINUTE = 1800  # frames
FILLING = 5  # minutes
SPAN = 3  # minutes at either end that are compared
READERS, STUCK = 4, 2


def rss_bytes(pid: int) -> int:
    """Resident memory. Source: proc_pid_status(5), VmRSS in kB."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def reader(address: str, end: threading.Event, pictures: list[int], own: int) -> None:
    """A viewer that reads whatever comes, and comes again when the stream ends."""
    while not end.is_set():
        try:
            with urllib.request.urlopen(f"{address}stream.mjpg", timeout=10) as stream:
                while not end.is_set():
                    pictures[own] += stream.read1(65536).count(b"Content-Length")
        except OSError:
            end.wait(0.2)


def stuck(address: str, end: threading.Event, thrown_out: list[int], own: int) -> None:
    """A viewer that asks for the stream and takes nothing; once it is thrown out it comes again."""
    parts = urlsplit(address)
    while not end.is_set():
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((parts.hostname or "", parts.port or 0))
            connection.sendall(f"GET /stream.mjpg HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
            begun_s = time.monotonic()
            while not end.is_set() and time.monotonic() - begun_s < 6:  # it is cut off after five seconds
                time.sleep(0.2)
        thrown_out[own] += 1


def stats(address: str) -> dict[str, float]:
    """The demo's own figures."""
    with urllib.request.urlopen(f"{address}stats.json", timeout=10) as answer:
        return dict(json.load(answer))


def sample(address: str, pid: int, minutes: float) -> tuple[list[tuple[float, int]], int]:
    """(accelerated minute, resident bytes), four a second, until that many were processed; and the most viewers."""
    samples: list[tuple[float, int]] = []
    most_viewers = 0
    while not samples or samples[-1][0] < minutes:
        now = stats(address)
        samples.append((now["processed"] / MINUTE, rss_bytes(pid)))
        most_viewers = max(most_viewers, int(now["viewers"]))
        time.sleep(0.25)
    return samples, most_viewers


def median_mb(samples: list[tuple[float, int]], keep: Callable[[float], bool]) -> float:
    """Of the samples in those minutes, in MB."""
    return statistics.median(size for minute, size in samples if keep(minute)) / 1e6


def main() -> None:
    """Measure, print, write; exit code 1 when a claim does not hold."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=240.0)
    options = parser.parse_args()
    document = common.begin("live_soak")
    end, pictures, thrown_out = threading.Event(), [0] * READERS, [0] * STUCK
    with live.camera("bank", fps=options.rate) as camera, tempfile.TemporaryDirectory() as folder:
        command = ["-m", "pipeline", "demo", str(options.bundle), "--source", camera.url, "--show", "none"]
        command += ["--runtime", "onnxruntime", "--threads", "1", "--web", "127.0.0.1:0"]
        command += ["--record", folder, "--record-cap-mb", "40", "--jsonl", f"{folder}/lines.jsonl"]
        with running(*command) as demo:
            address = web_address(demo)
            viewers = [threading.Thread(target=stuck, args=(address, end, thrown_out, own)) for own in range(STUCK)]
            viewers += [threading.Thread(target=reader, args=(address, end, pictures, own)) for own in range(READERS)]
            for viewer in viewers:
                viewer.start()
            start_s = time.monotonic()
            try:
                samples, most_viewers = sample(address, demo.pid, FILLING + options.minutes)
                last = stats(address)
            finally:
                end.set()
            seconds = time.monotonic() - start_s
            for viewer in viewers:
                viewer.join()
    first = median_mb(samples, lambda minute: FILLING <= minute < FILLING + SPAN)
    final = median_mb(samples, lambda minute: minute >= FILLING + options.minutes - SPAN)
    growth = final / first - 1
    held = growth < GROWTH and min(pictures) > 0 and most_viewers == READERS + STUCK
    document |= {
        "seconds": seconds,
        "samples": samples,
        "pictures": pictures,
        "came_again": thrown_out,
        "most_viewers": most_viewers,
        "first_mb": first,
        "final_mb": final,
        "growth": growth,
        "stats": last,
        "held": held,
    }
    rows = [
        ("frames processed, dropped", f"{last['processed']}, {last['dropped']}"),
        ("seconds, frames per second", f"{seconds:.0f}, {last['processed'] / seconds:.0f}"),
        ("pictures each reading viewer got", ", ".join(map(str, pictures))),
        ("RSS in the first minute, MB", f"{median_mb(samples, lambda minute: minute < 1):.1f}"),
        (f"RSS after {FILLING} minutes, MB", f"{first:.1f}"),
        (f"RSS after {FILLING + options.minutes:g} minutes, MB", f"{final:.1f}"),
        ("growth", f"{growth:+.2%}"),
    ]
    head = (f"{READERS} viewers that read, {STUCK} that are stuck", "found")
    note = f"Growth below {GROWTH:.0%} in {options.minutes:g} minutes of 30 FPS: {'yes' if held else 'NO'}."
    common.end(document, [common.table(head, rows), note], options.out)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
