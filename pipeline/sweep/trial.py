"""One trial: the pipeline in a run folder of its own, up to what the objectives need."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edge_demo.errors import Error
from pipeline.config import PipelineConfig
from pipeline.keys import ROOT
from pipeline.run import STAGES, Event, Stage, Watch, is_disk_full, run_pipeline
from pipeline.sweep.latency import LatencyResult
from pipeline.workspace import INDEX, RunDocument, write_atomic
from stages.spec import Objective

Report = Callable[[int, float], bool]
"""(epoch, val metric) -> whether the trial is to be given up."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended."""

    state: Literal["complete", "pruned", "failed"]
    values: dict[str, float] = field(default_factory=dict)
    """Objective -> value."""
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """`metric`, `val_n`, `val_sha256`; with latency `row`, `host_status` and `int8_passed`."""


class _PrunedError(Exception):
    """Leaves the training from inside its progress report."""


def sweep_stages(stages: Sequence[Stage], objectives: Sequence[Objective]) -> tuple[Stage, ...]:
    """The stages of a trial, none of which reads test."""
    if "latency_ms" not in objectives:
        return tuple(stage for stage in stages if stage.name in ("data", "train"))
    wanted = tuple(stage for stage in stages if stage.name in ("data", "train", "export", "quantize"))
    bench = next(stage for stage in STAGES if stage.name == "bench")
    return (*wanted, replace(bench, module="pipeline.sweep.latency", needs=("quantize",), result=LatencyResult))


def run_trial(
    make_config: Callable[[], PipelineConfig],
    folder: Path,
    stages: Sequence[Stage],
    *,
    report: Report | None = None,
    watch: Watch = lambda event: None,
    root: Path = ROOT,
) -> Outcome:
    """Run one trial; whatever it dies of is its outcome.

    Args:
        make_config: The trial's config; what it raises is the trial's failure.
        folder: The trial's run folder. One that a killed process left is gone on with.
        stages: Those of `sweep_stages`; all of them run.
        report: Called after each epoch; None: nothing is given up.
        watch: Called for each event of the run.
        root: The folder that holds the stages' packages.

    Raises:
        KeyboardInterrupt: the trial can go on later.
        Error: the disk is full, which is no property of the trial.
    """

    def watched(event: Event) -> None:
        watch(event)
        found = epoch_value(event) if report else None
        if report and found and report(*found):
            raise _PrunedError(f"given up after epoch {found[0]}: val {found[1]:.4f} is too low there")

    try:
        document = run_pipeline(make_config(), folder, until=stages[-1].name, stages=stages, watch=watched, root=root)
    except _PrunedError as pruned:
        return Outcome("pruned", reason=str(pruned))
    except Exception as error:
        # The other trials go on, and this one says why it did not.
        if is_disk_full(error):
            raise
        name = "" if isinstance(error, Error) else f"{type(error).__name__}: "
        return Outcome("failed", reason=" ".join(f"{name}{error}".split()))
    return _outcome(document, stages)


def epoch_value(event: Event) -> tuple[int, float] | None:
    """(epoch, val metric) where an event is the end of a training epoch that has been measured."""
    if event.stage != "train" or event.step is None or "epoch" not in event.step.values:
        return None
    metrics = [value for name, value in event.step.values.items() if name.startswith("val_") and name != "val_loss"]
    return (int(event.step.values["epoch"]), metrics[0]) if metrics else None


def _outcome(document: RunDocument, stages: Sequence[Stage]) -> Outcome:
    results = {record.name: record.result for record in document.stages if record.result}
    last = stages[-1].name
    if last not in results:
        stopped = [gate for gate in document.missed if gate.stop]
        return Outcome("failed", reason=stopped[0].message if stopped else f"stage '{last}' did not run")
    data, train, end = results["data"], results["train"], results[last]
    values = {"val": end["val"]}
    facts = {
        "metric": train["metric"],
        "val_n": data["counts"]["val"],
        "val_sha256": data["digests"]["val"],
        "seconds": sum(record.seconds for record in document.stages),
    }
    if last == "bench":
        values["latency_ms"] = end["latency_ms"]
        passed = results["quantize"]["passed"]
        facts |= {"row": end["row"], "host_status": end["status"], "int8_passed": passed}
    return Outcome("complete", values, facts=facts)


def lend_data(trials: Path, folder: Path) -> None:
    """Give a new run folder the prepared data of an earlier trial, as hard links: no time and no space twice.

    The engine still checks key and digests, and prepares the data anew where they differ.
    """
    if folder.exists():
        return
    for index in sorted(trials.glob("*/.stages.json"), key=lambda file: -file.stat().st_mtime):
        record = INDEX.validate_json(index.read_bytes()).get("data")
        if record is None or not (index.parent / "data").is_dir():
            continue
        try:
            for path in record.outputs:
                target = folder / "data" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(index.parent / "data" / path, target)
        except OSError:
            return  # no hard links here, or another process is at it: the trial prepares its own
        finally:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()
        write_atomic(folder / ".stages.json", INDEX.dump_json({"data": record}, indent=1).decode() + "\n")
        return


def host_fingerprint() -> str:
    """Digest of the hardware: where it is equal, times may be compared."""
    return str(importlib.import_module("stages.bench.system").system().fingerprint)
