"""Inverted residuals: few parameters and multiplications, for devices that have little of either."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from stages.models.layers import Act, activation, conv_norm, he_normal, refuse_small
from stages.spec import ModelConfig

EXPANSION = 6  # channels inside of a block, per channel that enters it
LAST_SIDE = 8  # stages halve the picture until its longer side is at most this
MAX_GROWTH = 8  # channels double per stage, up to this many times `width`
LAST_GROWTH = 4  # channels before the pooling, per channel of the last stage; the paper's 1280 / 320
SMALLEST = 8


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


class Mobile(nn.Module):
    """MobileNetV2 for small pictures: the side is halved in the stem and by every stage but the first.

    Stem, unexpanded first block, last 1x1 convolution and global average pooling as in table 2 of the paper; each stage
    is a block that changes the channels and `depth` that add. Initialization: He et al. 2015, arXiv:1502.01852.
    """

    def __init__(
        self,
        in_channels: int,
        size_wh: tuple[int, int],
        num_labels: int,
        depth: int,
        width: int,
        dropout: float,
        act: Act,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(in_channels, 2 * width, 3, stride=2) | {"act": act()})
        channels, side = width, (max(size_wh) + 1) // 2
        first = InvertedResidual(2 * width, width, 1, 1, act)
        stages = [[first, *(InvertedResidual(width, width, EXPANSION, 1, act) for _ in range(depth))]]
        while side > LAST_SIDE or len(stages) < 2:
            grown = min(2 * channels, MAX_GROWTH * width)
            changes = InvertedResidual(channels, grown, EXPANSION, 2, act)
            stages.append([changes, *(InvertedResidual(grown, grown, EXPANSION, 1, act) for _ in range(depth))])
            channels, side = grown, (side + 1) // 2
        self.stages = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
        features = LAST_GROWTH * channels
        self.last = nn.Sequential(conv_norm(channels, features, 1) | {"act": act()})
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, num_labels)
        he_normal(self)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (N, C, H, W) -> logits (N, num_labels), embedding (N, 4 x channels of the last stage)."""
        embedding = self.pool(self.last(self.stages(self.stem(batch))))
        return self.head(self.dropout(embedding)), embedding


def mobile(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """MobileNetV2 for small pictures: 1 + `depth` inverted residuals per stage, `width` channels in the first.

    Raises:
        InputError: a side below 8 pixels.
    """
    refuse_small(config.name, size_wh, SMALLEST)
    act = activation(config, own="relu6")
    return Mobile(in_channels, size_wh, num_labels, config.depth, config.width, config.dropout, act)
