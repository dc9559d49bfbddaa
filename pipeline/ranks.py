"""A command that torchrun started several times: process 0 does it, the others take part in its training."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

from edge_demo.errors import InputError


def processes() -> int:
    """How many processes torchrun (or whoever sets its variables) started; 1 when it started none."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def follows() -> bool:
    """Whether this is not the process that does the command."""
    return processes() > 1 and os.environ["RANK"] != "0"


def device_sets(devices: int | None) -> list[str]:
    """`--devices N`, or the number of processes that torchrun started, as what `--set` takes.

    Raises:
        InputError: both, and they differ.
    """
    started = processes()
    if started > 1 and devices not in (None, started):
        raise InputError(f"--devices: {devices}, but torchrun started {started} processes", "leave it out")
    wanted = started if started > 1 else devices
    return [] if wanted is None else [f"train.devices={wanted}"]


def leading() -> AbstractContextManager[None]:
    """Around the command of process 0; around any other command it does nothing."""
    if processes() == 1:
        return nullcontext()
    from stages.train.torchrun import leading

    return leading()


def follow() -> int:
    """The command of the other processes; returns the exit code of process 0."""
    from stages.train.torchrun import follow

    return follow()
