"""An encoder and a decoder: the body of `fast`, and its maps joined from the smallest to the largest."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_demo.errors import InputError
from stages.models.fast import fast_stages
from stages.models.layers import Act, activation, conv_norm, he_normal
from stages.spec import ModelConfig

MOST_CHANNELS = 8
"""A joined map has as many channels as the map of the body it takes in, up to this many times `width`."""


class Join(nn.Module):
    """A map, enlarged to twice its sides, beside one of the body: a 1x1 convolution of both, then a 3x3."""

    def __init__(self, small: int, large: int, made: int, act: Act) -> None:
        """Channels of the small and of the large map, and of the result."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(conv_norm(small + large, made, 1) | {"act": act()}),
            nn.Sequential(conv_norm(made, made, 3) | {"act": act()}),
        )

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        """(N, small, h, w), (N, large, 2 h, 2 w) -> (N, made, 2 h, 2 w)."""
        enlarged = F.interpolate(small, scale_factor=2.0, mode="nearest")
        out: Tensor = self.layers(torch.cat([enlarged, large], dim=1))
        return out


class Segmenter(nn.Module):
    """Body, joins, head; the body's names are those of `fast`, whose weights fit."""

    def __init__(self, stem: nn.Module, stages: nn.Sequential, joins: nn.ModuleList, head: nn.Conv2d) -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(stem=stem, stages=stages))
        self.joins, self.head = joins, head

    def forward(self, batch: Tensor) -> tuple[Tensor]:
        """float32 (N, C, H, W) -> logits (N, num_labels s s, H / s, W / s), s the side of the stem's steps.

        Each place has the logits of its s x s pixels, as `stages.tasks.segment.Post` puts them.
        """
        stem, stages = self.body.children()
        maps = [stem(batch)]
        for stage in stages.children():
            maps.append(stage(maps[-1]))
        top = maps.pop()
        maps.pop()  # the last stage does not pool: its map is as large, and has seen more
        for join in self.joins:
            top = join(top, maps.pop())
        return (self.head(top),)


def segmenter(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """U-Net whose way down is the body of `fast`, `1 + depth` convolutions per stage, halved down to `last_side`.

    On the way up each map is enlarged by repeating its pixels, put beside the body's map of that size, and goes through
    a 1x1 and a 3x3 convolution. The largest map has half the picture's sides (with `pool_stem` a quarter); a last
    convolution gives every place of it the logits of its four (sixteen) pixels. Enlarging that way and no other: both
    runtimes do it in INT8. Sources: Ronneberger et al. 2015 (arXiv:1505.04597); pixels as channels, Shi et al. 2016
    (arXiv:1609.05158). Initialization: He et al. 2015, arXiv:1502.01852.

    Raises:
        InputError: a side that cannot be halved without a rest.
    """
    act = activation(config)
    stem, stages, channels = fast_stages(config, in_channels, size_wh)
    steps = 2 ** (len(stages) + int(config.pool_stem))
    if any(side % steps for side in size_wh):
        raise InputError(
            f"data.size_wh: {size_wh[0]}x{size_wh[1]} cannot be halved {steps.bit_length() - 1} times without a rest",
            f"use multiples of {steps}, or set train.model.last_side higher",
        )
    # maps that are joined, the smallest first: those of all stages but the last two, and the stem's
    seen = channels[:-2][::-1] + ([] if config.pool_stem else channels[:1])
    top, joins = channels[-1], nn.ModuleList()
    for large in seen:
        made = min(large, MOST_CHANNELS * config.width)
        joins.append(Join(top, large, made, act))
        top = made
    fine = 4 if config.pool_stem else 2
    model = Segmenter(stem, stages, joins, nn.Conv2d(top, num_labels * fine * fine, 3, padding=1))
    he_normal(model)
    nn.init.normal_(model.head.weight, std=0.01)  # all classes alike at first
    return model
