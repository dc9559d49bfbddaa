"""Classification, training side: cross entropy, and augmentation that leaves the label as it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.spec import AugmentConfig, TrainConfig


class Post(nn.Module):
    """logits (N, num_labels), embedding (N, features) -> scores (N, num_labels) summing to 1, embedding."""

    def forward(self, logits: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax over the classes; the embedding passes through."""
        return torch.softmax(logits, dim=1), embedding + 0.0


def loss(raw: tuple[Tensor, ...], targets: Tensor, config: TrainConfig) -> Tensor:
    """Cross entropy with label smoothing. Source: Szegedy et al. 2016 (arXiv:1512.00567), section 7."""
    return F.cross_entropy(raw[0].float(), targets, label_smoothing=config.label_smoothing)


def augment(
    frames: Tensor, targets: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random changes of a batch of uint8 NHWC frames; labels pass through. See `AugmentConfig` for each knob."""
    raise NotImplementedError
