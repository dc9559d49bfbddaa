"""How much of the device's memory the frames of a split may take; larger splits stay on disk and are streamed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

FREE_SHARE = 0.5
"""Of the device's free memory that the frames of a split may take by default; the rest is the network's."""
CGROUP = Path("/sys/fs/cgroup")


def resident_bytes(resident_mb: int, device: torch.device) -> int:
    """How large the frames of a split may be to stay in the device's memory: as set, or a share of what is free."""
    return resident_mb * 1_000_000 if resident_mb else int(FREE_SHARE * free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on the GPU; on a CPU, of the machine or of the container around the program."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _machine_free()
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def _machine_free() -> int:
    """MemAvailable of Linux, which counts caches as free; elsewhere all memory there is."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _number(path: Path) -> int | None:
    """The number in a file of cgroup v2; None where there is no such file, or no limit (`max`)."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
