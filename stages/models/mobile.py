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
    refuse_dials,
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

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, act: Act) -> None:
        super().__init__()
        inner = expansion * in_channels
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion > 1:
            layers["expand"] = nn.Sequential(conv_norm(in_channels, inner, 1) | {"act": act()})
        layers["depthwise"] = nn.Sequential(conv_norm(inner, inner, 3, stride, groups=inner) | {"act": act()})
        layers["project"] = nn.Sequential(conv_norm(inner, out_channels, 1))
        self.layers = nn.Sequential(layers)
        self.adds = stride == 1 and in_channels == out_channels

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
        InputError: `pool_stem` or `identity_start` set, or a side below 8 pixels.
    """
    refuse_dials(config, "pool_stem", "identity_start")
    refuse_small(config.name, size_wh)
    act, width = activation(config, own="relu6"), config.width
    channels = stage_channels(config, width, size_wh, halved_up)
    stem = nn.Sequential(conv_norm(in_channels, 2 * width, 3, stride=2) | {"act": act()})
    stages = nn.Sequential()
    for seen, made in zip([2 * width, *channels], channels, strict=False):
        changes = (
            InvertedResidual(seen, made, EXPANSION, 2, act) if len(stages) else InvertedResidual(seen, made, 1, 1, act)
        )
        stages.append(
            nn.Sequential(changes, *(InvertedResidual(made, made, EXPANSION, 1, act) for _ in range(config.depth)))
        )
    features = LAST_GROWTH * channels[-1]
    last = nn.Sequential(conv_norm(channels[-1], features, 1) | {"act": act()})
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    body = nn.Sequential(OrderedDict(stem=stem, stages=stages, last=last, pool=pool))
    return he_normal(Classifier(body, features, num_labels, config.dropout))
