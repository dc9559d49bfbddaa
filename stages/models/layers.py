"""What several networks are made of: activations, convolution with batch norm, initialization."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from edge_demo.errors import InputError
from stages.spec import ModelConfig

Act = Callable[[], nn.Module]
"""Makes an activation; a fresh one for every place, because a module that is used twice is calibrated once."""

ACTIVATIONS: dict[str, Act] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
}
"""`train.model.activation`. relu and relu6 vanish into INT8 convolutions, as a bound of their output; silu and
hardswish are operators of their own."""


def activation(config: ModelConfig, own: str = "relu") -> Act:
    """What makes the configured activation; `own` is the network's, for `auto`."""
    return ACTIVATIONS[own if config.activation == "auto" else config.activation]


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> OrderedDict[str, nn.Module]:
    """Convolution and the batch norm that export folds into it (so it needs no bias), named for the state dict."""
    padding = (kernel - stride + 1) // 2
    return OrderedDict(
        conv=nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        norm=nn.BatchNorm2d(out_channels),
    )


def he_normal(model: nn.Module) -> None:
    """Convolutions from a normal distribution with variance 2 / fan out; the rest as torch starts it.

    Source: He et al. 2015, arXiv:1502.01852, equation 14. Derived for ReLU, used for the others as well: batch norm
    removes the scale.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def refuse_small(name: str, size_wh: tuple[int, int], smallest: int) -> None:
    """Raises InputError for a picture with a side below `smallest` pixels."""
    if min(size_wh) < smallest:
        raise InputError(f"data.size_wh: {size_wh[0]}x{size_wh[1]} is too small for {name}", f"use {smallest} or more")


def refuse_dials(config: ModelConfig, *dials: str) -> None:
    """Raises InputError for a dial that is set although the network does not have it."""
    for dial in dials:
        if getattr(config, dial) != ModelConfig.model_fields[dial].default:
            raise InputError(f"train.model.{dial}: has no effect on {config.name}", "leave it out, or choose resnet")
