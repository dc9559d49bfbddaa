"""The small convolutional network of the Keras MNIST example."""

from __future__ import annotations

from torch import Tensor, nn

from stages.models.layers import Act, activation, refuse_dials, refuse_small
from stages.spec import ModelConfig

SMALLEST = 10  # two valid 3x3 convolutions and two halvings leave one value: (10 - 2) / 2 = 4, (4 - 2) / 2 = 1


class Convnet(nn.Module):
    """Conv 32 3x3, max pool, Conv 64 3x3, max pool, flatten, dropout, linear; no padding, ReLU by default.

    Source: F. Chollet, "Simple MNIST convnet", https://keras.io/examples/vision/mnist_convnet/. Initialization as in
    Keras: Glorot uniform weights (Glorot and Bengio 2010), zero biases.
    """

    def __init__(
        self,
        in_channels: int,
        size_wh: tuple[int, int],
        num_labels: int,
        dropout: float,
        act: Act,
    ) -> None:
        super().__init__()
        width, height = (((side - 2) // 2 - 2) // 2 for side in size_wh)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3),
            act(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            act(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(64 * width * height, num_labels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (N, C, H, W) -> logits (N, num_labels), embedding (N, 64 * h * w)."""
        embedding = self.features(batch)
        return self.head(self.dropout(embedding)), embedding


def convnet(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """The Keras MNIST example: two 3x3 convolutions with max pooling, dropout, one linear layer; fixed in size.

    Raises:
        InputError: `depth` or `width` set, or a side below 10 pixels.
    """
    refuse_dials(config, "depth", "width")
    refuse_small(config.name, size_wh, SMALLEST)
    return Convnet(in_channels, size_wh, num_labels, config.dropout, activation(config))
