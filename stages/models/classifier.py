"""What every network here is: a body that makes one vector of a picture, and a linear layer on it."""

from __future__ import annotations

from torch import Tensor, nn


class Classifier(nn.Module):
    """Body, dropout, linear layer.

    Args:
        body: float32 (N, C, H, W) -> (N, features).
        features: What the body makes of a picture.
        num_labels: Number of classes.
        dropout: Share of the features left out in training.
    """

    def __init__(self, body: nn.Module, features: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, num_labels)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (N, C, H, W) -> logits (N, num_labels), embedding (N, features)."""
        embedding = self.body(batch)
        return self.head(self.dropout(embedding)), embedding
