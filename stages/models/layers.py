"""What several networks are made of: activations, convolution with batch norm, stages, initialization."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from edge_demo.errors import InputError
from stages.spec import ModelConfig

MAX_GROWTH = 8  # channels double per stage, up to this many times `width`
SMALLEST = 8  # pixels; networks with stages see at least this

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


def halved(side: int) -> int:
    """What the 6x6 stem and a 2x2 pool make of a side."""
    return side // 2


def halved_up(side: int) -> int:
    """What a 3x3 convolution of stride 2 makes of a side."""
    return (side + 1) // 2


class PooledConv(nn.Module):
    """Convolution, 2x2 max pool, batch norm and activation: the last two on a quarter of the values.

    The scale of the norm stays 1, so its result grows with its input, and the largest of four values is the same before
    the norm and after it. In evaluation mode the pool therefore comes after the norm, which export folds into the
    convolution, and after the activation where that grows as well, which INT8 fuses; but for rounding nothing changes.
    Source of the order in training: Jordan 2024, arXiv:2404.00498.
    """

    def __init__(self, in_channels: int, out_channels: int, act: Act, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv_norm(in_channels, out_channels, kernel, stride) | {"act": act()})
        self.layers.get_parameter("norm.weight").requires_grad_(False)
        self.pool = nn.MaxPool2d(2)
        self.act_grows = isinstance(self.layers[-1], nn.ReLU | nn.ReLU6)  # silu and hardswish fall before they rise

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> half the convolution's sides, rounded down: (N, out_channels, h / 2, w / 2)."""
        conv, norm, act = self.layers
        if self.training:
            out: Tensor = act(norm(self.pool(conv(x))))
        else:
            out = self.pool(act(norm(conv(x)))) if self.act_grows else act(self.pool(norm(conv(x))))
        return out


def stage_channels(
    config: ModelConfig, first: int, size_wh: tuple[int, int], halve: Callable[[int], int] = halved
) -> list[int]:
    """Channels of every stage: twice those of the stage before, up to 8 times `width`; two stages at least.

    Args:
        config: `width` and `last_side`.
        first: Channels of the first stage.
        size_wh: Of the picture, at least 8 pixels a side. The stem and every stage but the first halve it, until the
            longer side is at most `last_side`, or the shorter one could not be halved again.
        halve: What becomes of a side.
    """
    channels, sides = [first], [halve(side) for side in sorted(size_wh)]
    while len(channels) < 2 or (sides[1] > config.last_side and sides[0] > 1):
        channels.append(min(2 * channels[-1], MAX_GROWTH * config.width))
        sides = [halve(side) for side in sides]
    return channels


def layer_channels(config: ModelConfig, own: Sequence[int]) -> Iterator[int]:
    """Channels of the layers that have a say in them, in the order they are built: `config.channels`, else `own`.

    A layer has none where something else fixes its channels: an addition, a depthwise convolution, the labels.

    Raises:
        InputError: `channels` are not as many as the network has such layers.
    """
    if config.channels and len(config.channels) != len(own):
        message = f"train.model.channels: {len(config.channels)} numbers, but this {config.name} has {len(own)} layers"
        raise InputError(message, f"without it they are {list(own)}")
    return iter(config.channels or own)


def he_normal(model: nn.Module) -> nn.Module:
    """The same model, its convolutions from a normal distribution with variance 2 / fan out; the rest as torch does it.

    Source: He et al. 2015, arXiv:1502.01852, equation 14. Derived for ReLU, used for the others as well: batch norm
    removes the scale.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def identity_start(model: nn.Module) -> nn.Module:
    """The same model, whose convolutions of stride 1 first hand on every channel they get, unchanged.

    Those of their outputs that there is no input for stay as they are. Plain convolutions so start as shortcuts, which
    a residual network has for good. Source: Jordan 2024, arXiv:2404.00498, "identity initialization".
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (1, 1):
            nn.init.dirac_(module.weight[: module.in_channels])
    return model


def refuse_small(name: str, size_wh: tuple[int, int], smallest: int = SMALLEST) -> None:
    """Raises InputError for a picture with a side below `smallest` pixels."""
    if min(size_wh) < smallest:
        raise InputError(f"data.size_wh: {size_wh[0]}x{size_wh[1]} is too small for {name}", f"use {smallest} or more")
