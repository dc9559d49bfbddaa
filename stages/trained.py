"""The trained network, read back from its checkpoint: the torch reference of export and evaluate."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edge_demo.errors import Error, InputError
from stages.graph import Deployed, Preprocess
from stages.models import build
from stages.spec import DataResult, TrainResult
from stages.tasks import TASKS

CHANNELS = {"gray": 1, "rgb": 3}


def load_trained(data: DataResult, train: TrainResult) -> Deployed:
    """Preprocess, network and post step in float32 on the CPU, in eval mode, with the best weights.

    Raises:
        InputError: data and checkpoint do not belong together (channels, size, labels).
        Error: the checkpoint is missing, damaged, of another network, or holds NaN or infinity.
    """
    _same_problem(data, train)
    core = build(train.model, in_channels=train.in_channels, size_wh=train.size_wh, num_labels=len(train.labels))
    path = train.folder / train.weights
    _fill(core, _read(path), path)
    pre = Preprocess(data.colour, data.mean, data.std)
    return Deployed(pre, core, TASKS[train.task].post(train.size_wh)).eval().float()


def _same_problem(data: DataResult, train: TrainResult) -> None:
    pairs = {
        "channels": (CHANNELS[data.colour], train.in_channels),
        "size_wh": (data.size_wh, train.size_wh),
        "labels": (data.labels, train.labels),
    }
    for what, (of_data, of_train) in pairs.items():
        if of_data != of_train:
            message = f"{what} of the data ({of_data}) are not those the network was trained on ({of_train})"
            raise InputError(message, "type: pipeline train")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise Error(f"{path.name}: the trained weights cannot be read ({error})", "type: pipeline train") from error


def _fill(core: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Error(f"{path.name}: {name} holds NaN or infinity", "train again with a smaller lr")
    try:
        core.load_state_dict(weights)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise Error(f"{path.name}: weights of another network: {detail}", "type: pipeline train") from error
