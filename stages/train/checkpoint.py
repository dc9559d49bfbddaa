"""The state of an interrupted training: one safetensors file with JSON in its header, replaced by one rename."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edge_demo.errors import Error

FILE = Path("checkpoint") / "state.safetensors"
SCHEMA = "pipeline.checkpoint/1"


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
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the fp16 loss scaler; empty in other precisions."""


def save_checkpoint(
    out_dir: Path,
    identity: str,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    kept: dict[str, Tensor],
) -> None:
    """Writes the state after an epoch; a kill at any moment leaves the old file or the new one, whole."""
    tensors = {f"model.{name}": tensor for name, tensor in plain(model.state_dict()).items()}
    tensors |= {f"kept.{name}": tensor for name, tensor in kept.items()}
    for index, state in optimizer.state_dict()["state"].items():
        present = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in plain(present).items()}
    metadata = {"schema": SCHEMA, "identity": identity, "progress": json.dumps(asdict(progress))}
    write_atomic(out_dir / FILE, save(tensors, metadata))


def load_checkpoint(
    out_dir: Path, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Puts a saved state into model and optimizer.

    Args:
        out_dir: Folder of the stage.
        identity: What the training depends on; a checkpoint of another one is not used.
        model: The same network; changed in place.
        optimizer: Likewise.

    Returns:
        Progress and the weights kept so far; None when there is no checkpoint of this training.

    Raises:
        Error: the file is damaged.
    """
    path = out_dir / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("schema") != SCHEMA or metadata.get("identity") != identity:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        model.load_state_dict(_part(tensors, "model."))
        _fill_optimizer(optimizer, _part(tensors, "optimizer."))
        return Progress(**json.loads(metadata["progress"])), _part(tensors, "kept.")
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        message = f"{path.name}: the checkpoint cannot be read ({str(error).splitlines()[0]})"
        raise Error(message, f"to start over, delete {path.parent}") from error


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
