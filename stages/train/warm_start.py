"""Weights of another training to start from: whatever of its body has the same name and shape."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edge_demo.errors import InputError
from stages.spec import TrainResult

BODY = "body."
"""What networks of several tasks share begins with it; heads are left as they are."""


def weights_file(run: str) -> Path:
    """The weights that a run's training kept.

    Raises:
        InputError: there are none.
    """
    file = Path(run).expanduser() / "train" / str(TrainResult.model_fields["weights"].default)
    if not file.is_file():
        raise InputError(f"train.init_from: {file} is not there", "name the folder of a run whose training is done")
    return file


def weights_digest(run: str) -> str:
    """sha256 of those weights; empty for no run."""
    return hashlib.sha256(weights_file(run).read_bytes()).hexdigest() if run else ""


def fitting(core: nn.Module, run: str) -> dict[str, Tensor]:
    """The run's weights and batch norm statistics that fit the body of a network, by their names.

    Raises:
        InputError: there are none, or the file is damaged.
    """
    file = weights_file(run)
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"train.init_from: {file} cannot be read ({error})", "train that run again") from error
    own = {name: tensor for name, tensor in core.state_dict().items() if name.startswith(BODY)}
    fits = {name: tensor for name, tensor in found.items() if name in own and own[name].shape == tensor.shape}
    if not fits:
        message = f"train.init_from: nothing in {run} fits this network's body"
        raise InputError(message, "train it on the same kind of body: 'fast' with pool_stem, and the same width")
    return fits


def warm_start(core: nn.Module, run: str) -> None:
    """Fills what fits, in place."""
    core.load_state_dict(fitting(core, run), strict=False)


def told(core: nn.Module, run: str) -> str:
    """What was filled, as a sentence."""
    own = sum(name.startswith(BODY) for name in core.state_dict())
    return f"starts from {run}: {len(fitting(core, run))} of {own} tensors of the body fit"
