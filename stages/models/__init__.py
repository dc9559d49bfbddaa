"""The networks, as plain modules: float32 NCHW batch -> the raw outputs of their task. Registry: `MODELS`.

A new model is one file here and one row in `MODELS`. Only operators that run as INT8 in both runtimes: convolution
followed by batch norm (folded at export), ReLU, addition, pooling, a linear layer. No module is used twice.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from edge_demo.errors import InputError
from stages.models.convnet import convnet
from stages.models.counts import macs, parameters, receptive_field
from stages.models.detector import detector
from stages.models.fast import fast
from stages.models.mlp import mlp
from stages.models.mobile import mobile
from stages.models.perceptron import perceptron
from stages.models.resnet import resnet
from stages.models.segmenter import segmenter
from stages.spec import ModelConfig

__all__ = ["MODELS", "Builder", "Network", "build", "macs", "network", "parameters", "receptive_field"]

Builder = Callable[[ModelConfig, int, tuple[int, int], int], nn.Module]


@dataclass(frozen=True, slots=True)
class Network:
    """A row of the registry."""

    build: Builder
    dials: tuple[str, ...]
    """The keys of `train.model` that it has; any other one may not be set."""
    int8: str
    """What of it ONNX Runtime and OpenVINO both run in INT8, activations apart."""
    activation: str = ""
    """What `train.model.activation = "auto"` means to it; empty: nothing."""
    tasks: tuple[str, ...] = ("classify", "multilabel")
    """What it is for: keys of `stages.tasks.TASKS`, whose `raw_outputs` it returns."""


STAGED = ("depth", "width", "activation", "dropout", "last_side", "channels")

MODELS: dict[str, Network] = {
    "perceptron": Network(perceptron, ("dropout",), "matrix product"),
    "mlp": Network(mlp, ("depth", "width", "activation", "dropout", "channels"), "matrix products", "relu"),
    "convnet": Network(convnet, ("activation", "dropout"), "convolutions, max pooling, matrix product", "relu"),
    "fast": Network(
        fast,
        (*STAGED, "pool_stem", "identity_start", "whiten_start"),
        "convolutions, max pooling, matrix product",
        "relu",
    ),
    "resnet": Network(resnet, STAGED, "convolutions, additions, max pooling, matrix product", "relu"),
    "mobile": Network(
        mobile,
        STAGED,
        "convolutions (depthwise too), additions, matrix product; not average pooling in ONNX Runtime",
        "relu6",
    ),
    "detector": Network(
        detector,
        ("depth", "width", "activation", "last_side"),
        "convolutions, additions, max pooling, nearest resizing; what comes after is float",
        "relu",
        ("detect",),
    ),
    "segmenter": Network(
        segmenter,
        ("depth", "width", "activation", "last_side", "pool_stem"),
        "convolutions, max pooling, nearest resizing, concatenation; what comes after is float",
        "relu",
        ("segment",),
    ),
}


def build(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """A freshly initialized network, from torch's global random generator.

    Args:
        config: Name and dials.
        in_channels: 1 (gray) or 3 (RGB).
        size_wh: Width and height of the pictures.
        num_labels: Number of classes; at least 2 for classify.

    Returns:
        A module whose forward takes a float32 (N, in_channels, H, W) batch and returns the raw outputs of its task; for
        classify logits (N, num_labels) and embedding (N, features): what the last linear layer sees.

    Raises:
        InputError: unknown name, a dial that the network does not have, or a picture too small for it.
    """
    row = network(config.name)
    for dial, field in ModelConfig.model_fields.items():
        if dial != "name" and dial not in row.dials and getattr(config, dial) != field.default:
            have = [name for name, other in MODELS.items() if dial in other.dials and other.tasks == row.tasks]
            hint = f"leave it out, or choose {' or '.join(have)}" if have else "leave it out"
            raise InputError(f"train.model.{dial}: has no effect on {config.name}", hint)
    return row.build(config, in_channels, size_wh, num_labels)


def network(name: str) -> Network:
    """The row of a name.

    Raises:
        InputError: unknown name.
    """
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(MODELS)}"
    raise InputError(f"train.model.name: unknown network '{name}'", hint)
