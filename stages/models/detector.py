"""A detector in one stage: the body of `fast`, its maps joined at an eighth of the side, and two small heads there."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from edge_demo.errors import InputError
from stages.models.fast import fast_stages
from stages.models.layers import Act, activation, conv_norm, he_normal
from stages.spec import ModelConfig

STRIDE = 8
"""Pixels of the picture to a cell of the answer."""
PRIOR = 0.01
"""Score that every class starts with. Source: Lin et al. 2017 (arXiv:1708.02002), section 4.1."""
START_SIDE = 2.0  # cells from a centre to each side of its box, at the start


class Detector(nn.Module):
    """Body, pyramid, heads; the body's names are those of `fast`, whose weights fit."""

    def __init__(self, stem: nn.Module, stages: nn.Sequential, seen: list[int], act: Act, num_labels: int) -> None:
        """`seen`: channels of the maps that are joined, of falling size; the heads have as many as the last."""
        super().__init__()
        self.body = nn.Sequential(OrderedDict(stem=stem, stages=stages))
        made = seen[-1]
        self.laterals = nn.ModuleList(nn.Conv2d(channels, made, 1) for channels in seen)
        self.joined = nn.Sequential(conv_norm(made, made, 3) | {"act": act()})
        self.classes = _head(made, num_labels, act)
        self.sides = _head(made, 4, act)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (N, C, H, W) -> logits (N, num_labels, h, w) and sides (N, 4, h, w), h = H / 8 and w = W / 8.

        Sides: left, top, right, bottom of the box around the middle of each cell, as `stages.tasks.detect` reads them.
        """
        stem, stages = self.body.children()
        x, maps = stem(batch), []
        for stage in stages.children():
            x = stage(x)
            maps.append(x)
        del maps[-2]  # the last stage does not pool: its map is as large, and has seen more
        top: Tensor | None = None
        for lateral, seen in zip(reversed(list(self.laterals)), reversed(maps), strict=True):
            made = lateral(seen)
            top = made if top is None else made + F.interpolate(top, size=made.shape[2:], mode="nearest")
        shared = self.joined(top)
        return self.classes(shared), self.sides(shared)


def _head(channels: int, outputs: int, act: Act) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            tower=nn.Sequential(conv_norm(channels, channels, 3) | {"act": act()}), out=nn.Conv2d(channels, outputs, 1)
        )
    )


def detector(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """One-stage detector without anchors: `fast` with a pooling stem, a pyramid, heads at an eighth of the side.

    The body is `fast` with `pool_stem`; from an eighth of the side on its maps go through a 1x1 convolution each and
    are added up from the smallest, each enlarged to the next. `last_side` is the side of the smallest. Each cell says
    for every class whether an object of it is there, and where the sides of its box are. Sources: pyramid, Lin et al.
    2017 (arXiv:1612.03144); boxes by distances from a cell, Tian et al. 2019, FCOS (arXiv:1904.01355).

    Raises:
        InputError: a picture that is not larger than 8 times `last_side`.
    """
    if max(size_wh) <= STRIDE * config.last_side or min(size_wh) < 2 * STRIDE:
        raise InputError(
            f"train.model.last_side: {config.last_side} is no less than an eighth of {size_wh[0]}x{size_wh[1]}",
            f"set it to {max(size_wh) // (2 * STRIDE)} or less, or data.size_wh higher",
        )
    act = activation(config)
    stem, stages, channels = fast_stages(config.model_copy(update={"pool_stem": True}), in_channels, size_wh)
    model = Detector(stem, stages, [*channels[1:-2], channels[-1]], act, num_labels)
    he_normal(model)
    for head, bias in (
        (model.classes, -math.log((1 - PRIOR) / PRIOR)),
        (model.sides, math.log(math.expm1(START_SIDE))),
    ):
        out = head.get_submodule("out")
        nn.init.normal_(out.get_parameter("weight"), std=0.01)
        nn.init.constant_(out.get_parameter("bias"), bias)
    return model
