"""Is it faster? FP32 and INT8 in turn, in one process, by the CPU time of one inference."""

from __future__ import annotations

import time
from collections.abc import Callable

from stages.statistics import median_interval

ROUNDS = 15
# CPU time, not wall time: on a shared machine wall times of the same model differ by a factor of two, CPU times by a
# few percent; for one thread on an idle machine the two are the same.
CLOCK = time.process_time_ns
SLICE_NS = 8_000_000
WARM_NS = 20_000_000

Run = Callable[[], object]
Speed = tuple[float, float, float]


def paired_speed(baseline: Run, other: Run, rounds: int = ROUNDS) -> Speed:
    """How many times as fast `other` is: median and 95 % interval over rounds, each timing a slice of both.

    Args:
        baseline: One inference.
        other: One inference of what is compared with it.
        rounds: The order of the two alternates, so that a drift favours neither.
    """
    for run in (baseline, other):
        _slice_ns(run, WARM_NS)
    ratios = []
    for index in range(rounds):
        if index % 2:
            ratios.append(_slice_ns(baseline) / _slice_ns(other))
        else:
            taken = _slice_ns(other)
            ratios.append(_slice_ns(baseline) / taken)
    return median_interval(ratios)


def _slice_ns(run: Run, least_ns: int = SLICE_NS) -> float:
    """CPU time of one call, over as many calls as fill the slice."""
    calls, started = 0, CLOCK()
    while True:
        run()
        calls += 1
        taken = CLOCK() - started
        if taken >= least_ns:
            return taken / calls
