"""Numbers as the report says them: rounded so that none looks better than it is."""

from __future__ import annotations

import math

RUNTIME_NAMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson 1927, JASA 22(158), 209-212; as in doi:10.1214/ss/1009213286, eq. 4."""
    share, z2 = right / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def percent(share: float, n: int | None = None) -> str:
    """A share in percent: one decimal below 1,000 items, else two; 100 % only for all, 0 % only for none."""
    decimals = 1 if n is not None and n < 1000 else 2
    step = 10.0 ** -(decimals + 2)
    if 0 < share < 1:
        share = min(max(share, step), 1 - step)
    return f"{100 * share:.{decimals}f} %"


def span(ci95: tuple[float, float], n: int) -> str:
    """An interval of shares, in percent."""
    return f"{percent(ci95[0], n).removesuffix(' %')} to {percent(ci95[1], n)}"


def points(difference: float) -> str:
    """A difference of two shares, in percentage points, with its sign."""
    return f"{round(100 * difference, 2) + 0.0:+.2f} points"  # + 0.0 turns a rounded -0.0 into 0.0


def times(ratio: tuple[float, float, float]) -> str:
    """A speed ratio with its 95 % interval."""
    return f"{ratio[0]:.2f}x [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def sentence(text: str) -> str:
    """The text with a capital at its start and a full stop at its end."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def runtime_name(key: str) -> str:
    """The name people know a runtime by."""
    return RUNTIME_NAMES.get(key, key)
