"""The exponential moving average of a network's weights, which is steadier than any one step's."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Average:
    """A second network of the same shape, whose weights follow those of the first."""

    network: nn.Module
    decay: float

    def update(self, core: nn.Module, step: int) -> None:
        """Takes in the weights of `core` after optimizer step 1, 2, ...

        The means and variances of batch norm are averaged like weights, so that they belong to what they normalize;
        its whole-number counters are copied. At first the decay is lower, (1 + step) / (10 + step), or the random
        initial weights would stay in for long. Source: tf.train.ExponentialMovingAverage, argument num_updates.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.network.state_dict().values(), core.state_dict().values(), strict=True))
        floats = [(mine, its) for mine, its in pairs if mine.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([mine for mine, _ in floats], [its for _, its in floats], 1 - decay)
            for mine, its in pairs:
                if not mine.is_floating_point():
                    mine.copy_(its)


def average_of(core: nn.Module, decay: float) -> Average | None:
    """The average, starting at the weights of `core`; None at decay 0."""
    if not decay:
        return None
    network = copy.deepcopy(core)
    network.requires_grad_(requires_grad=False)
    return Average(network, decay)
