"""The loop of a sweep: take a trial, run it, tell how it ended; at the end say what is best."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from edge_demo.errors import Error
from pipeline.keys import ROOT
from pipeline.run import STAGES, Stage, Watch
from pipeline.sweep import results
from pipeline.sweep.document import SweepDocument, TrialRow
from pipeline.sweep.latency import as_measured
from pipeline.sweep.picture import write_pareto
from pipeline.sweep.plan import Plan
from pipeline.sweep.study import (
    Claim,
    Study,
    claim,
    finish,
    locked,
    open_study,
    release,
    reporter,
    shown,
    storage_errors,
)
from pipeline.sweep.trial import Outcome, lend_data, run_trial, sweep_stages
from pipeline.workspace import write_atomic
from stages.bench import bench_target, to_json
from stages.bench.document import BenchDocument

MOST_AGAIN = 16  # models in one benchmark: each has a process per runtime
HOPELESS = 3  # failures with one reason before anything has worked: it is not the values

Watcher = Callable[[int], Watch]
"""Trial number -> who is told of the events of its run."""
Told = Callable[[Claim, Outcome, float], None]
"""(trial, how it ended, seconds)."""


def sweep(
    plan: Plan,
    folder: Path,
    *,
    storage: str | None = None,
    watch: Watcher = lambda number: lambda event: None,
    told: Told = lambda claimed, outcome, seconds: None,
    stages: Sequence[Stage] = STAGES,
    root: Path = ROOT,
) -> SweepDocument:
    """Run trials until as many as wanted have begun or the time is up, and write what is best into `folder`.

    Any number of processes may do this at once, with one folder on one machine, or with one storage and a folder each.

    Args:
        plan: What to try.
        folder: The sweep's folder: trials, storage and result.
        storage: URL of a database that many machines share; None: SQLite in the folder.
        watch: Told of every event of the trials' runs.
        told: Told of every trial that ended.
        stages: The pipeline.
        root: The folder that holds the stages' packages.

    Raises:
        InputError: folder or storage cannot be used.
        Error: nothing works, or the disk is full.
    """
    study = open_study(plan, folder, storage)
    mine = sweep_stages(stages, plan.sweep.objectives)
    began = time.monotonic()
    reasons: list[str] = []
    while not (plan.sweep.timeout_s and time.monotonic() - began >= plan.sweep.timeout_s):
        with storage_errors(study.url):
            claimed = claim(study)
        if claimed is None:
            break
        outcome = _advance(study, claimed, mine, watch, told, root)
        reasons = [*reasons, outcome.reason] if outcome.state == "failed" else [""]
        if len(reasons) >= HOPELESS and len(set(reasons)) == 1:
            break
    with storage_errors(study.url), locked(folder / ".sweep.lock"):
        document = _conclude(study, shown(storage, folder))
    if not document.best and not any(row.state == "running" for row in document.trials):
        failed = [row.reason for row in document.trials if row.state == "failed"]
        why = f": {failed[-1]}" if failed else " within sweep.timeout_s"
        raise Error(f"sweep '{plan.base.name}': no trial was completed{why}", f"see {folder / 'sweep.json'}")
    return document


def _advance(study: Study, claimed: Claim, stages: Sequence[Stage], watch: Watcher, told: Told, root: Path) -> Outcome:
    """One trial from claim to finish; what ends the process leaves it to be gone on with."""
    began = time.monotonic()
    number, params = claimed.trial.number, claimed.params
    epochs = int(params.get("train.epochs", study.plan.base.train.epochs))
    try:
        lend_data(study.trials_folder, claimed.folder)
        outcome = run_trial(
            lambda: study.plan.config(params),
            claimed.folder,
            stages,
            report=reporter(study, claimed, epochs),
            watch=watch(number),
            root=root,
        )
    except BaseException:
        release(study, claimed)
        raise
    with storage_errors(study.url):
        outcome = finish(study, claimed, outcome)
    told(claimed, outcome, time.monotonic() - began)
    return outcome


def _conclude(study: Study, storage: str) -> SweepDocument:
    """Write the result as it stands; the process whose trial was the last one measures the front again."""
    table = results.rows(study)
    best = results.best_of(table)
    multi = len(study.plan.sweep.objectives) > 1
    again: dict[int, float] = {}
    if multi and best and not any(row.state == "running" for row in table):
        again = _measured_again(study, table)
        best = results.best_of(table, again) if again else best
    files = results.write_configs(study, table, best, again)
    if multi and best:
        files["picture"] = "pareto.png"
    if again:
        files["front"] = "front.json"
    document = SweepDocument(
        name=study.plan.base.name,
        storage=storage,
        objectives=study.plan.sweep.objectives,
        trials=table,
        best=best,
        notes=results.notes_on(table, best),
        files=files,
        remeasured_ms={str(number): value for number, value in again.items()},
    )
    if "picture" in files:
        write_pareto(study.folder / files["picture"], document)
    results.write_document(study.folder, document)
    return document


def _measured_again(study: Study, table: Sequence[TrialRow]) -> dict[int, float]:
    """Trial -> latency of the INT8 files nearest to the front, measured in the same rounds; kept in `front.json`.

    The trials ran at different times on a host that may have been busy; only times of one benchmark can be compared.
    Empty where a file is on another machine.
    """
    front = results.nearest_to_front(table)[:MOST_AGAIN]
    models = {number: study.trials_folder / str(number) / "quantize" / "model.int8.onnx" for number in front}
    if not all(file.is_file() for file in models.values()) or len(models) < 2:
        return {}
    with tempfile.TemporaryDirectory(prefix="front-") as scratch:
        targets = [Path(scratch) / f"trial_{number}.onnx" for number in front]
        for number, target in zip(front, targets, strict=True):
            shutil.copyfile(models[number], target)
        known = study.folder / "front.json"
        document = _still_valid(known, targets) or bench_target(targets, as_measured(study.plan.base.bench))
    write_atomic(known, to_json(document))
    times: dict[int, float] = {}
    for row in document.variants:
        number = int(row.target.removeprefix("trial_"))
        runtime = next(entry.facts["row"] for entry in table if entry.number == number)
        if row.latency_us is not None and row.status != "failed" and row.id.endswith(f"-{runtime}"):
            times[number] = row.latency_us.p50 / 1e3
    return times if set(times) == set(front) else {}


def _still_valid(file: Path, targets: Sequence[Path]) -> BenchDocument | None:
    """The benchmark of exactly these files, if there is one."""
    if not file.is_file():
        return None
    document = BenchDocument.model_validate_json(file.read_bytes())
    wanted = [sha256(target.read_bytes()).hexdigest() for target in targets]
    return document if [model.sha256 for model in document.models] == wanted else None
