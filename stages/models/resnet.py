"""A residual network for small pictures, made of what INT8 runs fastest."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn

from stages.models.classifier import Classifier
from stages.models.layers import (
    Act,
    activation,
    conv_norm,
    he_normal,
    layer_channels,
    refuse_small,
    stage_channels,
)
from stages.spec import ModelConfig


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), 3x3; x goes through a 1x1 convolution where the channels change.

    Source: He et al. 2016, arXiv:1512.03385, figure 2 and section 3.3 (option B). The addition comes before the ReLU,
    so both runtimes fuse it into the convolution.
    """

    def __init__(self, in_channels: int, inner: int, out_channels: int, act: Act, *, changes: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(conv_norm(in_channels, inner, 3) | {"act": act()})
        self.second = nn.Sequential(conv_norm(inner, out_channels, 3))
        self.shortcut = nn.Sequential(conv_norm(in_channels, out_channels, 1)) if changes else nn.Identity()
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        out: Tensor = self.act(self.second(self.first(x)) + self.shortcut(x))
        return out


def resnet(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """Batch-norm residual network for small pictures; `depth` blocks per stage, 2 x `width` channels in the first.

    A 6x6 stem of stride 2, then stages of residual blocks with a max pool between them, then global max pooling.
    The stem is a 3x3 convolution of the space-to-depth picture, written as the one convolution it is: it sees every
    pixel once at half the side, and takes odd sides as well. Initialization: He et al. 2015, arXiv:1502.01852.

    Raises:
        InputError: a side below 8 pixels, or `channels` of other layers.
    """
    refuse_small(config.name, size_wh)
    act = activation(config)
    widths = stage_channels(config, 2 * config.width, size_wh)
    changes = [width != before for before, width in pairwise([0, *widths])]
    # of the stem, and of every block inside and, where they change, behind it
    own = [width for width, new in zip(widths, changes, strict=True) for _ in range(config.depth + int(new))]
    channels = layer_channels(config, own)
    seen = next(channels)
    stem = nn.Sequential(conv_norm(in_channels, seen, 6, stride=2) | {"act": act()})
    stages = nn.Sequential()
    for index in range(len(widths)):
        stage = nn.Sequential(nn.MaxPool2d(2)) if index else nn.Sequential()
        for block in range(config.depth):
            new = changes[index] and index > 0 and not block
            inner = next(channels)
            made = next(channels) if new else seen
            stage.append(Block(seen, inner, made, act, changes=new))
            seen = made
        stages.append(stage)
    pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    body = nn.Sequential(OrderedDict(stem=stem, stages=stages, pool=pool))
    return he_normal(Classifier(body, seen, num_labels, config.dropout))
