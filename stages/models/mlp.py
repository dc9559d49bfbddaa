"""The multilayer perceptron: hidden layers on the pixels, no idea of neighbourhood."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from stages.models.layers import Act, activation
from stages.spec import ModelConfig


class Mlp(nn.Module):
    """Flatten, then `depth` times linear and activation, dropout, linear.

    Initialization of the hidden layers: normal with variance 2 / fan in, zero biases. Source: He et al. 2015,
    arXiv:1502.01852, equation 10.
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
        self.flatten = nn.Flatten()
        sizes = [in_channels * size_wh[0] * size_wh[1], *[width] * depth]
        self.hidden = nn.Sequential(*(nn.Sequential(nn.Linear(seen, made), act()) for seen, made in pairwise(sizes)))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_labels)
        for module in self.hidden.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (N, C, H, W) -> logits (N, num_labels), embedding (N, width)."""
        embedding = self.hidden(self.flatten(batch))
        return self.head(self.dropout(embedding)), embedding


def mlp(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """Multilayer perceptron: `depth` hidden layers of `width` units on the pixels."""
    return Mlp(in_channels, size_wh, num_labels, config.depth, config.width, config.dropout, activation(config))
