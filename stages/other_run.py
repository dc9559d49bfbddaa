"""What another run trained, as `train.teacher` and the like name it; no torch, so that keys are cheap to make."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_demo.errors import InputError
from stages.spec import DataResult, Split, TrainConfig, TrainResult

SCHEMA = "pipeline.run/1"
SOURCES = ("teacher", "prune", "init_from")
"""Keys of `TrainConfig` that name a run."""


class _Stage(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    name: str
    status: str
    outputs: dict[str, str] = {}
    result: dict[str, Any] | None = None


class _Run(BaseModel):
    """The part of `run.json` that is read here."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    schema_: Literal["pipeline.run/1"] = Field(alias="schema")
    stages: tuple[_Stage, ...]


@dataclass(frozen=True, slots=True)
class OtherRun:
    """A finished training of another run."""

    key: str
    """The setting that names it, e.g. `train.teacher`."""
    folder: Path
    data: DataResult
    """Its data stage's result; the folder itself need not be there any more."""
    train: TrainResult
    sha256: str
    """Of its weights."""


def read_other_run(folder: str, key: str) -> OtherRun:
    """Reads a run's account and checks its weights against it.

    Args:
        folder: The run folder, or the `train` folder inside of it; a relative path starts at the working directory.
        key: The setting that names it, for messages.

    Raises:
        InputError: no run there, its training has not finished, or its weights are not those that it wrote.
    """
    path = Path(folder).expanduser()
    path = path.parent if path.name == "train" and not (path / "run.json").is_file() else path
    stages = {stage.name: stage for stage in _read(path / "run.json", path, key).stages}
    again = f"type: pipeline train --run {path}, with the config of that run"
    data, train = (stages.get(name) for name in ("data", "train"))
    if train is None or data is None or train.status == "failed" or data.result is None or train.result is None:
        raise InputError(f"{key}: the training of {path} has not finished", again)
    try:
        seen = DataResult.model_validate_json(json.dumps(data.result)).model_copy(update={"folder": path / "data"})
        trained = TrainResult.model_validate_json(json.dumps(train.result))
    except ValidationError as error:
        what = str(error).splitlines()[0]
        raise InputError(f"{key}: {path} was written by another version of this program ({what})", again) from None
    trained = trained.model_copy(update={"folder": path / "train"})
    weights = trained.folder / trained.weights
    try:
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{key}: {weights} cannot be read ({error.strerror})", again) from None
    if sha256 != train.outputs.get(trained.weights):
        raise InputError(f"{key}: {weights} is not what that run wrote", again)
    return OtherRun(key, path, seen, trained, sha256)


def other_runs(config: TrainConfig) -> dict[str, OtherRun]:
    """Setting -> run, for those of `SOURCES` that are set.

    Raises:
        InputError: as `read_other_run`.
    """
    named = {f"train.{name}": getattr(config, name) for name in SOURCES}
    return {key: read_other_run(folder, key) for key, folder in named.items() if folder}


def fingerprint(config: TrainConfig) -> str:
    """Digest of the weights that training would read outside its run folder; empty where there are none.

    Raises:
        InputError: as `read_other_run`.
    """
    return " ".join(f"{key}={run.sha256}" for key, run in other_runs(config).items())


def check_same_problem(run: OtherRun, config: TrainConfig, data: DataResult) -> tuple[str, ...]:
    """What must hold between another run and this training's data.

    Returns:
        Sentences for people: what could not be checked.

    Raises:
        InputError: another task, other labels, size or colour, or it was trained on pictures of this val or test.
    """
    pairs = {
        "task": (run.train.task, config.task, "train.task"),
        "labels": (run.train.labels, data.labels, "data"),
        "size_wh": (run.train.size_wh, data.size_wh, "data.size_wh"),
        "colour": (run.data.colour, data.colour, "data.colour"),
    }
    for what, (its, ours, setting) in pairs.items():
        if its != ours:
            verb = "are" if what == "labels" else "is"
            message = f"{run.key}: {what} of {run.folder} {verb} {_short(its)}, not {_short(ours)}, as here"
            raise InputError(message, f"set {setting} to the same in both runs, or name another run")
    return check_unseen(run, data)


def check_unseen(run: OtherRun, data: DataResult) -> tuple[str, ...]:
    """Whether the other run has trained on what is measured here.

    Returns:
        Sentences for people: what could not be checked.

    Raises:
        InputError: it was trained on pictures of this val or test.
    """
    if run.data.digests == data.digests:
        return ()
    kept_back, seen = _hashes(data, ("val", "test")), _hashes(run.data, ("train", "val"))
    if not kept_back or not seen:
        return (f"{run.key} was trained on other data: whether it has seen val or test of this run is not known",)
    if common := len(kept_back & seen):
        message = f"{run.key}: {run.folder} was trained on {common} pictures that are val or test here"
        raise InputError(message, "use data of the same name, seed and limits in both runs")
    return ()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hashes(data: DataResult, splits: tuple[Split, ...]) -> frozenset[str]:
    """Content hashes of splits; empty where the data folder is gone."""
    try:
        items = json.loads((data.folder / "items.json").read_text(encoding="utf-8"))
        return frozenset(item["sha256"] for split in splits for item in items[split])
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _read(file: Path, folder: Path, key: str) -> _Run:
    if not file.is_file():
        raise InputError(f"{key}: {folder} is not a run folder (no run.json)", "name a folder that --run wrote")
    try:
        return _Run.model_validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
        what = str(error).splitlines()[0]
        raise InputError(f"{key}: {file} is not a {SCHEMA} file ({what})", "name a folder that --run wrote") from None
