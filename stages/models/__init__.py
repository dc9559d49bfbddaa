"""The networks, as plain modules: float32 NCHW batch -> (logits, embedding). Registry: `MODELS`.

A new model is one file here and one row in `MODELS`. Only operators that run as INT8 in both runtimes: convolution
followed by batch norm (folded at export), ReLU, addition, max pooling, a linear layer. No module is used twice.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import nn

from edge_demo.errors import InputError
from stages.models.convnet import convnet
from stages.models.counts import macs, parameters
from stages.models.resnet import resnet
from stages.spec import ModelConfig

Builder = Callable[[ModelConfig, int, tuple[int, int], int], nn.Module]

MODELS: dict[str, Builder] = {"convnet": convnet, "resnet": resnet}

__all__ = ["MODELS", "Builder", "build", "describe", "macs", "parameters"]


def build(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """A freshly initialized network, from torch's global random generator.

    Args:
        config: Name and dials.
        in_channels: 1 (gray) or 3 (RGB).
        size_wh: Width and height of the pictures.
        num_labels: Number of classes, at least 2.

    Returns:
        A module whose forward takes a float32 (N, in_channels, H, W) batch and returns logits (N, num_labels) and
        embedding (N, features): what the last linear layer sees.

    Raises:
        InputError: unknown name, a dial that the network does not have, or a picture too small for it.
    """
    return _builder(config.name)(config, in_channels, size_wh, num_labels)


def describe(name: str) -> str:
    """One line about a network, for people.

    Raises:
        InputError: unknown name.
    """
    return (_builder(name).__doc__ or "").partition("\n")[0]


def _builder(name: str) -> Builder:
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(MODELS)}"
    raise InputError(f"train.model.name: unknown network '{name}'", hint)
