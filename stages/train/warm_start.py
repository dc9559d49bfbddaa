"""Weights of another training to start from: whatever of its body has the same name and shape."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edge_demo.errors import InputError
from stages.other_run import OtherRun

INIT_FROM = "train.init_from"
BODY = "body."
"""What networks of several tasks share begins with it; heads are left as they are."""


def fitting(core: nn.Module, run: OtherRun) -> dict[str, Tensor]:
    """The run's weights and batch norm statistics that fit the body of a network, by their names.

    Raises:
        InputError: there are none, or the file is damaged.
    """
    file = run.train.folder / run.train.weights
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{INIT_FROM}: {file} cannot be read ({error})", "train that run again") from error
    own = {name: tensor for name, tensor in core.state_dict().items() if name.startswith(BODY)}
    fits = {name: tensor for name, tensor in found.items() if name in own and own[name].shape == tensor.shape}
    if not fits:
        message = f"{INIT_FROM}: nothing in {run.folder} fits this network's body"
        raise InputError(message, "train it on the same kind of body: 'fast' with pool_stem, and the same width")
    return fits


def warm_start(core: nn.Module, run: OtherRun) -> None:
    """Fills what fits, in place."""
    core.load_state_dict(fitting(core, run), strict=False)


def told(core: nn.Module, run: OtherRun) -> str:
    """What was filled, as a sentence."""
    own = sum(name.startswith(BODY) for name in core.state_dict())
    return f"{len(fitting(core, run))} of {own} tensors of the body are those of {run.folder}"
