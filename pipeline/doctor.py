"""What is installed and usable here, and what to type where it is not: `pipeline doctor`. Imports no heavy library."""

from __future__ import annotations

import os
import platform
import shutil
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

    present = [row.name for row in list_sets() if row.present and row.name != "folder"]
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
