"""One of the processes that torchrun (or srun, with the same variables) started, on one host or many.

Process 0 runs the whole command and alone touches the run folder's lock. The others wait at torch's key-value store
for one of two keys: `train`, the settings and the data of a training to take part in, or `end`, the exit code.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from edge_demo.errors import Error, InputError
from stages.spec import DataResult, OnStep, TrainConfig, TrainResult, ignore
from stages.train import stage
from stages.train.distributed import TIMEOUT_S, LostError, check_devices, group

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

POLL_S = 0.2
LEAVE_S = 10.0  # how long process 0 waits at the end for the others to read the exit code


def world() -> int:
    """Number of processes started together; 0 when this one was started alone."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    return started if started > 1 else 0


def local_world() -> int:
    """How many of them run on this host; 0 when that is unknown."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "0")) if world() else 0


def lead(config: TrainConfig, data: DataResult, out_dir: Path, accelerator: str, on_step: OnStep) -> TrainResult:
    """Process 0's part: tells the others what to train, and trains with them."""
    told = {
        "config": config.model_dump(mode="json"),
        "data": data.model_dump(mode="json"),
        "folder": str(data.folder.resolve()),
        "out_dir": str(out_dir.resolve()),
        "accelerator": accelerator,
    }
    _store().set("train", json.dumps(told))
    with group(_store(), 0, world(), accelerator, TIMEOUT_S):
        return stage.run(config, data, out_dir=out_dir, on_step=on_step)


@contextmanager
def leading() -> Iterator[None]:
    """Process 0's whole command: at its end the others are told the exit code."""
    store, code = _store(), 1
    try:
        yield
        code = 0
    except Error as error:
        code = error.exit_code
        raise
    finally:
        with suppress(RuntimeError):
            store.set("end", str(code))
            store.wait([f"left/{rank}" for rank in range(1, world())], timedelta(seconds=LEAVE_S))


def follow() -> int:
    """Every other process's whole command: takes part in the training, if there is one.

    Returns:
        The exit code of process 0.

    Raises:
        InputError: this host does not see the run folder, or lacks GPUs.
        Error: process 0 is gone.
    """
    store, trained = _store(), False
    try:
        while not store.check(["end"]):
            if not trained and store.check(["train"]):
                trained = True
                _take_part(json.loads(store.get("train")))
            time.sleep(POLL_S)
        code = int(store.get("end"))
        store.set(f"left/{_rank()}", "")
        return code
    except dist.DistError as error:
        raise Error(f"training process {_rank()}: process 0 is gone", "see what it said") from error


def _take_part(told: dict[str, str]) -> None:
    folder = Path(told["folder"])
    if not folder.is_dir():
        message = f"training process {_rank()}: {folder} is not there; all hosts have to see the run folder"
        raise InputError(message, "put --run on a disk that they share")
    config = TrainConfig.model_validate(told["config"])
    data = DataResult.model_validate(told["data"]).model_copy(update={"folder": folder})
    check_devices(config, told["accelerator"], local_world() or 1)
    try:
        with group(_store(), _rank(), world(), told["accelerator"], TIMEOUT_S):
            stage.run(config, data, out_dir=Path(told["out_dir"]), on_step=ignore)
    except LostError:
        # If process 0 ended in good order it says so; else this was the news.
        try:
            _store().wait(["end"], timedelta(seconds=LEAVE_S))
        except RuntimeError:
            pass
        else:
            return
        raise


@cache
def _store() -> Store:
    """Where the processes find each other: torchrun's own store, or one that process 0 opens at MASTER_PORT.

    Raises:
        Error: the port is taken, or process 0 did not answer.
    """
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store: Store = next(dist.rendezvous("env://", timeout=timedelta(seconds=TIMEOUT_S)))[0]  # type: ignore[attr-defined]
    except (ValueError, RuntimeError) as error:
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise Error(f"MASTER_PORT: {where} is in use by another program", "choose another port") from error
        raise Error(f"process 0 cannot be reached at {where} ({str(error).splitlines()[0]})", "see its host") from error
    return store


def _rank() -> int:
    return int(os.environ["RANK"])
