"""Launches and rounds: who is measured when. One worker process per variant, interleaved slices in random order.

Every launch starts all workers afresh, since two processes of the same program differ in memory layout. Every round
visits all variants, and a duplicate of the baseline (the A/A arm), in a new random order; what disturbs the host
disturbs all of them alike, and the ratios within a round cancel it.
Source: A. Georges et al., Statistically Rigorous Java Performance Evaluation, OOPSLA 2007 (launches); Google Benchmark,
docs/random_interleaving.md (rounds).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.bench import proc
from stages.bench.client import COMMAND, Worker, WorkerError
from stages.bench.variants import Variant
from stages.spec import OnStep, Scenario, Step

RAM_SHARE = 0.6  # of what is free, for all workers together; beyond it they are started one at a time
MIN_RSS = 150_000_000  # bytes: a runtime with a small model


@dataclass(frozen=True, slots=True)
class Plan:
    """How long everything takes; seconds."""

    launches: int
    rounds: int
    slice_s: float
    rewarm_s: float
    min_runs: int
    """Inferences per slice at least, however slow the model is."""
    warm_cap_s: float
    warm_window_s: float = 0.05
    load_timeout_s: float = 300.0
    slice_timeout_s: float = 300.0
    outputs_timeout_s: float = 3600.0


PLANS = {
    "quick": Plan(launches=2, rounds=8, slice_s=0.05, rewarm_s=0.01, min_runs=3, warm_cap_s=0.3),
    "standard": Plan(launches=3, rounds=20, slice_s=0.15, rewarm_s=0.02, min_runs=10, warm_cap_s=3.0),
    "thorough": Plan(launches=5, rounds=60, slice_s=0.3, rewarm_s=0.03, min_runs=20, warm_cap_s=5.0),
}

PACED_SLICE_S = 1.0  # a slice of a paced scenario holds fps frames
FEWEST_LAUNCHES_COLD = 4
UNPAIRED = ("accuracy", "sustain")  # nothing in them is compared round by round


def plan_for(scenario: Scenario, plan: Plan, minutes: float) -> Plan:
    """The plan as a scenario needs it: paced slices are long and few, a cold start has no rounds at all."""
    if scenario == "camera":
        rounds = max(2, round(plan.rounds * plan.slice_s / PACED_SLICE_S))
        return replace(plan, rounds=rounds, slice_s=max(plan.slice_s, PACED_SLICE_S))
    if scenario == "cold":
        return replace(plan, launches=max(FEWEST_LAUNCHES_COLD, 2 * plan.launches), rounds=0, warm_cap_s=0.0)
    if scenario == "accuracy":
        return replace(plan, launches=1, rounds=0, warm_cap_s=0.0)
    if scenario == "sustain":
        rounds = max(6, math.ceil(minutes * 60))
        return replace(plan, launches=1, rounds=rounds, slice_s=minutes * 60 / rounds)
    return plan


@dataclass(slots=True)
class Record:
    """Everything the workers of one variant answered; `failure` ends its measurement."""

    variant: Variant
    latencies: Path
    """int64 nanoseconds of every recorded inference of all launches."""
    duplicate: bool = False
    """True for the A/A arm."""
    executed: dict[str, int] = field(default_factory=dict)
    loads: list[dict[str, Any]] = field(default_factory=list)
    warms: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    memories: list[dict[str, Any]] = field(default_factory=list)
    outputs: Path | None = None
    output_names: list[str] = field(default_factory=list)
    jobs: int | None = None
    """How many inferences at a time; found in the first launch of `throughput`, then fixed."""
    jobs_sweep: dict[str, float] = field(default_factory=dict)
    failure: WorkerError | None = None


@dataclass(frozen=True, slots=True)
class Lab:
    """What every step needs: where to write, how long, which worker program, who watches."""

    scratch: Path
    seed: int
    plan: Plan
    on_step: OnStep
    command: Sequence[str] = COMMAND
    fps: float = 30.0
    shapes: tuple[str, ...] = ()
    census: dict[tuple[str, str, str], dict[str, int]] = field(default_factory=dict)
    """(file, runtime, precision) -> executed operators, kept from one scenario to the next."""


def measure(variants: Sequence[Variant], lab: Lab) -> tuple[dict[str, Record], Record | None]:
    """All records by variant id, in the order given, and the A/A record (None when no variant could be loaded).

    All variants are of one scenario. One whose worker fails keeps what was learnt and is not asked again; the others go
    on. `sustain` and `accuracy` have no A/A arm and no interleaving: the one heats the host with one variant at a time,
    the other times nothing.
    """
    records = {variant.id: Record(variant, lab.scratch / f"{variant.id}.laps") for variant in variants}
    alone = variants[0].scenario in UNPAIRED
    progress = _Progress(lab, len(records), alone)
    # Nothing is timed here, so that many at a time does no harm.
    with ThreadPoolExecutor(proc.cores_effective()) as pool:
        for _ in pool.map(lambda record: _census(record, lab), records.values()):
            progress.step("which operators run")
    alive = [record for record in records.values() if record.failure is None]
    if not alive:
        return records, None
    rng = np.random.default_rng(lab.seed)
    if alone:
        for record in alive:
            _launch(0, [record], rng, lab, progress)
        return records, None
    duplicate = Record(alive[0].variant, lab.scratch / f"{alive[0].variant.id}.duplicate.laps", duplicate=True)
    arms = [*alive, duplicate]
    together = variants[0].scenario != "cold" and enough_memory(arms)
    for launch in range(lab.plan.launches):
        if together:
            _launch(launch, arms, rng, lab, progress)
        else:
            _one_at_a_time(launch, arms, rng, lab, progress)
    return records, duplicate


def enough_memory(arms: Sequence[Record], root: Path = proc.ROOT) -> bool:
    """Whether all workers fit into memory at once; by the size of their files, True where free memory is not known."""
    free = proc.meminfo("MemAvailable", root)
    needed = sum(MIN_RSS + 3 * arm.variant.model.size_bytes for arm in arms)
    return free is None or needed <= RAM_SHARE * free


def _census(record: Record, lab: Lab) -> None:
    """Count the executed operators in a process of its own; not being able to is no failure, a refused model is."""
    variant = record.variant
    key = (str(variant.model.path), variant.runtime, variant.hint)
    if key in lab.census:
        record.executed = lab.census[key]
        return
    with Worker(1, lab.scratch / f"{variant.id}.census.log", lab.command) as worker:
        try:
            record.executed = worker.ask(lab.plan.load_timeout_s, do="census", **_request(record, lab))["executed"]
        except WorkerError as error:
            record.failure = error if error.by_input else None
    if record.failure is None:
        lab.census[key] = record.executed


def _launch(launch: int, arms: list[Record], rng: np.random.Generator, lab: Lab, progress: _Progress) -> None:
    """Start every worker, run all rounds, then read memory and, at the last launch, the raw outputs."""
    with contextlib.ExitStack() as stack:
        workers: list[tuple[Record, Worker]] = []
        for arm, record in enumerate(arms):
            progress.step(f"launch {launch + 1} of {lab.plan.launches}: {record.variant.id}")
            if record.failure is not None:
                continue
            with _failing(record):
                log = lab.scratch / f"worker-{arm}.log"
                worker = stack.enter_context(Worker(record.variant.threads, log, lab.command))
                _start(record, worker, lab)
                workers.append((record, worker))
        for number in range(lab.plan.rounds):
            for position, arm in enumerate(rng.permutation(len(workers))):
                _slice((launch, number, position), workers[arm][0], workers[arm][1], lab)
            progress.step(f"launch {launch + 1} of {lab.plan.launches}: round {number + 1} of {lab.plan.rounds}")
        for record, worker in workers:
            _finish(launch, record, worker, lab)


def _one_at_a_time(launch: int, arms: list[Record], rng: np.random.Generator, lab: Lab, progress: _Progress) -> None:
    """As `_launch`, with one worker alive at a time: all its slices follow each other.

    For cold starts, which nothing else may disturb, and where memory is too short for all workers at once.
    """
    for position, arm in enumerate(rng.permutation(len(arms))):
        record = arms[arm]
        progress.step(f"launch {launch + 1} of {lab.plan.launches}: {record.variant.id}")
        if record.failure is not None:
            continue
        with (
            _failing(record),
            Worker(record.variant.threads, lab.scratch / f"worker-{arm}.log", lab.command) as worker,
        ):
            _start(record, worker, lab)
            for number in range(lab.plan.rounds):
                _slice((launch, number, position), record, worker, lab)
            _finish(launch, record, worker, lab)
    for _ in range(lab.plan.rounds):
        progress.step(f"launch {launch + 1} of {lab.plan.launches} is over")


def _start(record: Record, worker: Worker, lab: Lab) -> None:
    plan = lab.plan
    record.loads.append(worker.ask(plan.load_timeout_s, do="load", **_request(record, lab)))
    if not plan.rounds:
        return
    warm = worker.ask(plan.slice_timeout_s, do="warm", window_s=plan.warm_window_s, cap_s=plan.warm_cap_s)
    if "jobs" in warm:
        record.jobs, record.jobs_sweep = warm["jobs"], warm["jobs_sweep"]
    record.warms.append(warm)


def _slice(place: tuple[int, int, int], record: Record, worker: Worker, lab: Lab) -> None:
    """One slice of one variant; in a round all have the same input. A variant that failed is left alone."""
    launch, number, position = place
    if record.failure is not None:
        return
    with _failing(record):
        answer = worker.ask(
            lab.plan.slice_timeout_s + lab.plan.slice_s,
            do="slice",
            sample=launch * lab.plan.rounds + number,
            seconds=lab.plan.slice_s,
            rewarm_s=lab.plan.rewarm_s,
            min_runs=lab.plan.min_runs,
            latencies=str(record.latencies),
        )
        record.rounds.append({"launch": launch, "round": number, "pos": position, **answer})


def _finish(launch: int, record: Record, worker: Worker, lab: Lab) -> None:
    if record.failure is not None:
        return
    with _failing(record):
        record.memories.append(worker.ask(lab.plan.slice_timeout_s, do="memory"))
        if launch == lab.plan.launches - 1 and not record.duplicate:
            folder = lab.scratch / f"{record.variant.id}.outputs"
            folder.mkdir()
            answer = worker.ask(lab.plan.outputs_timeout_s, do="outputs", folder=str(folder))
            record.output_names, record.outputs = answer["names"], folder


def _request(record: Record, lab: Lab) -> dict[str, Any]:
    """What a worker has to know about its variant."""
    variant = record.variant
    sample = variant.target.sample if variant.target else None
    return {
        "runtime": variant.runtime,
        "model": str(variant.model.path),
        "precision": variant.hint,
        "threads": variant.threads,
        "spinning": variant.spinning,
        "scenario": variant.scenario,
        "jobs": record.jobs,
        "fps": lab.fps,
        "shapes": list(lab.shapes),
        "frames": None if sample is None else str(sample.frames),
        "pictures": str(variant.target.pictures) if variant.target and variant.target.pictures else None,
        "task": sample and sample.task,
        "params": sample and sample.params,
        "contract": sample and sample.contract.model_dump(mode="json"),
        "seed": lab.seed,
    }


@contextlib.contextmanager
def _failing(record: Record) -> Iterator[None]:
    """Keep the failure of a variant's worker in its record; the others go on."""
    try:
        yield
    except WorkerError as error:
        record.failure = error


class _Progress:
    """Counts steps for whoever watches."""

    def __init__(self, lab: Lab, variants: int, alone: bool) -> None:
        self._on_step, self._done = lab.on_step, 0
        each = (1 + lab.plan.rounds) * variants if alone else variants + 1 + lab.plan.rounds
        self._total = variants + lab.plan.launches * each

    def step(self, what: str) -> None:
        """Report what is being done now."""
        self._on_step(Step(what, self._done, self._total))
        self._done += 1
