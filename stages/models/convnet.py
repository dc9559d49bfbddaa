"""The small convolutional network of the Keras MNIST example."""

from __future__ import annotations

from torch import nn

from stages.models.classifier import Classifier
from stages.models.layers import activation, refuse_small
from stages.spec import ModelConfig

SMALLEST = 10  # two valid 3x3 convolutions and two halvings leave one value: (10 - 2) / 2 = 4, (4 - 2) / 2 = 1


def convnet(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """The Keras MNIST example: two 3x3 convolutions with max pooling, dropout, one linear layer; fixed in size.

    Conv 32 3x3, max pool, Conv 64 3x3, max pool, flatten, dropout, linear; no padding, ReLU by default. Source:
    F. Chollet, "Simple MNIST convnet", https://keras.io/examples/vision/mnist_convnet/. Initialization as in Keras:
    Glorot uniform weights (Glorot and Bengio 2010), zero biases.

    Raises:
        InputError: a side below 10.
    """
    refuse_small(config.name, size_wh, SMALLEST)
    act = activation(config)
    width, height = (((side - 2) // 2 - 2) // 2 for side in size_wh)
    first = nn.Sequential(nn.Conv2d(in_channels, 32, 3), act(), nn.MaxPool2d(2))
    second = nn.Sequential(nn.Conv2d(32, 64, 3), act(), nn.MaxPool2d(2))
    model = Classifier(nn.Sequential(first, second, nn.Flatten()), 64 * width * height, num_labels, config.dropout)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.get_parameter("bias"))
    return model
