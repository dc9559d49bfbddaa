"""Training in several processes: on one host started and watched over here, on many by torchrun.

One host (`--devices N`): the command's process owns the run folder and trains nothing; N processes train, the first of
them writes into the stage's folder. When one is killed, all start again from the last checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch.distributed as dist

from edge_demo.errors import Error
from stages.spec import DataResult, OnStep, Step, TrainConfig, TrainResult, ignore
from stages.train import stage, torchrun
from stages.train.device import choose_accelerator
from stages.train.distributed import TIMEOUT_S, LostError, check_devices, group
from stages.train.examples import check_config

MAX_RESTARTS = 3
GRACE_S = 5.0  # after the first failure, how long the others have to say what they know of it


@dataclass(frozen=True, slots=True)
class Job:
    """What every process is told."""

    config: TrainConfig
    data: DataResult
    out_dir: Path
    accelerator: str
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Worker:
    """A process, and where it tells its steps and how it ended."""

    rank: int
    process: BaseProcess
    pipe: Connection


@dataclass(frozen=True, slots=True)
class Died:
    """An end without a word; `code` below 0 is the signal's number."""

    rank: int
    code: int


End = TrainResult | BaseException | Died


def run(config: TrainConfig, data: DataResult, *, out_dir: Path, on_step: OnStep = ignore) -> TrainResult:
    """Trains as `stages.train.stage.run`, on as many devices as `config.devices` says.

    Raises:
        InputError: settings that do not fit data or hardware.
        Error: as `stage.run`; or a process hung, or was killed more than three times.
    """
    if config.devices == 1:
        return stage.run(config, data, out_dir=out_dir, on_step=on_step)
    check_config(config, data)
    accelerator = choose_accelerator(config)
    check_devices(config, accelerator, torchrun.local_world() or config.devices)
    if torchrun.world():
        return torchrun.lead(config, data, out_dir, accelerator, on_step)
    return supervise(Job(config, data, out_dir, accelerator), on_step)


def supervise(job: Job, on_step: OnStep) -> TrainResult:
    """Starts the processes, again when one is killed, and returns what the first of them found."""
    notes: list[str] = []
    while True:
        ends = _attempt(job, on_step)
        killed = next((end for end in ends if isinstance(end, Died) and -end.code not in (0, signal.SIGABRT)), None)
        if killed is None or killed.code >= 0:
            result = _conclude(ends, job.timeout_s)
            return result.model_copy(update={"notes": (*result.notes, *notes)})
        name = signal.Signals(-killed.code).name
        what = f"training process {killed.rank} of {job.config.devices} was killed ({name})"
        if len(notes) == MAX_RESTARTS:
            raise Error(f"{what}, after {MAX_RESTARTS} restarts", "often the host is out of memory: see its system log")
        notes.append(f"{what}; restart {len(notes) + 1} of {MAX_RESTARTS}, from the last checkpoint")
        on_step(Step("train", note=notes[-1]))


def _conclude(ends: Sequence[End], timeout_s: float) -> TrainResult:
    """The result, or the error that explains the most: who gave a reason comes before who lost the others."""
    errors = [end for end in ends if isinstance(end, BaseException)]
    for error in errors:
        if not isinstance(error, LostError):
            raise error
    for end in ends:
        if isinstance(end, Died):
            raise Error(f"training process {end.rank} ended by itself (code {end.code})", "run again with --debug")
    if errors:
        message = f"a training process did not answer for {timeout_s:g} s"
        raise Error(message, "look for an overloaded host, a full disk, or a debugger that holds it") from errors[0]
    result = ends[0]
    assert isinstance(result, TrainResult)
    return result


def _attempt(job: Job, on_step: OnStep) -> list[End]:
    """One start of all processes; returns how they ended, in no order but the first one's result at the front."""
    context = multiprocessing.get_context("spawn")
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="pipeline-train-") as folder:
        try:
            for rank in range(job.config.devices):
                ours, theirs = context.Pipe(duplex=False)
                arguments = (job, rank, str(Path(folder) / "store"), theirs)
                process = context.Process(target=_work, args=arguments, name=f"train-{rank}", daemon=True)
                process.start()
                theirs.close()
                workers.append(Worker(rank, process, ours))
            return _watch(workers, on_step)
        finally:
            for worker in workers:
                worker.process.kill()
            for worker in workers:
                worker.process.join()
                worker.pipe.close()


def _watch(workers: Sequence[Worker], on_step: OnStep) -> list[End]:
    """Passes steps on until all ended, or until some time after the first failure."""
    by_pipe = {worker.pipe: worker for worker in workers}
    ends: dict[int, End] = {}
    deadline: float | None = None
    while by_pipe:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = [pipe for pipe in wait(list(by_pipe), left) if isinstance(pipe, Connection)]
        if not ready:
            break
        for pipe in ready:
            said = _receive(by_pipe[pipe])
            if isinstance(said, Step):
                on_step(said)
                continue
            ends[by_pipe.pop(pipe).rank] = said
            if not isinstance(said, TrainResult) and deadline is None:
                deadline = time.monotonic() + GRACE_S
    return [ends[rank] for rank in sorted(ends)]


def _receive(worker: Worker) -> Step | End:
    try:
        said: Step | End = worker.pipe.recv()
        return said
    except EOFError:
        worker.process.join()
        return Died(worker.rank, worker.process.exitcode or 0)


def _work(job: Job, rank: int, store: str, pipe: Connection) -> None:
    """A training process from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all; the command's process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["LOCAL_RANK"] = str(rank)
    # Nobody else on the network has a part in this.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    world = job.config.devices
    try:
        found = dist.FileStore(store, world)  # type: ignore[attr-defined]
        with group(found, rank, world, job.accelerator, job.timeout_s):
            on_step = pipe.send if rank == 0 else ignore
            pipe.send(stage.run(job.config, job.data, out_dir=job.out_dir, on_step=on_step))
    except BaseException as error:  # noqa: BLE001 - it is raised again in the command's process
        error.add_note("".join(traceback.format_exception(error)))
        pipe.send(error)


def _end_with_parent() -> None:
    """A killed command must not leave processes behind that write into a folder it does not lock any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
