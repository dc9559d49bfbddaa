"""One linear layer on the pixels: the least that can be trained, and what every other network has to beat."""

from __future__ import annotations

from torch import nn

from stages.models.classifier import Classifier
from stages.spec import ModelConfig


def perceptron(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """One linear layer on the pixels; no dials but dropout (of pixels).

    Multinomial logistic regression once trained with cross entropy; the embedding is the pixels, row by row. Starts at
    zero: the loss is convex in the weights, so the start decides nothing but the first loss, which is ln(num_labels).
    Source: Bishop 2006, "Pattern Recognition and Machine Learning", section 4.3.4.
    """
    model = Classifier(nn.Flatten(), in_channels * size_wh[0] * size_wh[1], num_labels, config.dropout)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model
