"""One linear layer on the pixels: the least that can be trained, and what every other network has to beat."""

from __future__ import annotations

from torch import Tensor, nn

from stages.models.layers import refuse_dials
from stages.spec import ModelConfig


class Perceptron(nn.Module):
    """Flatten, dropout, linear: multinomial logistic regression once trained with cross entropy.

    Starts at zero: the loss is convex in the weights, so the start decides nothing but the first loss, which is
    ln(num_labels). Source: Bishop 2006, "Pattern Recognition and Machine Learning", section 4.3.4.
    """

    def __init__(self, in_channels: int, size_wh: tuple[int, int], num_labels: int, dropout: float) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(in_channels * size_wh[0] * size_wh[1], num_labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (N, C, H, W) -> logits (N, num_labels), embedding (N, C * H * W): the pixels, row by row."""
        embedding = self.flatten(batch)
        return self.head(self.dropout(embedding)), embedding


def perceptron(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """One linear layer on the pixels; no dials but dropout (of pixels).

    Raises:
        InputError: `depth`, `width` or `activation` set.
    """
    refuse_dials(config, "depth", "width", "activation")
    return Perceptron(in_channels, size_wh, num_labels, config.dropout)
