"""Launches and rounds: who is measured when. One worker process per variant, interleaved slices in random order.

Every launch starts all workers afresh, since two processes of the same program differ in memory layout. Every round
visits all variants, and a duplicate of the baseline (the A/A arm), in a new random order; what disturbs the host
disturbs all of them alike, and the ratios within a round cancel it.
Source: A. Georges et al., Statistically Rigorous Java Performance Evaluation, OOPSLA 2007 (launches); Google Benchmark,
docs/random_interleaving.md (rounds).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.bench.client import COMMAND, Worker, WorkerError
from stages.bench.target import Variant
from stages.spec import OnStep, Step


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
    "quick": Plan(launches=2, rounds=8, slice_s=0.05, rewarm_s=0.01, min_runs=3, warm_cap_s=0.5),
    "standard": Plan(launches=3, rounds=20, slice_s=0.15, rewarm_s=0.02, min_runs=10, warm_cap_s=3.0),
    "thorough": Plan(launches=5, rounds=60, slice_s=0.3, rewarm_s=0.03, min_runs=20, warm_cap_s=5.0),
}


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
    failure: WorkerError | None = None


@dataclass(frozen=True, slots=True)
class Lab:
    """What every step needs: where to write, which inputs, how long, which worker program, who watches."""

    scratch: Path
    frames: Path | None
    seed: int
    plan: Plan
    on_step: OnStep
    command: Sequence[str] = COMMAND


def measure(variants: Sequence[Variant], lab: Lab) -> tuple[dict[str, Record], Record | None]:
    """All records by variant id, in the order given, and the A/A record (None when no variant could be loaded).

    A variant whose worker fails keeps what was learnt and is not asked again; the others go on.
    """
    records = {variant.id: Record(variant, lab.scratch / f"{variant.id}.laps") for variant in variants}
    progress = _Progress(lab, len(records))
    for record in records.values():
        progress.step(f"operators of {record.variant.id}")
        with _failing(record):
            _census(record, lab)
    alive = [record for record in records.values() if record.failure is None]
    if not alive:
        return records, None
    duplicate = Record(alive[0].variant, lab.scratch / "duplicate.laps", duplicate=True)
    rng = np.random.default_rng(lab.seed)
    for launch in range(lab.plan.launches):
        _launch(launch, [*alive, duplicate], rng, lab, progress)
    return records, duplicate


def _census(record: Record, lab: Lab) -> None:
    """Count the executed operators in a process of its own; not being able to is no failure, a refused model is."""
    with Worker(record.variant.threads, lab.scratch / "census.log", lab.command) as worker:
        try:
            record.executed = worker.ask(lab.plan.load_timeout_s, do="census", **_model(record, lab))["executed"]
        except WorkerError as error:
            if error.by_input:
                raise


def _launch(launch: int, arms: list[Record], rng: np.random.Generator, lab: Lab, progress: _Progress) -> None:
    """Start every worker, run all rounds, then read memory and, at the last launch, the raw outputs."""
    last = launch == lab.plan.launches - 1
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
            _round(launch, number, workers, rng, lab)
            progress.step(f"launch {launch + 1} of {lab.plan.launches}: round {number + 1} of {lab.plan.rounds}")
        for record, worker in workers:
            if record.failure is not None:
                continue
            with _failing(record):
                record.memories.append(worker.ask(lab.plan.slice_timeout_s, do="memory"))
                if last and not record.duplicate:
                    _outputs(record, worker, lab)


def _start(record: Record, worker: Worker, lab: Lab) -> None:
    plan = lab.plan
    record.loads.append(worker.ask(plan.load_timeout_s, do="load", **_model(record, lab)))
    warm = worker.ask(plan.slice_timeout_s, do="warm", window_s=plan.warm_window_s, cap_s=plan.warm_cap_s)
    record.warms.append(warm)


def _round(
    launch: int, number: int, workers: Sequence[tuple[Record, Worker]], rng: np.random.Generator, lab: Lab
) -> None:
    """One slice of every variant that still works, in a fresh random order, all on the same input."""
    for position, arm in enumerate(rng.permutation(len(workers))):
        record, worker = workers[arm]
        if record.failure is not None:
            continue
        with _failing(record):
            answer = worker.ask(
                lab.plan.slice_timeout_s,
                do="slice",
                sample=launch * lab.plan.rounds + number,
                seconds=lab.plan.slice_s,
                rewarm_s=lab.plan.rewarm_s,
                min_runs=lab.plan.min_runs,
                latencies=str(record.latencies),
            )
            record.rounds.append({"launch": launch, "round": number, "pos": position, **answer})


def _outputs(record: Record, worker: Worker, lab: Lab) -> None:
    folder = lab.scratch / f"{record.variant.id}.outputs"
    folder.mkdir()
    record.output_names = worker.ask(lab.plan.outputs_timeout_s, do="outputs", folder=str(folder))["names"]
    record.outputs = folder


def _model(record: Record, lab: Lab) -> dict[str, Any]:
    variant = record.variant
    return {
        "runtime": variant.runtime,
        "model": str(variant.model.path),
        "precision": variant.hint,
        "threads": variant.threads,
        "frames": None if lab.frames is None else str(lab.frames),
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

    def __init__(self, lab: Lab, variants: int) -> None:
        self._on_step, self._done = lab.on_step, 0
        self._total = variants + lab.plan.launches * (variants + 1 + lab.plan.rounds)

    def step(self, what: str) -> None:
        """Report what is being done now."""
        self._on_step(Step(what, self._done, self._total))
        self._done += 1
