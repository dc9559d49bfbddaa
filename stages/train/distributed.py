"""What one of several training processes has to know: who it is, what its part is, and what the others found.

Every function also holds for a training of one process, where it costs nothing: rank 0 of 1, the part is the whole.
Those that talk to the others have to be called by every process, in the same order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edge_demo.errors import Error, InputError
from stages.spec import TrainConfig
from stages.train.sync_norm import synchronized

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")
TIMEOUT_S = 300.0
"""How long a process waits for the others before it gives up; checkpoints and pictures are written meanwhile."""
LOOK_EVERY = 10  # steps between two looks at the losses of several processes
LOST = re.compile(r"gloo|connection (closed|reset)|timed out|broken pipe", re.IGNORECASE)
"""What Gloo says, in a plain RuntimeError, when another process is gone or silent."""


def rank() -> int:
    """This process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and tells people."""
    return rank() == 0


def part_of(total: int) -> slice:
    """Which pictures of a batch are this process's; `total` is a multiple of the number of processes."""
    n = total // world()
    return slice(rank() * n, (rank() + 1) * n)


def shard(batch: Tensor) -> Tensor:
    """This process's part of a batch (N, ...) that all have."""
    return batch[part_of(len(batch))]


def mine(items: Sequence[T]) -> Sequence[T]:
    """Every `world()`-th item, from the one with this process's number; for `in_order`."""
    return items[rank() :: world()]


def in_order(found: list[T]) -> list[T]:
    """What all processes found for their `mine(items)`, in the order of the items; the same on every process."""
    if world() == 1:
        return found
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, found)
    return [part[index] for index in range(len(parts[0])) for part in parts if index < len(part)]


def reduce_sums(*values: float) -> list[float]:
    """The sum of each value over all processes, in float64; the same bits on every process."""
    if world() == 1:
        return list(values)
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, values)
    return [sum(column) for column in zip(*parts, strict=True)]


def average(parameters: Iterable[nn.Parameter], loss: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
    """Every gradient becomes its mean over the processes, which for equal parts is that of the whole batch.

    Called once per optimizer step, after the last `backward` and before anything reads gradients. One message carries
    them all and the two numbers with them, so that what follows from a loss (NaN, recovery) is the same everywhere.

    Args:
        parameters: Those of the network.
        loss: Mean over this process's part, on its device.
        hits: Sum over this process's part.

    Returns:
        Mean loss and sum of hits over all parts.
    """
    if world() == 1:
        return loss, hits
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    numbers = torch.stack([loss.detach().float(), hits.detach().float()])
    flat = torch.cat([numbers, *(gradient.reshape(-1) for gradient in gradients)])
    dist.all_reduce(flat)
    means = flat[2:] / world()
    for gradient, mean in zip(gradients, torch.split(means, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
    return flat[0] / world(), flat[1]


def for_many(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch norms over all processes; the model itself when there is one process."""
    return synchronized(model, device) if world() > 1 else model


def agree(what: str, value: object) -> None:
    """Proof that all processes start from the same state.

    Raises:
        Error: they differ, e.g. because hosts see different run folders.
    """
    values: list[Any] = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    if any(other != value for other in values):
        raise Error(f"the {world()} training processes differ in {what}: {values}", "use one shared --run folder")


def check_devices(config: TrainConfig, accelerator: str, local: int) -> None:
    """What must hold before processes are started.

    Args:
        config: Settings; `batch_size` is that of all processes together.
        accelerator: `cpu` or `cuda`.
        local: How many of the processes run on this host.

    Raises:
        InputError: the batch cannot be divided, or there are fewer GPUs than processes.
    """
    if config.devices == 1:
        return
    if config.batch_size == 0:
        raise InputError("train.batch_size: 0 (find the largest) works on one device", "set it to a number")
    if config.compile:
        raise InputError("train.compile: works on one device", "set it to false")
    if config.batch_size % config.devices:
        lower = config.batch_size // config.devices * config.devices
        message = f"train.batch_size: {config.batch_size} cannot be divided among {config.devices} devices"
        raise InputError(message, f"set it to {lower or config.devices} or {lower + config.devices}")
    if accelerator == "cuda" and local > torch.cuda.device_count():
        message = f"train.devices: {local} GPUs were asked for on this host, which has {torch.cuda.device_count()}"
        raise InputError(message, "set train.devices, or train.accelerator to cpu")


class LostError(Error):
    """Another process ended, or does not answer."""


@contextmanager
def group(store: Store, rank: int, world: int, accelerator: str, timeout_s: float) -> Iterator[None]:
    """The processes as one group, which the functions above talk to.

    Args:
        store: Where they find each other.
        rank: This process.
        world: Their number.
        accelerator: `cpu` (Gloo) or `cuda` (NCCL, and Gloo for what is no tensor).
        timeout_s: How long one waits for the others, whatever for.

    Raises:
        LostError: one of the others ended or did not answer in that time.
    """
    backend = "gloo" if accelerator == "cpu" else "cpu:gloo,cuda:nccl"
    if accelerator == "cuda":
        torch.cuda.set_device(local_rank())
    try:
        wait = timedelta(seconds=timeout_s)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or LOST.search(str(error))):
            raise
        message = f"training process {rank} of {world} lost the others (they ended, or were silent for {timeout_s:g} s)"
        raise LostError(message, "see what else was said, and whether the hosts are overloaded") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def local_rank() -> int:
    """Number of this process, and of its GPU, on its host, as torchrun and the workers of `--devices` are told it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_device(accelerator: str) -> list[int] | int:
    """Fabric's `devices`: one CPU, or this process's GPU."""
    return [local_rank()] if accelerator == "cuda" else 1


def is_due(step: int, late: bool) -> bool:
    """Whether losses are looked at after this step: in one process by the clock, as `late` says, in several by number.

    A bad loss takes all processes back to an earlier step, so they must all look at the same one.
    """
    return late if world() == 1 else step % LOOK_EVERY == 0
