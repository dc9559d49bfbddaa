"""Parts of four pictures side by side, which masks and boxes of the four follow.

Pictures 4k to 4k + 3 of a batch are joined; the batch is in random order, so the four are random, too, and stay in one
process where several share the batch. The last ones of a batch that is no multiple of four stay as they are.
Source: Bochkovskiy, Wang and Liao 2020, "YOLOv4" (arXiv:2004.10934), section 3.4. As there, four pictures meet at a
random point; unlike there, each shows a random part of itself at its own scale, so nothing is resampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_demo.errors import InputError
from stages.augment.draws import Draws

NEAREST = 0.25
"""Of the sides: how near the point where the four meet comes to the border. Our choice."""


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Which pixel of which picture each pixel of the result shows."""

    members: Tensor
    """int64 (N, 4): whose picture is shown top left, top right, bottom left, bottom right."""
    bounds: Tensor
    """float32 (N, 4, 6), in shares of the sides: xyxy of each of those parts, then the way from source to result."""
    picture: Tensor
    """int64 (N, H, W)."""
    y: Tensor
    x: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Of frames (N, H, W, C) or masks (N, H, W)."""
        return values[self.picture, self.y, self.x]


def draw_mosaic(draws: Draws, probability: float, height: int, width: int) -> Mosaic:
    """Some pictures as mosaics of their four; the others as they are.

    Raises:
        InputError: this process's part begins or ends between the four.
    """
    start, stop, _ = draws.part.indices(draws.total)
    if start % 4 or (stop % 4 and stop != draws.total):
        message = f"train.augment.mosaic: joins fours, and a device has pictures {start} to {stop} of a batch"
        raise InputError(message, "set train.batch_size to a multiple of four per device")
    device, n = draws.generator.device, draws.n
    own = torch.arange(n, device=device)
    # Every part shows another one of the four, the first part the picture itself.
    members = (own[:, None] // 4 * 4) + (own[:, None] + torch.arange(4, device=device)) % 4
    chosen = draws.chosen(probability).view(-1, 1) & (members.amax(dim=1, keepdim=True) < n)
    members = torch.where(chosen, members, own[:, None])
    meet = draws.uniform(2) * (1 - 2 * NEAREST) + NEAREST
    place = draws.uniform(4, 2)
    sides = torch.tensor([width, height], device=device)
    meet = torch.where(chosen, (meet * sides).round().long(), 0)  # (N, 2) x, y
    right, below = (torch.tensor(flags, device=device) for flags in ((0, 1, 0, 1), (0, 0, 1, 1)))
    corner = torch.stack([right, below], dim=1)  # (4, 2)
    low = meet[:, None] * corner
    high = torch.where(corner == 1, sides, meet[:, None])
    # Where in its own picture a part begins: anywhere it fits.
    source = (place * (sides - (high - low) + 1)).floor().long()
    move = low - torch.where(chosen[:, None], source, low)
    part = (torch.arange(height, device=device) >= meet[:, 1:]).long()[:, :, None] * 2
    part = part + (torch.arange(width, device=device) >= meet[:, :1]).long()[:, None, :]
    flat = part.flatten(1)
    shape = (n, height, width)
    picture = members.gather(1, flat).view(shape)
    y = torch.arange(height, device=device)[:, None] - move[..., 1].gather(1, flat).view(shape)
    x = torch.arange(width, device=device) - move[..., 0].gather(1, flat).view(shape)
    bounds = torch.cat([low / sides, high / sides, move / sides], dim=2)
    return Mosaic(members, bounds, picture, y, x)
