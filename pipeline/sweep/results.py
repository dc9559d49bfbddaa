"""What a sweep found: `sweep.json`, a TOML of each best config, and the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from pipeline.config import dump_toml
from pipeline.sweep.document import SweepDocument, TrialRow
from pipeline.sweep.study import Study, killed
from pipeline.workspace import write_atomic

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.RUNNING: "running"}
SHOWN = 12
"""Rows of the table; all trials are in `sweep.json`."""


def rows(study: Study) -> tuple[TrialRow, ...]:
    """Every trial that has begun."""
    trials = study.optuna.get_trials(deepcopy=False)
    return tuple(_row(study, trial) for trial in trials if trial.state != TrialState.WAITING)


def _row(study: Study, trial: FrozenTrial) -> TrialRow:
    objectives = study.plan.sweep.objectives
    complete = trial.state == TrialState.COMPLETE
    return TrialRow(
        number=trial.number,
        state=STATES.get(trial.state, "killed" if killed(trial) else "failed"),
        params=trial.params,
        values=dict(zip(objectives, trial.values, strict=True)) if complete else {},
        reason=trial.user_attrs.get("reason", ""),
        epochs=trial.last_step if len(objectives) == 1 else None,
        facts=trial.user_attrs.get("facts", {}),
    )


def pareto(points: Sequence[tuple[int, float, float]]) -> list[int]:
    """Numbers of the points that no other beats: none is at least as good in both and better in one.

    Args:
        points: (number, metric, latency): a higher metric and a lower latency are better.

    Returns:
        From the fastest to the best metric. Of equal points the first stands for all.
    """
    front: list[int] = []
    best = -math.inf
    for number, metric, _ in sorted(points, key=lambda point: (point[2], -point[1], point[0])):
        if metric > best:
            front.append(number)
            best = metric
    return front


def best_of(table: Sequence[TrialRow], remeasured_ms: dict[int, float] | None = None) -> tuple[int, ...]:
    """The best trial, the earliest of equals; with latency the Pareto front, by re-measured times where given."""
    done = [row for row in table if row.state == "complete"]
    if not done:
        return ()
    if "latency_ms" not in done[0].values:
        return (max(done, key=lambda row: (row.values["val"], -row.number)).number,)
    if remeasured_ms is not None:
        done = [row for row in done if row.number in remeasured_ms]
    times = remeasured_ms or {row.number: row.values["latency_ms"] for row in done}
    return tuple(pareto([(row.number, row.values["val"], times[row.number]) for row in done]))


def nearest_to_front(table: Sequence[TrialRow]) -> list[int]:
    """Complete trials, the front first, then by how many times slower they are than one that is as good on val."""
    done = [row for row in table if row.state == "complete"]

    def behind(row: TrialRow) -> float:
        as_good = (other.values["latency_ms"] for other in done if other.values["val"] >= row.values["val"])
        return row.values["latency_ms"] / min(as_good)

    return [row.number for row in sorted(done, key=lambda row: (behind(row), row.number))]


def notes_on(table: Sequence[TrialRow], best: Sequence[int]) -> tuple[str, ...]:
    """What has to be known to read the numbers."""
    done = [row for row in table if row.state == "complete"]
    if not done:
        return ()
    notes = []
    top = max(done, key=lambda row: row.values["val"])
    value, n = top.values["val"], int(top.facts["val_n"])
    notes.append(
        f"val is the best of {len(done)} complete trials on the same {n} images, and so too good; test was not looked "
        "at and is measured by `pipeline all`"
    )
    if 0 <= value <= 1:
        error = math.sqrt(value * (1 - value) / n)
        near = sum(row.values["val"] >= value - error for row in done) - 1
        notes.append(f"within one standard error ({error:.4f}) of the best val: {near} other trials")
    busy = sum(row.facts.get("host_status", "clean") != "clean" for row in done)
    if busy:
        notes.append(f"the host was not quiet while {busy} of {len(done)} latencies were measured")
    refused = [number for number in best if not next(r for r in done if r.number == number).facts.get("int8_passed", 1)]
    if refused:
        listed = ", ".join(map(str, refused))
        notes.append(f"INT8 loses more than quantize.max_drop in trial {listed}: `pipeline all` would ship FP32 there")
    return tuple(notes)


def write_configs(
    study: Study, table: Sequence[TrialRow], best: Sequence[int], remeasured_ms: Mapping[int, float]
) -> dict[str, str]:
    """A TOML for `pipeline all` of each best trial; those of an earlier state are removed. Returns key -> file."""
    for old in study.folder.glob("best*.toml"):
        old.unlink()
    single = len(study.plan.sweep.objectives) == 1
    files: dict[str, str] = {}
    for number in best:
        row = next(row for row in table if row.number == number)
        key = "best" if single else f"best-{number}"
        name = f"{study.plan.base.name[:50]}-{key}"
        config = study.plan.config(row.params).model_copy(update={"name": name})
        again = {"latency_ms": remeasured_ms[number]} if number in remeasured_ms else {}
        values = ", ".join(f"{name} {value:.6g}" for name, value in (row.values | again).items())
        head = f"# Trial {number} of sweep {study.plan.base.name}: {values}. Chosen on val; test was not looked at.\n"
        write_atomic(study.folder / f"{key}.toml", head + dump_toml(config))
        files[key] = f"{key}.toml"
    return files


def table_of(document: SweepDocument) -> Table:
    """The best trials first, then by val; what was given up or failed is counted in the notes."""
    shown = sorted(
        (row for row in document.trials if row.state == "complete"),
        key=lambda row: (row.number not in document.best, -row.values["val"], row.number),
    )
    keys = list(dict.fromkeys(key for row in shown for key in row.params))
    table = Table(box=None, pad_edge=False)
    table.add_column("trial", justify="right")
    for column in document.objectives:
        table.add_column(column, justify="right")
    if document.remeasured_ms:
        table.add_column("again_ms", justify="right")
    for key in keys:
        table.add_column(key, justify="right")
    table.add_column("")
    for row in shown[:SHOWN]:
        mark = ("best" if len(document.objectives) == 1 else "front") if row.number in document.best else ""
        values = [f"{row.values[name]:.4f}" for name in document.objectives]
        if document.remeasured_ms:
            again = document.remeasured_ms.get(str(row.number))
            values.append("" if again is None else f"{again:.4f}")
        table.add_row(str(row.number), *values, *(escape(_short(row.params.get(key))) for key in keys), mark)
    return table


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def counted(table: Sequence[TrialRow]) -> str:
    """`6 trials: 4 complete, 1 pruned, 1 failed`."""
    begun = [row for row in table if row.state != "killed"]
    states = [row.state for row in begun]
    parts = [f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed", "running")]
    return f"{len(begun)} trials: " + ", ".join(part for part in parts if not part.startswith("0 "))


def write_document(folder: Path, document: SweepDocument) -> None:
    """Write `sweep.json`."""
    write_atomic(folder / "sweep.json", document.to_json())
