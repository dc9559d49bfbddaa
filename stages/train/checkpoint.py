"""The state of an interrupted training: one safetensors file with JSON in its header, replaced by one rename."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from edge_demo.errors import Error
from stages.train.distributed import is_first
from stages.train.learner import Learner

FILE = Path("checkpoint") / "state.safetensors"
SCHEMA = "pipeline.checkpoint/2"


@dataclass(slots=True)
class Progress:
    """What of a training is not a tensor. Order of the data and random changes follow from seed and epoch alone."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Optimizer steps done."""
    best: float = -1.0
    """Highest leading metric on val."""
    best_epoch: int = 0
    """First epoch with `best`; patience counts from here."""
    kept_epoch: int = 0
    """Epoch of the kept weights."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    """One row of curves.csv per epoch."""
    index: int = 0
    """Optimizer steps done of the epoch under way; 0 between epochs."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of the epoch under way, by `stages.train.running`."""
    pass_size: int = 0
    """Pictures of one pass; 0: not chosen yet."""
    batch_size: int = 0
    """The batch found for `train.batch_size = 0`."""
    lr_scale: float = 1.0
    """Factor of the learning rate, from recoveries."""
    recoveries: int = 0
    notes: list[str] = field(default_factory=list)
    """What happened on the way."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the fp16 loss scaler; empty in other precisions."""


Identity = Mapping[str, Any]
"""Everything the final weights depend on, as plain JSON values in nested tables."""


def save_checkpoint(
    out_dir: Path, identity: Identity, progress: Progress, learner: Learner, kept: dict[str, Tensor]
) -> None:
    """Writes the state, in the first process; a kill at any moment leaves the old file or the new one, whole."""
    if not is_first():
        return
    progress.scaler = dict(learner.fabric.strategy.precision.state_dict())
    tensors = {f"model.{name}": tensor for name, tensor in plain(learner.core.state_dict()).items()}
    if learner.average is not None:
        averaged = plain(learner.average.network.state_dict())
        tensors |= {f"average.{name}": tensor for name, tensor in averaged.items()}
    tensors |= {f"kept.{name}": tensor for name, tensor in kept.items()}
    for index, state in learner.inner_optimizer.state_dict()["state"].items():
        present = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in plain(present).items()}
    metadata = {"schema": SCHEMA, "identity": json.dumps(identity), "progress": json.dumps(asdict(progress))}
    write_atomic(out_dir / FILE, save(tensors, metadata))


def load_checkpoint(out_dir: Path, learner: Learner) -> tuple[Progress, dict[str, Tensor]]:
    """Puts a saved state of the same training into the learner.

    Returns:
        Progress and the weights kept so far.

    Raises:
        Error: the file is damaged.
    """
    path = out_dir / FILE
    with _readable(path), safe_open(path, framework="pt") as file:
        progress = Progress(**json.loads(file.metadata()["progress"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        learner.core.load_state_dict(_part(tensors, "model."))
        if learner.average is not None:
            learner.average.network.load_state_dict(_part(tensors, "average."))
        _fill_optimizer(learner.inner_optimizer, _part(tensors, "optimizer."))
        learner.fabric.strategy.precision.load_state_dict(progress.scaler)
        return progress, _part(tensors, "kept.")


def differences(out_dir: Path, identity: Identity) -> list[str] | None:
    """How the training that left a checkpoint differs from this one.

    Returns:
        Sentences such as `train.lr was 0.01 and is 0.02`; empty: it is the same training; None: there is no checkpoint.

    Raises:
        Error: the file is damaged.
    """
    path = out_dir / FILE
    if not path.is_file():
        return None
    with _readable(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("schema") != SCHEMA:
            return [f"its format was {metadata.get('schema')} and is {SCHEMA}"]
        before, now = dict(_flat(json.loads(metadata["identity"]))), dict(_flat(json.loads(json.dumps(identity))))
    keys = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    return [f"{key} was {_short(before.get(key))} and is {_short(now.get(key))}" for key in keys]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        message = f"{path.name}: the checkpoint cannot be read ({str(error).splitlines()[0]})"
        raise Error(message, f"to start over, delete {path.parent}") from error


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detached contiguous copies on the CPU, as safetensors wants them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def write_atomic(path: Path, content: bytes) -> None:
    """Writes beside the file, flushes to disk, renames over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Like `load_state_dict`, but each moment gets the memory layout of its parameter, which fused kernels need."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        param = params[int(index)]
        like = torch.empty_like(param, dtype=tensor.dtype) if tensor.shape == param.shape else torch.empty_like(tensor)
        optimizer.state[param][key] = like.copy_(tensor)
