"""`--fail-if`: limits on how much worse than a base a row may be, judged by intervals, never by point estimates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from edge_demo.errors import InputError
from stages.bench.document import GateRow

Outcome = Literal["passed", "failed", "inconclusive"]
Change = tuple[float, float, float]
"""Point, lower and upper end: relative (0.05 is 5 % more), or in points of 0..1 for accuracy."""

COSTS = {"p50": "median latency", "wall": "wall time per inference", "cpu": "CPU time per inference",
         "rss": "peak memory", "load": "load time", "size": "file size"}  # fmt: skip
VALUES = {"fps": "frames per second", "accuracy": "the task's leading metric"}
EXPRESSION = re.compile(r"\s*([a-z0-9]+)\s*([<>])\s*([+-])\s*(\d+(?:\.\d+)?)\s*(%|pp)\s*")
EXAMPLES = "type e.g. --fail-if 'p50>+5%' or --fail-if 'accuracy<-0.5pp'"


@dataclass(frozen=True, slots=True)
class Gate:
    """`metric` may not get worse than `limit`: a positive share, or points of 0..1 for accuracy."""

    expression: str
    metric: str
    limit: float

    @property
    def is_cost(self) -> bool:
        """More is worse."""
        return self.metric in COSTS


def parse(expression: str) -> Gate:
    """`p50>+5%`: fail when p50 grew by more than 5 %; `accuracy<-0.5pp`: when accuracy fell by more than half a point.

    Raises:
        InputError: it does not parse, names no metric, or would fail on an improvement.
    """
    match = EXPRESSION.fullmatch(expression)
    if match is None:
        raise InputError(f"--fail-if {expression!r}: not METRIC>+N% or METRIC<-Npp", EXAMPLES)
    metric, sign, direction, number, unit = match.groups()
    if metric not in COSTS and metric not in VALUES:
        raise InputError(f"--fail-if {expression!r}: no metric {metric!r}", f"known: {', '.join((*COSTS, *VALUES))}")
    worse = (">", "+") if metric in COSTS else ("<", "-")
    if (sign, direction) != worse:
        raise InputError(f"--fail-if {expression!r}: that is no limit on getting worse",
                         f"type {metric}{worse[0]}{worse[1]}{number}{unit}")  # fmt: skip
    wanted = "pp" if metric == "accuracy" else "%"
    if unit != wanted:
        raise InputError(f"--fail-if {expression!r}: {metric} is judged in {wanted}", EXAMPLES)
    return Gate(expression.strip(), metric, float(number) / 100.0)


def level(count: int) -> float:
    """Confidence of each interval when `count` gates are judged together and 95 % must hold for all (Bonferroni)."""
    return 1.0 - 0.05 / max(1, count)


def z_of(confidence: float) -> float:
    """Two-sided quantile of the standard normal."""
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)


def judge(gate: Gate, variant: str, against: str, change: Change | str, floor: float = 0.0) -> GateRow:
    """A gate on one row: failed only when the whole interval is beyond the limit, passed when all of it is within.

    On a run too noisy for the limit a small change is neither.

    Args:
        gate: The limit.
        variant: The row.
        against: The row it is compared with.
        change: What was measured, or why nothing could be: that is inconclusive.
        floor: The smallest effect the run may claim: to fail, a change has to be beyond it, too.
    """
    if isinstance(change, str):
        return GateRow(expression=gate.expression, variant=variant, against=against, change=None, ci=None,
                       outcome="inconclusive", reason=change)  # fmt: skip
    point, low, high = change
    # Seen from the bad side, so that more is always worse.
    worst, best = (high, low) if gate.is_cost else (-low, -high)
    limit = max(gate.limit, floor)
    outcome: Outcome = "failed" if best > limit else "passed" if worst <= gate.limit else "inconclusive"
    unit = "pp" if gate.metric == "accuracy" else "%"
    said = f"{gate.metric} {100 * point:+.2f} {unit} [{100 * low:+.2f}, {100 * high:+.2f}]"
    told = gate.expression
    if outcome == "inconclusive" and best > gate.limit:
        told = f"the noise floor, {100 * floor:.1f} %"
    how = {"failed": "all beyond", "passed": "all within", "inconclusive": "cannot be told apart from"}[outcome]
    return GateRow(expression=gate.expression, variant=variant, against=against, change=point, ci=(low, high),
                   outcome=outcome, reason=f"{said}: {how} {told}")  # fmt: skip


def overall(rows: Sequence[GateRow]) -> Outcome:
    """Failed if any is, else inconclusive if any is."""
    outcomes = {row.outcome for row in rows}
    return "failed" if "failed" in outcomes else "inconclusive" if "inconclusive" in outcomes else "passed"
