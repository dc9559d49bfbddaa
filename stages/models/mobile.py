"""Inverted residuals: few parameters and multiplications, for devices that have little of either."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from stages.models.classifier import Classifier
from stages.models.layers import (
    Act,
    activation,
    conv_norm,
    halved_up,
    he_normal,
    layer_channels,
    refuse_small,
    stage_channels,
)
from stages.spec import ModelConfig

EXPANSION = 6  # channels inside of a block, per channel that enters it
LAST_GROWTH = 4  # channels before the pooling, per channel of the last stage; the paper's 1280 / 320


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise 3x3, 1x1 back without activation; added to x where the shapes are the same.

    Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381, table 1.
    """

    def __init__(
        self, in_channels: int, inner: int, out_channels: int, stride: int, act: Act, *, expands: bool, adds: bool
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expands:
            layers["expand"] = nn.Sequential(conv_norm(in_channels, inner, 1) | {"act": act()})
        layers["depthwise"] = nn.Sequential(conv_norm(inner, inner, 3, stride, groups=inner) | {"act": act()})
        layers["project"] = nn.Sequential(conv_norm(inner, out_channels, 1))
        self.layers = nn.Sequential(layers)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h / stride, w / stride), rounded up."""
        out: Tensor = self.layers(x)
        return x + out if self.adds else out


def mobile(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """MobileNetV2 for small pictures: 1 + `depth` inverted residuals per stage, `width` channels in the first.

    The side is halved in the stem and by every stage but the first. Stem, unexpanded first block, last 1x1 convolution
    and global average pooling as in table 2 of the paper; each stage is a block that changes the channels and `depth`
    that add. Initialization: He et al. 2015, arXiv:1502.01852.

    Raises:
        InputError: a side below 8 pixels, or `channels` of other layers.
    """
    refuse_small(config.name, size_wh)
    act, width = activation(config, own="relu6"), config.width
    widths = stage_channels(config, width, size_wh, halved_up)
    channels = layer_channels(config, _own_channels(widths, config.depth))
    seen = next(channels)
    stem = nn.Sequential(conv_norm(in_channels, seen, 3, stride=2) | {"act": act()})
    stages = nn.Sequential()
    for index in range(len(widths)):
        stage = nn.Sequential()
        for block in range(1 + config.depth):
            first = not index and not block
            inner = seen if first else next(channels)
            made = seen if block else next(channels)
            stride = 2 if index and not block else 1
            stage.append(InvertedResidual(seen, inner, made, stride, act, expands=not first, adds=bool(block)))
            seen = made
        stages.append(stage)
    features = next(channels)
    last = nn.Sequential(conv_norm(seen, features, 1) | {"act": act()})
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    body = nn.Sequential(OrderedDict(stem=stem, stages=stages, last=last, pool=pool))
    return he_normal(Classifier(body, features, num_labels, config.dropout))


def _own_channels(widths: list[int], depth: int) -> list[int]:
    """Channels of stem, of each block inside and, where they change, behind it, and of the last convolution."""
    seen = 2 * widths[0]
    channels = [seen]
    for index, width in enumerate(widths):
        channels += [EXPANSION * seen, width] if index else [width]
        channels += [EXPANSION * width] * depth
        seen = width
    return [*channels, LAST_GROWTH * widths[-1]]
