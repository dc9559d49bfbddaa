"""The run folder: one folder per stage, committed by one rename; lock, manifest `run.json`, log `events.jsonl`.

    DIR/config.toml     the effective config; reading it back gives the same run
    DIR/run.json        what the last command did and found, schema pipeline.run/1
    DIR/events.jsonl    what happened when, over all commands; appended
    DIR/<stage>/        a finished stage
    DIR/.stages.json    key, digests and result of every finished stage: what caching goes by
    DIR/.partial-...    a stage at work; never read by anything else
    DIR/.old-<stage>    the stage's former folder, for the moment of the swap
    DIR/.lock           held while a command works here

A commit writes `.stages.json` first and swaps the folders then; `opened` finishes a swap that was cut off in between.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edge_demo.errors import InputError
from stages.spec import RESULT, Gate

RUN_SCHEMA = "pipeline.run/1"
EVERYTHING_AGAIN = "delete that file to run every stage again"


class StageRecord(BaseModel):
    """One stage of a run."""

    model_config = RESULT
    name: str
    key: str
    status: Literal["ran", "cached", "failed"]
    seconds: float
    """Wall time of the run that made the outputs; a cached stage keeps it."""
    outputs: dict[str, str]
    """Path inside the stage's folder -> sha256."""
    result: dict[str, Any] | None
    """The stage's typed result (`stages.spec`); null for a failed stage."""
    error: str = ""


class RunGate(Gate):
    """A gate, and the stage it belongs to."""

    stage: str


class RunDocument(BaseModel):
    """`run.json`: what a command did in the run folder, and everything it found."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    schema_: Annotated[Literal["pipeline.run/1"], Field(alias="schema")] = "pipeline.run/1"
    name: str
    config: dict[str, Any]
    stages: tuple[StageRecord, ...]
    """In order. After a command for an early stage, later ones are listed only where they are still valid."""
    system: dict[str, Any]
    software: dict[str, str]
    gates: tuple[RunGate, ...]

    def stage(self, name: str) -> StageRecord | None:
        """The record of a stage; None when it did not get that far."""
        return next((record for record in self.stages if record.name == name), None)

    @property
    def missed(self) -> tuple[RunGate, ...]:
        """The gates that were not met."""
        return tuple(gate for gate in self.gates if not gate.passed)

    def to_json(self) -> str:
        """The text of `run.json`."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"


INDEX = TypeAdapter(dict[str, StageRecord])


@dataclass(frozen=True, slots=True)
class Workspace:
    """A locked run folder. `finished` is what `.stages.json` says."""

    folder: Path
    finished: dict[str, StageRecord]

    def cached(self, name: str, key: str) -> StageRecord | None:
        """The record of a finished stage with this key whose files are all as they were written; else None."""
        record = self.finished.get(name)
        if record is None or record.key != key or not intact(self.folder / name, record.outputs):
            return None
        return record.model_copy(update={"status": "cached"})

    def begin(self, name: str, key: str, *, keep: bool) -> Path:
        """The temporary folder a stage writes into; with `keep`, a killed run's files are still there."""
        partial = self._partial(name, key)
        for other in self.folder.glob(f".partial-{name}-*"):
            if not (keep and other == partial):
                _remove(other)
        partial.mkdir(exist_ok=True)
        return partial

    def commit(self, name: str, key: str, seconds: float, result: dict[str, Any]) -> StageRecord:
        """Make the temporary folder the stage's folder, at once and for good."""
        outputs = digests(self._partial(name, key))
        record = StageRecord(name=name, key=key, status="ran", seconds=seconds, outputs=outputs, result=result)
        self.finished[name] = record
        write_atomic(self.folder / ".stages.json", INDEX.dump_json(self.finished, indent=1).decode() + "\n")
        self._swap(name, key)
        return record

    def discard(self, name: str, key: str) -> None:
        """Remove the temporary folder of a stage that failed."""
        _remove(self._partial(name, key))

    def event(self, **values: Any) -> None:
        """Append one line to `events.jsonl`."""
        line = json.dumps({"t": datetime.now(UTC).isoformat(timespec="milliseconds"), **values})
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _partial(self, name: str, key: str) -> Path:
        return self.folder / f".partial-{name}-{key[:12]}"

    def _swap(self, name: str, key: str) -> None:
        target, old = self.folder / name, self.folder / f".old-{name}"
        _remove(old)
        if target.exists():
            target.rename(old)
        self._partial(name, key).rename(target)
        _remove(old)

    def recover(self, resumable: frozenset[str]) -> None:
        """Put in order what a killed command left: finish or undo its swap, drop partial stages that cannot resume."""
        for name, record in self.finished.items():
            partial = self._partial(name, record.key)
            if partial.is_dir() and intact(partial, record.outputs):
                self._swap(name, record.key)
        for old in self.folder.glob(".old-*"):
            target = self.folder / old.name.removeprefix(".old-")
            if target.exists():
                _remove(old)
            else:
                old.rename(target)
        for partial in self.folder.glob(".partial-*"):
            if partial.name.removeprefix(".partial-").rpartition("-")[0] not in resumable:
                _remove(partial)


@contextmanager
def opened(folder: Path, resumable: frozenset[str] = frozenset()) -> Iterator[Workspace]:
    """Lock a run folder, made if absent, and put in order what a killed command left in it.

    Raises:
        InputError: not a folder, not writable, not a run folder, or another process works in it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a run folder", "choose another one with --run DIR")
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not any((folder / name).exists() for name in (".lock", "run.json"))
    ):
        raise InputError(f"{folder}: has files, but is not a run folder", "choose a new or empty one with --run DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})", "choose another --run DIR") from None
    with lock:
        _lock(lock, folder)
        space = Workspace(folder, _read_index(folder / ".stages.json"))
        space.recover(resumable)
        yield space


def _lock(file: IO[str], folder: Path) -> None:
    """The kernel frees it when the process ends, however it ends."""
    try:
        import fcntl
    except ModuleNotFoundError:
        raise InputError("runs need file locks of a POSIX system", "use Linux, macOS or WSL") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        raise InputError(f"{folder}: process {owner} works in this run folder", "wait for it, or --run DIR") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()


def _read_index(file: Path) -> dict[str, StageRecord]:
    if not file.exists():
        return {}
    try:
        return INDEX.validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
        raise InputError(f"{file}: not readable ({str(error).splitlines()[0]})", EVERYTHING_AGAIN) from None


def read_run(folder: Path) -> RunDocument:
    """The `run.json` of a run folder.

    Raises:
        InputError: there is none, or it is not one.
    """
    file = folder / "run.json"
    try:
        return RunDocument.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder}: no run.json there", f"type: pipeline all --run {folder}") from None
    except (ValidationError, OSError) as error:
        raise InputError(f"{file}: not a {RUN_SCHEMA} file ({str(error).splitlines()[0]})", EVERYTHING_AGAIN) from None


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below a folder, sorted."""
    return {file.relative_to(folder).as_posix(): _digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def intact(folder: Path, outputs: dict[str, str]) -> bool:
    """Whether every output is there with its digest. All bytes are read: 60 MB take 45 ms, measured on one core."""
    try:
        return folder.is_dir() and all(_digest(folder / path) == sha256 for path, sha256 in outputs.items())
    except OSError:
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(file: Path, text: str) -> None:
    """Write a file so that its name always shows either the old or the new text, whatever happens meanwhile."""
    temporary = file.with_name(f".{file.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
