"""The multilayer perceptron: hidden layers on the pixels, no idea of neighbourhood."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from stages.models.classifier import Classifier
from stages.models.layers import Act, activation, layer_channels
from stages.spec import ModelConfig


def mlp(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """Multilayer perceptron: `depth` hidden layers of `width` units on the pixels.

    The embedding is the last hidden layer.

    Raises:
        InputError: `channels` that are not one number per layer.
    """
    hidden = list(layer_channels(config, [config.width] * config.depth))
    sizes = [in_channels * size_wh[0] * size_wh[1], *hidden]
    act = activation(config)
    body = nn.Sequential(nn.Flatten(), *(_hidden(seen, made, act) for seen, made in pairwise(sizes)))
    return Classifier(body, hidden[-1], num_labels, config.dropout)


def _hidden(seen: int, made: int, act: Act) -> nn.Module:
    """Linear and activation; starts normal with variance 2 / fan in, zero biases.

    Source: He et al. 2015, arXiv:1502.01852, equation 10.
    """
    linear = nn.Linear(seen, made)
    nn.init.kaiming_normal_(linear.weight, mode="fan_in", nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, act())
