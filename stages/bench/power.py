"""What the host draws, where a counter or sensor says so: RAPL, an INA chip, the power chip of a Raspberry Pi 5.

Standard library only: the worker uses it, and the worker's memory is what is measured.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.bench import proc


@dataclass(frozen=True, slots=True)
class Power:
    """One reading of what the host draws: a counter of joules that wraps, or watts at this moment."""

    source: Literal["rapl", "ina", "pmic"]
    joules: float | None = None
    wrap: float = 0.0
    watts: float | None = None


def power(root: Path = proc.ROOT) -> Power | None:
    """What a counter or sensor of this host says; None where there is none that can be read. Never an estimate."""
    return _rapl(root) or _ina(root) or _pmic(root)


def _rapl(root: Path) -> Power | None:
    """Joules of all packages.

    Source: Linux Documentation/power/powercap/powercap.rst; `energy_uj` is for root only since CVE-2020-8694.
    """
    total = wrap = 0.0
    zones = [zone for zone in (root / "sys/class/powercap").glob("intel-rapl:*") if zone.name.count(":") == 1]
    for zone in zones:
        used, most = proc.read_text(zone / "energy_uj") or "", proc.read_text(zone / "max_energy_range_uj") or ""
        if not (used.isdigit() and most.isdigit()):
            return None
        total, wrap = total + int(used) / 1e6, max(wrap, int(most) / 1e6)
    return Power("rapl", joules=total, wrap=wrap) if zones else None


def _ina(root: Path) -> Power | None:
    """Watts of the board's supply by an INA2xx or INA3221; None where several chips leave open which one that is.

    Source: Linux Documentation/hwmon/ina2xx.rst (power1_input, uW) and ina3221.rst (in*_input, mV, curr*_input, mA;
    boards label the rail that feeds everything VDD_IN).
    """
    chips = [
        chip for chip in (root / "sys/class/hwmon").glob("hwmon*") if (proc.read_text(chip / "name") or "")[:3] == "ina"
    ]
    if len(chips) != 1:
        return None
    measured = proc.read_text(chips[0] / "power1_input") or ""
    if measured.isdigit():
        return Power("ina", watts=int(measured) / 1e6)
    for number in ("1", "2", "3"):
        volts, amperes = (proc.read_text(chips[0] / f"{kind}{number}_input") or "" for kind in ("in", "curr"))
        if proc.read_text(chips[0] / f"in{number}_label") == "VDD_IN" and volts.isdigit() and amperes.isdigit():
            return Power("ina", watts=int(volts) * int(amperes) / 1e6)
    return None


def _pmic(root: Path) -> Power | None:
    """Watts of all rails the power chip of a Raspberry Pi 5 measures; None elsewhere.

    Source: Raspberry Pi documentation, "vcgencmd pmic_read_adc": a current and a voltage per rail.
    """
    if root != proc.ROOT or not _has_vcgencmd():
        return None
    import subprocess  # not above: the worker's memory is what is measured

    try:
        done = subprocess.run(["vcgencmd", "pmic_read_adc"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return pmic_power(done.stdout)


@functools.cache
def _has_vcgencmd() -> bool:
    return any(Path(folder, "vcgencmd").is_file() for folder in os.environ.get("PATH", "").split(os.pathsep))


def pmic_power(told: str) -> Power | None:
    """`NAME_A current(0)=0.1A` times `NAME_V volt(8)=3.3V`, summed over the rails that have both."""
    found = re.findall(r"(\w+)_[AV]\s+(current|volt)\(\d+\)=([0-9.]+)[AV]", told)
    values = {(rail, kind): float(number) for rail, kind, number in found}
    rails = [rail for rail, kind in values if kind == "current" and (rail, "volt") in values]
    return Power("pmic", watts=sum(values[rail, "current"] * values[rail, "volt"] for rail in rails)) if rails else None


def energy_between(before: Power | None, after: Power | None, seconds: float) -> float | None:
    """Joules between two readings: by the counter (also when it wrapped once), or mean watts times the time between."""
    if before is None or after is None or before.source != after.source:
        return None
    if before.joules is not None and after.joules is not None:
        used = after.joules - before.joules
        return used if used >= 0 else used + after.wrap
    if before.watts is not None and after.watts is not None:
        return (before.watts + after.watts) / 2 * seconds
    return None
