"""Facts about the host and its software, for `bench.json`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from stages.bench import power, proc

if TYPE_CHECKING:
    from rich.table import Table

LIBRARIES = ("numpy", "onnxruntime", "openvino", "opencv-python", "opencv-python-headless", "train-to-edge")


class System(BaseModel):
    """The host at the time of the benchmark; null is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cpu_model: str | None
    arch: str
    isa: tuple[str, ...]
    cores_logical: int
    cores_effective: int
    """What this process may use: the smaller of its CPU affinity and the cgroup's quota, at least 1."""
    cgroup_quota: float | None
    """CPUs' worth of time per period; null without a limit."""
    affinity: tuple[int, ...] | None
    governor: str | None
    freq_max_mhz: float | None
    mem_total_bytes: int | None
    mem_available_bytes: int | None
    swap_total_bytes: int | None
    os: str
    kernel: str
    virt: str | None
    """`vm`, `container` or null when nothing says so."""
    board: str | None
    loadavg: tuple[float, float, float] | None
    psi_cpu: float | None
    """Percent of the last 10 s in which something waited for a CPU."""
    fingerprint: str
    """Digest of what does not change while the hardware stays the same; equal: absolute times may be compared."""


def system(root: Path = proc.ROOT) -> System:
    """Everything known about this host."""
    model, flags, cores = proc.cpu_model(root), proc.isa(root), os.cpu_count() or 1
    board, total = proc.read_text(root / "proc/device-tree/model"), proc.meminfo("MemTotal", root)
    stable = {"arch": platform.machine(), "cpu": model, "isa": flags, "cores": cores, "board": board}
    return System(
        cpu_model=model,
        arch=platform.machine(),
        isa=flags,
        cores_logical=cores,
        cores_effective=proc.cores_effective(root),
        cgroup_quota=proc.cgroup_quota(root),
        affinity=proc.affinity(),
        governor=proc.read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        freq_max_mhz=proc.freq_max_mhz(root),
        mem_total_bytes=total,
        mem_available_bytes=proc.meminfo("MemAvailable", root),
        swap_total_bytes=proc.meminfo("SwapTotal", root),
        os=platform.system(),
        kernel=platform.release(),
        virt=proc.virtualization(root),
        board=board,
        loadavg=proc.loadavg(root),
        psi_cpu=proc.psi_cpu(root),
        fingerprint=hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:16],
    )


def raspberry_pi() -> dict[str, str]:
    """What a Raspberry Pi's firmware says: throttling bits in words, temperature, clock; empty elsewhere.

    Source: Raspberry Pi documentation, "vcgencmd".
    """
    if shutil.which("vcgencmd") is None:
        return {}
    told = {name: _ask(*words) for name, words in {"throttled": ("get_throttled",), "temperature": ("measure_temp",),
            "clock": ("measure_clock", "arm"), "power": ("pmic_read_adc",)}.items()}  # fmt: skip
    return {name: throttled_words(text) if name == "throttled" else text for name, text in told.items() if text}


def _ask(*words: str) -> str:
    done = subprocess.run(["vcgencmd", *words], capture_output=True, text=True, timeout=5, check=False)
    return " ".join(done.stdout.split()) if done.returncode == 0 else ""


THROTTLED = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


def throttled_words(text: str) -> str:
    """`throttled=0x50005` in words: bits 0 to 3 are now, 16 to 19 since boot; the text itself if it does not parse."""
    try:
        bits = int(text.rpartition("=")[2], 16)
    except ValueError:
        return text
    now = [word for bit, word in THROTTLED.items() if bits >> bit & 1]
    before = [word for bit, word in THROTTLED.items() if bits >> (bit + 16) & 1]
    return f"now: {', '.join(now) or 'none'}; since boot: {', '.join(before) or 'none'}"


def host_table() -> Table:
    """Everything known about this host, for people; what cannot be read here is said to be unknown."""
    from rich.markup import escape
    from rich.table import Table

    facts = system().model_dump()
    drawn = power.power()
    facts |= {"temp_c": proc.temp_c(), "throttle_count": proc.throttle_count(), "freq_mhz": proc.freq_mhz(),
              "energy_counter": drawn and drawn.source, **raspberry_pi(), **software()}  # fmt: skip
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        listed = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        table.add_row(name, escape("unknown" if listed is None else str(listed)))
    return table


def software() -> dict[str, str]:
    """Versions of Python and the libraries that matter here, read without importing any of them."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
