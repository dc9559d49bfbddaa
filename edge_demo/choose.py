"""Which runtime and precision is fastest here and right: measured on the spot, on the golden frames, one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_demo.bundle import Bundle
from edge_demo.errors import Error, InputError
from edge_demo.manifest import Manifest
from edge_demo.runtime import RUNTIMES, Bound, Runtime
from edge_demo.tasks import TASKS
from edge_demo.verify import why_not

BUDGET_S = 2.0
WARM_RUNS = 3
WORSE = 0.005  # share of the leading metric that a faster precision may cost: half a point
CLEARLY = 0.97  # a runtime must be 3 % faster to displace the recommended one: less is noise on a shared host


@dataclass(frozen=True, slots=True)
class Candidate:
    """One combination; `ms` median time of one frame in the model, None when `problem` says why it is out."""

    runtime: str
    precision: str
    ms: float | None = None
    problem: str = ""

    def words(self) -> str:
        """For people."""
        name = f"{self.runtime} {self.precision}"
        return f"{name} {self.ms:.2f} ms" if self.ms is not None else f"{name} out: {self.problem}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The one taken, and all that were tried."""

    runtime: str
    precision: str
    tried: tuple[Candidate, ...]

    def line(self) -> str:
        """One line for people."""
        told = "; ".join(candidate.words() for candidate in self.tried)
        return f"auto: {self.runtime} {self.precision}, the fastest here that gives the golden answers ({told})"


def candidates(manifest: Manifest, runtime: str, precision: str) -> list[tuple[str, str]]:
    """(runtime, precision) pairs to try: the recommended precision first, another one only if as good.

    A precision that costs more than half a point of the leading metric is never taken for its speed; neither is one
    whose metric the bundle does not state.
    """
    names = list(RUNTIMES) if runtime == "auto" else [runtime]
    if precision != "auto":
        return [(name, precision) for name in names]
    own = manifest.variant(manifest.recommended).metrics
    metric = TASKS[manifest.task].metric
    pairs: list[tuple[str, str]] = [(name, manifest.recommended) for name in names]
    for variant in manifest.variants:
        for name in names:
            key = f"{name}.{metric}"
            stated = key in variant.metrics and key in own
            if variant.precision != manifest.recommended and stated and variant.metrics[key] >= own[key] - WORSE:
                pairs.append((name, variant.precision))
    return pairs


def choose(
    bundle: Bundle,
    pairs: Sequence[tuple[str, str]],
    open_runtime: Callable[[str, bytes], Runtime],
    budget_s: float = BUDGET_S,
) -> Choice:
    """Verify each pair on the golden frames, time those that pass, take the fastest.

    Args:
        bundle: Opened.
        pairs: (runtime, precision), the preferred first: it wins unless another is clearly faster.
        open_runtime: (name, model bytes) -> loaded as the demo will use it.
        budget_s: Time spent on timing, all pairs together.

    Raises:
        Error: none gives its golden answers.
    """
    problems = {pair: _problem(bundle, *pair) for pair in pairs}
    passing = [pair for pair in pairs if not problems[pair]]
    if not passing:
        first = pairs[0]
        raise Error(
            f"no runtime gives the golden answers of this bundle here: {first[0]} {first[1]} {problems[first]}",
            "see: pipeline verify BUNDLE",
        )
    times = _times(bundle, passing, open_runtime, budget_s)
    best = passing[0]
    for pair in passing[1:]:
        if times[pair] < CLEARLY * times[best]:
            best = pair
    tried = tuple(Candidate(*pair, times.get(pair), problems[pair]) for pair in pairs)
    return Choice(*best, tried)


def _problem(bundle: Bundle, runtime: str, precision: str) -> str:
    try:
        return why_not(bundle, precision, runtime)
    except InputError as error:
        return error.message


def _times(
    bundle: Bundle,
    pairs: Sequence[tuple[str, str]],
    open_runtime: Callable[[str, bytes], Runtime],
    budget_s: float,
) -> dict[tuple[str, str], float]:
    """Median ms per frame of each pair; they take turns, so that a busy moment hits all alike."""
    contract = bundle.manifest.input
    frame = np.ascontiguousarray(bundle.batch(bundle.frames(bundle.manifest.golden.frames))[:1])
    opened: list[Runtime] = []
    times: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
    try:
        bound: dict[tuple[str, str], Bound] = {}
        for name, precision in pairs:
            opened.append(open_runtime(name, bundle.model_bytes(precision)))
            bound[name, precision] = opened[-1].bind({contract.name: frame.copy()})
        for call in bound.values():
            for _ in range(WARM_RUNS):
                call.run()
        end_s = time.perf_counter() + budget_s
        while time.perf_counter() < end_s:
            for pair, call in bound.items():
                start = time.perf_counter_ns()
                call.run()
                times[pair].append((time.perf_counter_ns() - start) / 1e6)
    finally:
        for runtime in opened:
            runtime.close()
    return {pair: statistics.median(values) for pair, values in times.items()}
