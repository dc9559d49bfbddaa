"""A residual network for small pictures, made of what INT8 runs fastest."""

from __future__ import annotations

from torch import Tensor, nn

from stages.models.layers import Act, activation, conv_norm, he_normal, refuse_small
from stages.spec import ModelConfig

LAST_SIDE = 8  # stages halve the picture until its longer side is at most this
MAX_GROWTH = 8  # channels double per stage, up to this many times `width`
SMALLEST = 8


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), 3x3; x goes through a 1x1 convolution where the channels change.

    Source: He et al. 2016, arXiv:1512.03385, figure 2 and section 3.3 (option B). The addition comes before the ReLU,
    so both runtimes fuse it into the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, act: Act) -> None:
        super().__init__()
        self.first = nn.Sequential(conv_norm(in_channels, out_channels, 3) | {"act": act()})
        self.second = nn.Sequential(conv_norm(out_channels, out_channels, 3))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Sequential(conv_norm(in_channels, out_channels, 1))
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        out: Tensor = self.act(self.second(self.first(x)) + self.shortcut(x))
        return out


class Resnet(nn.Module):
    """A 6x6 stem of stride 2, then stages of residual blocks with a max pool between them, then global max pooling.

    The stem is a 3x3 convolution of the space-to-depth picture, written as the one convolution it is: it sees every
    pixel once at half the side, and takes odd sides as well. Initialization: He et al. 2015, arXiv:1502.01852.
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
        channels = 2 * width
        self.stem = nn.Sequential(conv_norm(in_channels, channels, 6, stride=2) | {"act": act()})
        side = max(size_wh) // 2
        stages: list[list[nn.Module]] = [[Block(channels, channels, act) for _ in range(depth)]]
        while side > LAST_SIDE or len(stages) < 2:
            grown = min(2 * channels, MAX_GROWTH * width)
            more = [Block(grown, grown, act) for _ in range(depth - 1)]
            stages.append([nn.MaxPool2d(2), Block(channels, grown, act), *more])
            channels, side = grown, side // 2
        self.stages = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
        self.pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_labels)
        he_normal(self)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (N, C, H, W) -> logits (N, num_labels), embedding (N, channels of the last stage)."""
        embedding = self.pool(self.stages(self.stem(batch)))
        return self.head(self.dropout(embedding)), embedding


def resnet(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """Batch-norm residual network for small pictures; `depth` blocks per stage, 2 x `width` channels in the first.

    Raises:
        InputError: a side below 8 pixels.
    """
    refuse_small(config.name, size_wh, SMALLEST)
    return Resnet(in_channels, size_wh, num_labels, config.depth, config.width, config.dropout, activation(config))
