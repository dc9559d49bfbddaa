"""Whose integer instructions an INT8 file is made for."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
X86 = {"x86_64", "amd64"}
ARM = {"aarch64", "arm64"}
# Eight-bit products summed in 32 bits. Names as the kernel prints them in `flags`.
VNNI = {"avx512_vnni", "avx_vnni"}


def resolved(target: str, host: Callable[[], str] | None = None) -> str:
    """`auto` becomes this machine's target; anything else stays."""
    return (host or host_target)() if target == "auto" else target


def host_target(machine: str | None = None, cpuinfo: Path = CPUINFO) -> str:
    """The target this machine is; an x86 that does not show its flags counts as one without VNNI.

    Seven-bit weights cost about 0.5 dB; eight-bit ones on a CPU without VNNI can saturate and cost everything.
    """
    name = (machine or platform.machine()).lower()
    if name in ARM:
        return "arm64"
    flags = set(re.findall(r"\w+", cpuinfo.read_text(errors="replace"))) if cpuinfo.is_file() else set[str]()
    return "x86-vnni" if flags & VNNI else "x86-avx2"


def reduce_range(target: str) -> bool:
    """Whether weights take 7 bits: AVX2's and AVX-512's `vpmaddubsw` adds two products in 16 bits and saturates.

    Source: ONNX Runtime, "Quantize ONNX models", section "When and why do I need to try U8U8?".
    """
    return target == "x86-avx2"


def caveat(target: str, host: str) -> str:
    """What measuring on `host` cannot say about a file made for `target`, to put behind the reason; empty: nothing."""
    if target == host:
        return ""
    saturates = reduce_range(host) and not reduce_range(target)
    sums = ", and its 8-bit weights may saturate here but not there" if saturates else ""
    return f"; speed on {target} was not measured here{sums}"
