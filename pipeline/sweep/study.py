"""Optuna: the storage, what to try next, who works on what, and what a killed process left behind.

DIR/sweep.db            the storage, unless another one is named
DIR/.sweep.lock         held for a moment to take a trial, so that processes on one machine never take too many
DIR/.owner              which sweep the folder is of, and a name of its own in a storage that many machines share
DIR/trials/N/           the run folder of trial N
DIR/trials/.N.lock      held by whoever works on trial N: when it is free and the trial is not over, that one died
"""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import URL, create_engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from edge_demo.errors import Error, InputError
from pipeline.sweep.plan import Choices, Dimension, Plan
from pipeline.sweep.trial import Outcome, host_fingerprint
from pipeline.workspace import write_atomic

SQLITE_WAIT_S = 60.0  # for another process's write
STARTUP_TRIALS = 10  # at random before TPE learns: Optuna's default, divided among Hyperband's brackets
REDUCTION = 3  # Source: Li et al. 2018, "Hyperband", JMLR 18: the theory says e, practice 3 or 4
ATTEMPTS = 3  # values whose process was killed that often are not tried again
DIRECTIONS = {"val": "maximize", "latency_ms": "minimize"}


@dataclass(frozen=True, slots=True)
class Study:
    """An open sweep."""

    optuna: optuna.Study
    plan: Plan
    folder: Path
    url: URL
    owner: str
    shared: bool
    """True: the storage is not this folder's own."""

    @property
    def trials_folder(self) -> Path:
        """Where the trials' run folders are."""
        return self.folder / "trials"


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial this process works on."""

    trial: Trial
    params: dict[str, Any]
    folder: Path
    lock: IO[str]


def open_study(plan: Plan, folder: Path, storage: str | None) -> Study:
    """Open or begin a sweep in a folder, made if absent.

    Args:
        plan: What to try.
        folder: The sweep's folder.
        storage: URL of a database that many machines share; None: SQLite in the folder.

    Raises:
        InputError: the folder is another thing's, the storage cannot be used, or it holds another sweep.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _own_folder(folder)
    url = _url(storage) if storage else make_url(f"sqlite:///{folder.resolve() / 'sweep.db'}")
    objectives = plan.sweep.objectives
    with locked(folder / ".sweep.lock"), storage_errors(url):
        owner = _owner(folder, plan.base.name, shared=storage is not None)
        wait = {"connect_args": {"timeout": SQLITE_WAIT_S}} if url.get_backend_name() == "sqlite" else {}
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=wait),
            study_name=plan.base.name,
            directions=[DIRECTIONS[objective] for objective in objectives],  # type: ignore[misc]
            load_if_exists=True,
            pruner=_pruner(plan),
        )
        opened = Study(study, plan, folder, url, owner, shared=storage is not None)
        _same_sweep(opened)
    return opened


def shown(storage: str | None, folder: Path) -> str:
    """The storage for people: no password, and no options, which may hold one, too."""
    if storage is None:
        return str(folder / "sweep.db")
    return _hidden(make_url(storage))


def claim(study: Study) -> Claim | None:
    """Take the next trial and hold its lock until `finish`; None when as many as wanted have begun.

    Several machines on one storage may each begin one more than wanted, because a lock on files is one machine's.
    """
    with locked(study.folder / ".sweep.lock"):
        _requeue_killed(study)
        trials = study.optuna.get_trials(deepcopy=False)
        begun = [trial for trial in trials if trial.state != TrialState.WAITING and not killed(trial)]
        if len(begun) >= study.plan.sweep.trials:
            return None
        trial = study.optuna.ask()
        lock = _try_lock(_lock_file(study, trial.number))
        if lock is None:
            raise Error(f"{study.folder}: trial {trial.number} is held by another process", "type another --run DIR")
        trial.set_user_attr("owner", study.owner)
        # Set after `ask`, which samples nothing: seeded by the number, a resumed sweep does not repeat its first draws,
        # and processes side by side do not draw alike.
        study.optuna.sampler = _sampler(study.plan, trial.number)
        params = {dimension.key: _suggest(trial, dimension) for dimension in study.plan.space}
    return Claim(trial, params, _trial_folder(study, trial), lock)


def reporter(study: Study, claimed: Claim, epochs: int) -> Any:
    """A `trial.Report` that asks Hyperband, or None with several objectives, for which it is not defined.

    A trial in its last epoch is never given up: all its cost is paid.
    """
    if len(study.plan.sweep.objectives) > 1:
        return None
    known = set(claimed.trial.study.get_trials(deepcopy=False)[claimed.trial.number].intermediate_values)

    def report(epoch: int, value: float) -> bool:
        if epoch not in known:
            known.add(epoch)
            claimed.trial.report(value, epoch)
        return epoch < epochs and claimed.trial.should_prune()

    return report


def finish(study: Study, claimed: Claim, outcome: Outcome) -> Outcome:
    """Record how a trial ended, and let go of it."""
    trial = claimed.trial
    outcome = _same_val(study, outcome)
    if outcome.reason:
        trial.set_user_attr("reason", outcome.reason)
    trial.set_user_attr("facts", outcome.facts)
    if outcome.state == "complete":
        study.optuna.tell(trial, [outcome.values[objective] for objective in study.plan.sweep.objectives])
    else:
        state = TrialState.PRUNED if outcome.state == "pruned" else TrialState.FAIL
        study.optuna.tell(trial, state=state)
    release(study, claimed)
    return outcome


def release(study: Study, claimed: Claim) -> None:
    """Let go of a trial; one that is not finished will be gone on with."""
    claimed.lock.close()
    if claimed.trial.study.get_trials(deepcopy=False)[claimed.trial.number].state.is_finished():
        _lock_file(study, claimed.trial.number).unlink(missing_ok=True)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for a lock among the processes of this machine; the kernel frees it however its owner ends."""
    with file.open("a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# --- what to try next ------------------------------------------------------------------------------------------------


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    if len(plan.sweep.objectives) > 1:
        return optuna.pruners.NopPruner()
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=plan.epochs, reduction_factor=REDUCTION)


def _sampler(plan: Plan, number: int) -> optuna.samplers.TPESampler:
    """TPE; with Hyperband each bracket learns for itself, so that its random start is divided among them."""
    brackets = 1
    while len(plan.sweep.objectives) == 1 and REDUCTION**brackets <= plan.epochs:
        brackets += 1
    seed = int(np.random.SeedSequence((plan.sweep.seed, number)).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(3, STARTUP_TRIALS // brackets))


def _suggest(trial: Trial, dimension: Dimension) -> Any:
    if isinstance(dimension, Choices):
        return trial.suggest_categorical(dimension.key, list(dimension.values))
    if dimension.whole:
        step = int(dimension.step or 1)
        return trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high), step=step, log=dimension.log)
    return trial.suggest_float(dimension.key, dimension.low, dimension.high, step=dimension.step, log=dimension.log)


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna's storage knows it."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution(list(dimension.values))
    if dimension.whole:
        return IntDistribution(
            int(dimension.low), int(dimension.high), log=dimension.log, step=int(dimension.step or 1)
        )
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


# --- who works on what -----------------------------------------------------------------------------------------------


def killed(trial: FrozenTrial) -> bool:
    """Whether a trial's process died; one that failed says why."""
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


def _requeue_killed(study: Study) -> None:
    """A trial of this folder that nobody holds is told as killed, and its values are the next to be tried again."""
    for trial in study.optuna.get_trials(states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get("owner")
        if owner != study.owner and (owner is not None or study.shared):
            continue
        lock = _try_lock(_lock_file(study, trial.number))
        if lock is None:
            continue
        with lock:
            _end_killed(study, trial)
        _lock_file(study, trial.number).unlink()


def _end_killed(study: Study, trial: FrozenTrial) -> None:
    """Told first and asked for again then: killed in between, other values take its place."""
    study.optuna.tell(trial.number, state=TrialState.FAIL)
    attempt = int(trial.user_attrs.get("attempt", 1))
    if attempt < ATTEMPTS and len(trial.params) == len(study.plan.space):
        study.optuna.enqueue_trial(trial.params, user_attrs={"resumes": trial.number, "attempt": attempt + 1})


def _trial_folder(study: Study, trial: Trial) -> Path:
    """The trial's run folder; what a killed trial with the same values left is taken over, checkpoint and all."""
    folder = study.trials_folder / str(trial.number)
    former = study.trials_folder / str(trial.user_attrs.get("resumes", ""))
    if "resumes" in trial.user_attrs and former.is_dir() and not folder.exists():
        former.rename(folder)
    return folder


def _lock_file(study: Study, number: int) -> Path:
    study.trials_folder.mkdir(exist_ok=True)
    return study.trials_folder / f".{number}.lock"


def _try_lock(file: Path) -> IO[str] | None:
    stream = file.open("a", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


# --- one sweep, one storage ------------------------------------------------------------------------------------------


def _own_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a sweep's folder", "choose another one with --run DIR")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ".sweep.lock").exists():
        raise InputError(
            f"{folder}: has files, but is not a sweep's folder", "choose a new or empty one with --run DIR"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".sweep.lock").touch()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})", "choose another --run DIR") from None


def _owner(folder: Path, name: str, *, shared: bool) -> str:
    """This folder's own name. Its trials' folders are numbered as one sweep's in one storage, never two."""
    file = folder / ".owner"
    mine = {"sweep": name, "shared": shared}
    if not file.exists():
        write_atomic(file, json.dumps({"id": uuid.uuid4().hex, **mine}))
    known = json.loads(file.read_text(encoding="utf-8"))
    if {key: known[key] for key in mine} != mine:
        where = "a shared storage" if known["shared"] else "its own storage"
        raise InputError(f"{folder}: is of sweep '{known['sweep']}' in {where}", "type another --run DIR")
    return str(known["id"])


def _url(text: str) -> URL:
    """A storage's URL whose driver is here; nothing is connected yet. The text is never shown: it may hold secrets."""
    hint = "give e.g. --storage postgresql://USER@HOST/DATABASE, the password in ~/.pgpass"
    try:
        url = make_url(text)
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise InputError(f"--storage: unknown kind of database '{url.get_backend_name()}'", hint)
        create_engine(url)
    except ModuleNotFoundError as error:
        raise InputError(f"--storage: needs {error.name}, which is not installed", _installs(error.name)) from None
    except (ArgumentError, ValueError, TypeError):
        raise InputError("--storage: not a database URL", hint) from None
    return url


def _hidden(url: URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)


def _installs(module: str | None) -> str:
    package = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}.get(module or "", module)
    return f"type: pip install '{package}'"


@contextmanager
def storage_errors(url: URL) -> Iterator[None]:
    """Turn what a database or its driver says into one line without the password."""
    hidden = _hidden(url)
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
        said = " ".join(str(getattr(cause, "orig", None) or cause or error).split())
        for secret in filter(None, (url.password, *map(str, url.query.values()))):
            said = said.replace(secret, "***")
        raise InputError(f"{hidden}: cannot be used as storage ({said})", "is it there, and may you write?") from None


def _same_sweep(study: Study) -> None:
    """Refuse to mix sweeps: trials of another config, space or host cannot be compared."""
    plan = study.plan
    mine: dict[str, Any] = {"objectives": list(plan.sweep.objectives)}
    config = plan.base.model_dump(mode="json", exclude={"name", "evaluate", "bundle", "report"})
    mine |= {f"{section}.{key}": value for section, keys in config.items() for key, value in keys.items()}
    mine |= {f"sweep.space: {dimension.key}": repr(distribution(dimension)) for dimension in plan.space}
    if "latency_ms" in plan.sweep.objectives:
        mine["this host's hardware"] = host_fingerprint()
    known = study.optuna.user_attrs.get("plan")
    if known is None:
        study.optuna.set_user_attr("plan", json.dumps(mine))
        return
    theirs = json.loads(known)
    changed = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        problem = f"{changed[0]} has changed{more}, so new trials could not be compared with the old ones"
        raise InputError(f"sweep '{plan.base.name}' in {study.folder}: {problem}", "type another --run DIR or name")


def _same_val(study: Study, outcome: Outcome) -> Outcome:
    """A trial measured on other val images than the first one, on a machine with other data, is a failure."""
    if outcome.state != "complete":
        return outcome
    known = study.optuna.user_attrs.get("val_sha256")
    if known is None:
        study.optuna.set_user_attr("val_sha256", outcome.facts["val_sha256"])
    elif known != outcome.facts["val_sha256"]:
        return Outcome("failed", reason="its val images are not those of the first trial", facts=outcome.facts)
    return outcome
