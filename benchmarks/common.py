"""What the scripts share: running a command and measuring it, facts about the host, tables, the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("train-to-edge", "numpy", "torch", "lightning-fabric", "onnx", "onnxruntime", "openvino")


@dataclass(frozen=True, slots=True)
class Done:
    """A finished command. CPU and RSS cover it and its children; RSS is that of the largest single process."""

    exit_code: int
    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    stdout: str
    stderr: str


def parser(description: str) -> argparse.ArgumentParser:
    """`--out`, which every script takes."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--out", type=Path, help="write all numbers as JSON to this file")
    return made


def environment(data: Path | None) -> dict[str, str]:
    """This process's environment, with PIPELINE_DATA as asked for."""
    return {**os.environ, **({"PIPELINE_DATA": str(data.resolve())} if data else {})}


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    may_exit: tuple[int, ...] = (),
) -> Done:
    """Run a command to its end and measure it; stop with its last lines when it fails.

    Linux starts a child's peak RSS at that of the process that started it, so scripts here import nothing heavy.
    Source: getrusage(2), ru_maxrss; `begin_new_exec` in fs/exec.c carries the old high-water mark over.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=env, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    if process.returncode not in (0, *may_exit):
        sys.exit(f"exit code {process.returncode}: {' '.join(command)}\n{texts[0][-2000:]}{texts[1][-4000:]}")
    # ru_maxrss is KiB on Linux and bytes on macOS (getrusage(2) of each).
    rss_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Done(process.returncode, wall_s, usage.ru_utime + usage.ru_stime, rss_bytes / 1e6, *texts)


def pipeline(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Done:
    """`pipeline ...` of this Python, as typed; a missed gate (exit code 3) is a result, not a failure."""
    script = Path(sys.executable).parent / "pipeline"
    return run([str(script), *arguments], env=env, cwd=cwd, may_exit=(3,))


def host() -> dict[str, Any]:
    """What the numbers were measured on; no host name, no path."""
    cpu = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def software() -> dict[str, str]:
    """Installed versions, without importing any of them."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def begin(script: str) -> dict[str, Any]:
    """The head of a result: taken before measuring, so that the load average is that of the others."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"benchmark": script, "created": created, "host": host(), "software": software()}


def end(document: dict[str, Any], tables: Sequence[str], out: Path | None) -> None:
    """Print host and tables, write the JSON."""
    document["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    facts, libraries = document["host"], document["software"]
    print(f"{facts['cpu']}, {facts['cores_usable']} of {facts['cores']} cores, {facts['system']}, "
          f"load average {facts['load_average'][0]} before and {document['load_average_after'][0]} after; "
          f"{', '.join(f'{name} {number}' for name, number in libraries.items())}")  # fmt: skip
    for text in tables:
        print(f"\n{text}")
    if out:
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column left, the others right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """`mean [smallest, largest]`; a single value as it is."""
    shown = [f"{value:.{digits}f}" for value in (statistics.fmean(values), min(values), max(values))]
    return f"{shown[0]}{unit}" if len(values) == 1 else f"{shown[0]}{unit} [{shown[1]}, {shown[2]}]"
