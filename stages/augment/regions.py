"""Rectangles inside of pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.augment.draws import Draws


def inside(top: Tensor, left: Tensor, bottom: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """Masks of rectangles, bool (N, 1, H, W); int64 (N, 1, 1, 1) sides, bottom and right not included."""
    y = torch.arange(height, device=top.device).view(1, 1, -1, 1)
    x = torch.arange(width, device=top.device).view(1, 1, 1, -1)
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def cutout(batch: Tensor, draws: Draws, share: float | Tensor) -> Tensor:
    """Blanks one rectangle per picture, `share` of its sides long, with that picture's mean; none at share 0.

    Source: DeVries and Taylor 2017 (arXiv:1708.04552).

    Args:
        batch: Float (N, C, H, W).
        draws: Of where it lies; it never reaches over the border.
        share: 0..1, of all or each.
    """
    height, width = batch.shape[2:]
    shares = torch.as_tensor(share, device=batch.device)
    side_y, side_x = ((shares * side).round().clamp(min=1) * (shares > 0) for side in (height, width))
    top = (draws.uniform() * (height - side_y + 1)).long()
    left = (draws.uniform() * (width - side_x + 1)).long()
    blank = inside(top, left, top + side_y.long(), left + side_x.long(), height, width)
    return torch.where(blank, batch.mean(dim=(2, 3), keepdim=True), batch)
