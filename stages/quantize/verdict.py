"""What speaks against a candidate: too much accuracy lost, or no speed won."""

from __future__ import annotations

from collections.abc import Mapping

from stages.inference import within
from stages.spec import Candidate

SIGNIFICANT = 0.05
ALLOWANCE = 2.0  # how many times `max_drop` a drop may be that could be chance


def drop(row: Candidate, fp32: Mapping[str, float]) -> float:
    """FP32 minus the candidate, worst over the runtimes."""
    return max(fp32[name] - value for name, value in row.metric.items())


def loss(row: Candidate, fp32: Mapping[str, float]) -> float:
    """For comparing candidates: the drop, and between equal drops the noise."""
    return drop(row, fp32) - 1e-6 * (row.sqnr_db or 0.0)


def inaccurate(row: Candidate, fp32: Mapping[str, float], max_drop: float, n: int) -> str:
    """Empty when every runtime keeps its accuracy; else what the worst one loses.

    On a val of 500 one item is 0.2 points, so a strict limit of 0.3 would judge single items. A drop of up to twice the
    limit passes while the exact McNemar test on the same items cannot tell it from chance.
    """
    losses = {name: fp32[name] - value for name, value in row.metric.items()}
    bad = [name for name, lost in losses.items() if not _allowed(lost, row.p_value[name], max_drop)]
    if not bad:
        return ""
    worst = max(bad, key=lambda name: losses[name])
    lost, won = row.paired[worst]
    return (
        f"loses {100 * losses[worst]:.2f} points on val in {worst} (limit {100 * max_drop:.2f}, n = {n:,}: "
        f"{lost} items lost, {won} won, p = {row.p_value[worst]:.2g})"
    )


def _allowed(lost: float, p_value: float, max_drop: float) -> bool:
    return within(lost, max_drop) or (p_value > SIGNIFICANT and within(lost, ALLOWANCE * max_drop))


def slow(row: Candidate) -> str:
    """Empty when at least one runtime is faster than its own FP32; else the speeds."""
    if any(median > 1.0 for median, _, _ in row.speed.values()):
        return ""
    return f"is slower than FP32 here: {speeds(row)}"


def speeds(row: Candidate) -> str:
    """`1.69 times the speed of FP32 in onnxruntime and 2.07 in openvino (15 rounds)`."""
    first, *rest = (f"{median:.2f}{{}} in {name}" for name, (median, _, _) in row.speed.items())
    return " and ".join([first.format(" times the speed of FP32"), *(text.format("") for text in rest)]) + (
        f" ({row.rounds} rounds)"
    )
