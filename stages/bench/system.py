"""Facts about the host and its software, for `bench.json`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from stages.bench import proc

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


def software() -> dict[str, str]:
    """Versions of Python and the libraries that matter here, read without importing any of them."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
