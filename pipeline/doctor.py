"""What is installed and usable here, and what to type where it is not: `pipeline doctor`. Imports no heavy library."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from pipeline.keys import installed_version

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "": ("numpy", "pydantic", "typer", "rich", "onnxruntime", "openvino"),
    "train": ("torch", "lightning-fabric", "onnx", "onnxscript", "safetensors", "matplotlib", "jinja2", "mlxtend"),
}
"""Extra -> the distributions it brings; the empty one is what every install has."""
FREE_BYTES = 1_000_000_000  # a run of the default preset takes 0.1 GB; a torch install 0.9 GB
ISA = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
"""CPU features that make INT8 or bf16 fast. Source: Linux, arch/x86 and arch/arm64 cpufeature names."""

GLIBC = (2, 35)  # of the OpenVINO wheels since 2024.6 (manylinux_2_35)
THERMAL = Path("/sys/class/thermal")
HOT_C = 80.0  # Raspberry Pi 4 and 5 begin to throttle at 80 C
VIDEO_PROBE = """
import json, os, tempfile
os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
import cv2
cv2.utils.logging.setLogLevel(0)
registry = cv2.videoio_registry
names = lambda ids: [registry.getBackendName(i) for i in ids if registry.hasBackend(i)]
def writes(fourcc, suffix):
    with tempfile.TemporaryDirectory() as folder:
        writer = cv2.VideoWriter(folder + "/x" + suffix, cv2.VideoWriter_fourcc(*fourcc), 30, (64, 64))
        works = writer.isOpened()
        writer.release()
    return works
print(json.dumps({
    "backends": sorted(set(names(registry.getCameraBackends()) + names(registry.getStreamBackends()))),
    "encoders": {"avi (MJPG)": writes("MJPG", ".avi"), "webm (VP8)": writes("VP80", ".webm")},
}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    name: str
    status: Literal["ok", "absent", "broken"]
    """absent: some commands do not work without it; broken: what is there does not work."""
    found: str
    hint: str = ""
    """What to type; empty when all is well."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything; changes nothing."""
    return [
        Finding("python", "ok", f"{platform.python_version()} ({sys.executable})"),
        *(_library(name, extra) for extra, names in EXTRAS.items() for name in names),
        _opencv(),
        _display(),
        _cameras(),
        *_video(),
        *_board(),
        *_host(),
        _disk(Path.cwd()),
        _data(),
    ]


def _library(name: str, extra: str) -> Finding:
    version = installed_version(name)
    if version:
        return Finding(name, "ok", version + (_torch_build(version) if name == "torch" else ""))
    package = f"'train-to-edge[{extra}]'" if extra else "train-to-edge"
    return Finding(name, "absent" if extra else "broken", "not installed", f"type: pip install {package}")


def _torch_build(version: str) -> str:
    """CPU or GPU build, from the version's local part; importing torch would take seconds."""
    local = version.partition("+")[2]
    if local:
        return f" ({'CPU build' if local == 'cpu' else f'GPU build {local}'})"
    gpu = any(installed_version(name) for name in ("nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"))
    return " (GPU build)" if gpu else ""


def _opencv() -> Finding:
    window, headless = installed_version("opencv-python"), installed_version("opencv-python-headless")
    if window and headless:
        hint = "type: pip uninstall opencv-python opencv-python-headless, then pip install 'train-to-edge[edge]'"
        return Finding("opencv", "broken", "both wheels are installed and overwrite each other", hint)
    if window:
        return Finding("opencv", "ok", f"{window} (with windows)")
    if headless:
        return Finding("opencv", "ok", f"{headless} (headless: no window; pipeline demo --show none)")
    return Finding("opencv", "absent", "not installed", "type: pip install 'train-to-edge[edge]' or [headless]")


def _display() -> Finding:
    screen = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
    if screen or sys.platform in ("darwin", "win32"):
        return Finding("display", "ok", screen or sys.platform)
    return Finding("display", "absent", "no DISPLAY", "type: pipeline demo BUNDLE --show none --jsonl -")


def _cameras(dev: Path = Path("/dev")) -> Finding:
    """Which device files there are and whether this user may open them; nothing is opened."""
    from edge_demo.cameras import PERMISSION, nodes

    there = nodes(dev)
    if not sys.platform.startswith("linux"):
        return Finding("cameras", "ok", "not examined here: type: pipeline demo --list-cameras")
    if not there:
        return Finding("cameras", "absent", "no /dev/video*", "try: pipeline demo BUNDLE --source synthetic")
    closed = [node.name for node in there if not os.access(node, os.R_OK | os.W_OK)]
    if closed:
        return Finding("cameras", "absent", f"no permission for {', '.join(closed)}", PERMISSION)
    return Finding("cameras", "ok", ", ".join(node.name for node in there))


def _video() -> list[Finding]:
    """What OpenCV can read and write: asked in a process of its own, so that this one stays light."""
    if not (installed_version("opencv-python") or installed_version("opencv-python-headless")):
        return []
    try:
        done = subprocess.run(
            [sys.executable, "-c", VIDEO_PROBE], capture_output=True, text=True, timeout=60, check=True
        )
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        hint = "type: python -c 'import cv2', and install what it misses (libGL, libglib2.0)"
        return [Finding("video", "broken", "OpenCV cannot be used", hint)]
    encoders = [name for name, works in answer["encoders"].items() if works]
    missing = [name for name, works in answer["encoders"].items() if not works]
    hint = f"not here: {', '.join(missing)}; --record needs them" if missing else ""
    return [
        Finding("video", "ok", f"reads through {', '.join(answer['backends'])}"),
        Finding("encoders", "ok" if not missing else "absent", ", ".join(encoders) or "none", hint),
    ]


def _board() -> list[Finding]:
    """What a small computer says of itself: model, C library, heat."""
    findings = []
    model = _line(Path("/proc/device-tree/model"))
    if model:
        findings.append(Finding("board", "ok", model))
    if platform.machine() in ("armv6l", "armv7l") or sys.maxsize < 2**32:
        hint = "install a 64-bit system: onnxruntime and openvino have no 32-bit wheels"
        findings.append(Finding("architecture", "broken", f"{platform.machine()}, 32 bits", hint))
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) < GLIBC:
        wanted = ".".join(map(str, GLIBC))
        findings.append(
            Finding("glibc", "absent", version, f"new OpenVINO wheels need {wanted}; pip takes an old one here")
        )
    zones = [int(text) / 1000 for path in THERMAL.glob("thermal_zone*/temp") if (text := _line(path)).isdigit()]
    if zones:
        hot = max(zones) >= HOT_C
        hint = "cool it before a benchmark: processors slow down when hot" if hot else ""
        findings.append(Finding("temperature", "absent" if hot else "ok", f"{max(zones):.0f} C", hint))
    return findings


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _host() -> list[Finding]:
    from stages.bench.system import system

    host = system()
    fast = [flag for flag in ISA if flag in host.isa]
    limit = "" if host.cgroup_quota is None else f", cgroup quota {host.cgroup_quota:g}"
    return [
        Finding("cpu", "ok", f"{host.cpu_model or 'unknown'} ({host.arch})"),
        Finding("cpu features", "ok", ", ".join(fast) or "none of " + ", ".join(ISA)),
        Finding("cpus", "ok", f"{host.cores_effective} usable of {host.cores_logical}{limit}"),
    ]


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if free >= FREE_BYTES:
        return Finding("disk", "ok", f"{free / 1e9:.1f} GB free in {folder}")
    return Finding("disk", "absent", f"only {free / 1e9:.2f} GB free in {folder}", "free some space before a run")


def _data() -> Finding:
    from stages.data.sets import list_sets, root_of

    present = [row.name for row in list_sets() if row.present and row.where != "data.path"]
    missing = [row.name for row in list_sets() if not row.present]
    found = f"{', '.join(present) or 'none'} (root {root_of('')})"
    if not missing:
        return Finding("data sets", "ok", found)
    hint = f"not here: {', '.join(missing)}; set PIPELINE_DATA to the folder that has them"
    return Finding("data sets", "ok" if present else "absent", found, hint)


def table(findings: list[Finding]) -> Table:
    """One row per finding."""
    rendered = Table(box=None, pad_edge=False)
    for column in ("", "", "found", "what to do"):
        rendered.add_column(column, overflow="fold")
    for finding in findings:
        rendered.add_row(finding.name, finding.status, escape(finding.found), escape(finding.hint))
    return rendered
