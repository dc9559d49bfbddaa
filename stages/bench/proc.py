"""Readers of /proc and /sys. Each takes the root folder; a missing file is None, never a guess.

Standard library only: the worker uses them, and the worker's memory is what is measured.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

ROOT = Path("/")
# Instruction sets that decide which kernels a runtime picks.
ISA = {
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
}  # fmt: skip


def read_text(path: Path) -> str | None:
    """The stripped text of a file; None when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\x00\n ")
    except OSError:
        return None


def cpuinfo(root: Path = ROOT) -> dict[str, str]:
    """The first value of every key of /proc/cpuinfo, keys in lower case."""
    fields: dict[str, str] = {}
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def cpu_model(root: Path = ROOT) -> str | None:
    """The processor's name; on ARM boards, which do not state it, implementer and part."""
    fields = cpuinfo(root)
    if "model name" in fields:
        return fields["model name"]
    if "cpu part" in fields:
        return f"implementer {fields.get('cpu implementer', '?')} part {fields['cpu part']}"
    return platform.processor() or None if root == ROOT else None


def isa(root: Path = ROOT) -> tuple[str, ...]:
    """The instruction sets of `ISA` this processor has, sorted."""
    fields = cpuinfo(root)
    return tuple(sorted(ISA & set((fields.get("flags") or fields.get("features") or "").split())))


def cgroup_quota(root: Path = ROOT) -> float | None:
    """CPUs' worth of time the tightest cgroup above this process grants; None without a limit. v2, then v1.

    Source: Linux Documentation/admin-guide/cgroup-v2.rst (cpu.max), scheduler/sched-bwc.rst (cpu.cfs_quota_us).
    """
    paths = {"": "/", "cpu": "/"}
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    quotas: list[float] = []
    for folder in _upwards(root / "sys/fs/cgroup", paths[""]):
        quota, _, period = (read_text(folder / "cpu.max") or "").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    for folder in _upwards(root / "sys/fs/cgroup/cpu", paths["cpu"]):
        quota, period = read_text(folder / "cpu.cfs_quota_us") or "", read_text(folder / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _upwards(base: Path, path: str) -> list[Path]:
    """The cgroup's folder and every one above it; in a container the path may not exist below `base`."""
    folder = base / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(base))]


def affinity() -> tuple[int, ...] | None:
    """The CPUs this process may run on; None where the system has no such notion."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def cores_effective(root: Path = ROOT) -> int:
    """CPUs this process can really use: max(1, min(affinity, floor(quota)))."""
    allowed, quota = affinity(), cgroup_quota(root)
    count = len(allowed) if allowed else os.cpu_count() or 1
    return max(1, min(count, int(quota)) if quota is not None else count)


def psi_cpu(root: Path = ROOT) -> float | None:
    """`some avg10` of /proc/pressure/cpu, in percent. Source: Linux Documentation/accounting/psi.rst."""
    for word in (read_text(root / "proc/pressure/cpu") or "").split():
        if word.startswith("avg10="):
            return float(word.removeprefix("avg10="))
    return None


def loadavg(root: Path = ROOT) -> tuple[float, float, float] | None:
    """The load averages of 1, 5 and 15 minutes."""
    words = (read_text(root / "proc/loadavg") or "").split()
    return (float(words[0]), float(words[1]), float(words[2])) if len(words) >= 3 else None


def meminfo(key: str, root: Path = ROOT) -> int | None:
    """A field of /proc/meminfo, in bytes."""
    return _kib_field(root / "proc/meminfo", key)


def process_memory(key: str, root: Path = ROOT) -> int | None:
    """A field of /proc/self/status in bytes: `VmRSS` (resident now) or `VmHWM` (its high-water mark)."""
    return _kib_field(root / "proc/self/status", key)


def _kib_field(path: Path, key: str) -> int | None:
    for line in (read_text(path) or "").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def run_delay_ns(root: Path = ROOT) -> int | None:
    """Nanoseconds the threads of this process were ready to run but had no CPU, summed; None where not counted.

    Source: Linux Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat, second field.
    """
    total, seen = 0, False
    try:
        tasks = list((root / "proc/self/task").iterdir())
    except OSError:
        return None
    for task in tasks:
        words = (read_text(task / "schedstat") or "").split()
        if len(words) == 3:
            total, seen = total + int(words[1]), True
    return total if seen else None


def freq_mhz(root: Path = ROOT) -> float | None:
    """Highest current frequency of any CPU, in MHz."""
    return _cpufreq("scaling_cur_freq", root)


def freq_max_mhz(root: Path = ROOT) -> float | None:
    """Highest frequency any CPU is allowed to reach, in MHz; a setting, not a measurement."""
    return _cpufreq("cpuinfo_max_freq", root)


def _cpufreq(name: str, root: Path) -> float | None:
    values = [read_text(path) or "" for path in (root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}")]
    return max((int(value) / 1000.0 for value in values if value.isdigit()), default=None)


def virtualization(root: Path = ROOT) -> str | None:
    """`container` or `vm` where the system says so."""
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return "container"
    return "vm" if "hypervisor" in cpuinfo(root).get("flags", "").split() else None


# --- sensors: temperature, throttling --------------------------------------------------------------------------------


def temp_c(root: Path = ROOT) -> float | None:
    """The hottest thermal zone, in degrees Celsius. Source: Linux Documentation/driver-api/thermal/sysfs-api.rst."""
    values = [read_text(path) or "" for path in (root / "sys/class/thermal").glob("thermal_zone*/temp")]
    readings = [int(value) / 1000.0 for value in values if value.lstrip("-").isdigit()]
    return max(readings, default=None)


def throttle_count(root: Path = ROOT) -> int | None:
    """How often x86 cores were slowed down for heat since boot, summed; None where it is not counted."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    values = [value for value in (read_text(path) or "" for path in files) if value.isdigit()]
    return sum(int(value) for value in values) if values else None
