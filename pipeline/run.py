"""The ordered stages, and the loop that runs those whose key has changed. A stage is imported only when it runs."""

from __future__ import annotations

import errno
import importlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from edge_demo.errors import Error, missing_extra
from pipeline.config import PipelineConfig, dump_toml
from pipeline.keys import ROOT, canonical, code_digest, library_versions, software, stage_key
from pipeline.workspace import RunDocument, RunGate, StageRecord, Workspace, opened, write_atomic
from stages.other_run import fingerprint
from stages.spec import (
    BenchResult,
    BundleResult,
    DataResult,
    EvaluateResult,
    ExportResult,
    Gate,
    OnStep,
    QuantizeResult,
    ReportResult,
    Step,
    TrainResult,
)

CV2 = ("opencv-python", "opencv-python-headless")
RUNTIMES = ("onnxruntime", "openvino")
TORCH = ("torch", "lightning-fabric", "safetensors", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One row of the pipeline. Its module has `run(config, *results, out_dir, on_step) -> result`."""

    name: str
    """Also the name of its config section and its folder."""
    module: str
    needs: tuple[str, ...]
    """Stages whose results it takes, in the order of its parameters."""
    result: type[BaseModel]
    libraries: tuple[str, ...]
    """Distributions whose version is part of the key."""
    files: tuple[str, ...] = ()
    """Files besides Python sources that are part of its code, as globs from the project's root."""
    outside: Callable[[Any], str] = lambda config: ""
    """Config -> digest of what it reads outside the run folder."""
    resumable: bool = False
    """Whether it can go on in the temporary folder that a killed run left."""


def _data_fingerprint(config: Any) -> str:
    fingerprint: Callable[[Any], str] = importlib.import_module("stages.data").fingerprint
    return fingerprint(config)


def _host_fingerprint(config: Any) -> str:
    return str(_system()["fingerprint"])


STAGES: tuple[Stage, ...] = (
    Stage(
        name="data",
        module="stages.data",
        needs=(),
        result=DataResult,
        libraries=("numpy", "mlxtend", *CV2),
        outside=_data_fingerprint,
    ),
    Stage(
        name="train",
        module="stages.train",
        needs=("data",),
        result=TrainResult,
        libraries=(*TORCH, "matplotlib"),
        outside=fingerprint,
        resumable=True,
    ),
    Stage(
        name="export",
        module="stages.export",
        needs=("data", "train"),
        result=ExportResult,
        libraries=(*TORCH, "onnx", "onnxscript", *RUNTIMES),
    ),
    Stage(
        name="quantize",
        module="stages.quantize",
        needs=("data", "train", "export"),
        result=QuantizeResult,
        libraries=(*TORCH, "onnx", *RUNTIMES),
        outside=_host_fingerprint,  # target "auto" and what is faster are this host's
    ),
    Stage(
        name="evaluate",
        module="stages.evaluate",
        needs=("data", "train", "export", "quantize"),
        result=EvaluateResult,
        libraries=(*TORCH, *RUNTIMES),
    ),
    Stage(
        name="bundle",
        module="stages.bundle",
        needs=("data", "train", "export", "quantize", "evaluate"),
        result=BundleResult,
        libraries=("numpy", *CV2, *RUNTIMES),
    ),
    Stage(
        name="bench",
        module="stages.bench",
        needs=("bundle",),
        result=BenchResult,
        libraries=("numpy", *CV2, *RUNTIMES),
        outside=_host_fingerprint,
    ),
    Stage(
        name="report",
        module="pipeline.report",
        needs=("data", "train", "export", "quantize", "evaluate", "bundle", "bench"),
        result=ReportResult,
        libraries=("numpy", "jinja2", "matplotlib", "pillow"),
        files=("pipeline/templates/*",),
    ),
)


@dataclass(frozen=True, slots=True)
class Event:
    """What the run tells whoever watches."""

    kind: Literal["start", "step", "end"]
    stage: str
    step: Step | None = None
    """With `step`."""
    record: StageRecord | None = None
    """With `end`."""


Watch = Callable[[Event], None]


def run_pipeline(
    config: PipelineConfig,
    folder: Path,
    *,
    until: str = "report",
    stages: Sequence[Stage] = STAGES,
    watch: Watch = lambda event: None,
    root: Path = ROOT,
) -> RunDocument:
    """Run a stage and everything it needs, skipping what is unchanged; the account is `run.json`.

    Args:
        config: The run's config.
        folder: The run folder; made if absent.
        until: Name of the last stage wanted.
        stages: The pipeline, in an order in which needs come first.
        watch: Called for each event.
        root: The folder that holds the stages' packages.

    Returns:
        What `run.json` holds. A gate that was missed is in there, not raised.

    Raises:
        InputError: the folder cannot be used, or a stage refused its input.
        Error: a stage failed; earlier results are intact, and a later call goes on there.
    """
    wanted = needed(until, stages)
    resumable = frozenset(stage.name for stage in stages if stage.resumable)
    with _disk_full(str(folder)), opened(folder, resumable) as space:
        write_atomic(folder / "config.toml", dump_toml(config))
        loop = _Loop(config, space, watch, stages, root)
        space.event(event="start", until=until)
        for stage in stages:
            if stage.name in wanted or all(need in loop.results for need in stage.needs):
                loop.advance(stage, may_run=stage.name in wanted)
            if any(gate.stop and not gate.passed for gate in loop.gates):
                break
        document = loop.write()
        space.event(event="end", missed=[gate.name for gate in document.missed])
        return document


def needed(until: str, stages: Sequence[Stage] = STAGES) -> set[str]:
    """A stage's name, and those of all it needs."""
    needs = {stage.name: stage.needs for stage in stages}
    found, queue = set[str](), [until]
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += needs[name]
    return found


class _Loop:
    """What one call has found so far."""

    def __init__(
        self, config: PipelineConfig, space: Workspace, watch: Watch, stages: Sequence[Stage], root: Path
    ) -> None:
        self.config, self.space, self.watch, self.root = config, space, watch, root
        self.libraries = sorted({name for stage in stages for name in stage.libraries} | {"train-to-edge"})
        self.records: dict[str, StageRecord] = {}
        self.results: dict[str, Any] = {}
        self.gates: list[RunGate] = []

    def advance(self, stage: Stage, *, may_run: bool) -> None:
        """Take a stage's cached result, else run it; without `may_run` a stage that is not cached is passed over."""
        section = _section(self.config, stage.name)
        key = self._key(stage, section)
        record = self.space.cached(stage.name, key)
        if record is None and may_run:
            record = self._run(stage, section, key)
        if record is None:
            return
        self.records[stage.name] = record
        result = stage.result.model_validate_json(json.dumps(record.result))
        self.results[stage.name] = result.model_copy(update={"folder": self.space.folder / stage.name})
        if may_run:
            gates: tuple[Gate, ...] = getattr(result, "gates", ())
            self.gates += [RunGate(stage=stage.name, **gate.model_dump()) for gate in gates]
            self.space.event(event=record.status, stage=stage.name, key=key)
            if record.status == "ran":
                self.write()
            self.watch(Event("end", stage.name, record=record))

    def write(self) -> RunDocument:
        """Bring `run.json` up to date."""
        document = RunDocument(
            name=self.config.name,
            config=self.config.model_dump(mode="json"),
            stages=tuple(self.records.values()),
            system=_system(),
            software=software(self.libraries),
            gates=tuple(self.gates),
        )
        write_atomic(self.space.folder / "run.json", document.to_json())
        return document

    def _key(self, stage: Stage, section: BaseModel) -> str:
        inputs = {need: _digest_of(self.records[need]) for need in stage.needs}
        try:
            return stage_key(
                name=stage.name,
                config=section.model_dump(mode="json"),
                inputs=inputs,
                code=code_digest(stage.module, stage.files, self.root),
                libraries=library_versions(stage.libraries),
                outside=stage.outside(section),
            )
        except BaseException as error:
            # What a stage reads outside the run folder may be missing: to people that is the stage's failure.
            self._note_failure(stage.name, "", 0.0, error)
            raise

    def _run(self, stage: Stage, section: BaseModel, key: str) -> StageRecord:
        self.space.event(event="run", stage=stage.name, key=key)
        self.watch(Event("start", stage.name))
        started = time.perf_counter()
        try:
            with _disk_full(stage.name):
                out_dir = self.space.begin(stage.name, key, keep=stage.resumable)
                inputs = [self.results[need] for need in stage.needs]
                result = _function(stage)(section, *inputs, out_dir=out_dir, on_step=self._on_step(stage.name))
                return self.space.commit(stage.name, key, time.perf_counter() - started, _plain(stage, result))
        except BaseException as error:
            if not (stage.resumable and isinstance(error, KeyboardInterrupt)):
                self.space.discard(stage.name, key)
            self._note_failure(stage.name, key, time.perf_counter() - started, error)
            raise

    def _on_step(self, name: str) -> OnStep:
        def on_step(step: Step) -> None:
            if step.note:
                self.space.event(event="note", stage=name, note=step.note)
            self.watch(Event("step", name, step=step))

        return on_step

    def _note_failure(self, name: str, key: str, seconds: float, error: BaseException) -> None:
        text = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        record = StageRecord(name=name, key=key, status="failed", seconds=seconds, outputs={}, result=None, error=text)
        self.records[name] = record
        self.watch(Event("end", name, record=record))
        try:
            self.space.event(event="failed", stage=name, key=key, error=text)
            self.write()
        except OSError:
            return  # the disk may be full; the error that is on its way says more


def _section(config: PipelineConfig, name: str) -> BaseModel:
    if name == "bundle" and not config.bundle.name:
        return config.bundle.model_copy(update={"name": config.name})
    section: BaseModel = getattr(config, name)
    return section


def _digest_of(record: StageRecord) -> dict[str, Any]:
    return {"outputs": record.outputs, "result": record.result}


def _function(stage: Stage) -> Callable[..., BaseModel]:
    try:
        function: Callable[..., BaseModel] = importlib.import_module(stage.module).run
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library in ("pipeline", "stages", "edge_demo", ""):
            raise
        raise missing_extra(f"stage '{stage.name}'", library, "headless" if library == "cv2" else "train") from error
    return function


def _plain(stage: Stage, result: BaseModel) -> dict[str, Any]:
    """The result as JSON, after proof that it reads back: later commands have nothing else."""
    values: dict[str, Any] = result.model_dump(mode="json")
    try:
        stage.result.model_validate_json(canonical(values))
    except (ValueError, ValidationError) as error:
        raise Error(f"stage '{stage.name}': its result cannot be saved ({error})") from error
    return values


@cache
def _system() -> Mapping[str, Any]:
    """Facts about this host, read once."""
    facts: Mapping[str, Any] = importlib.import_module("stages.bench.system").system().model_dump(mode="json")
    return facts


@contextmanager
def _disk_full(where: str) -> Iterator[None]:
    """Turn "no space left", from the system or wrapped by a library, into one line."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        hint = "earlier results are intact: free some space and type the same command again"
        raise Error(f"{where}: no space left on the disk", hint) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or the one behind it, says that the disk, a quota or a file-size limit is exhausted."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
