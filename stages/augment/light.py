"""Changes of values that leave every pixel where it is, on float (N, C, H, W) pictures of the scale 0..255."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.augment.draws import Draws

MIDDLE = 127.5  # contrast pivots here, so that it commutes with inverting

# B, G, R -> luma, R - luma, B - luma, the differences scaled. Source: ITU-R BT.601-7, section 2.5
TO_YCC = ((0.114, 0.587, 0.299), (-0.0813, -0.4187, 0.5), (0.5, -0.3313, -0.1687))


def invert(batch: Tensor, draws: Draws, probability: float | Tensor) -> Tensor:
    """Light for dark."""
    return torch.where(draws.chosen(probability), 255.0 - batch, batch)


def contrast(batch: Tensor, draws: Draws, limit: float | Tensor) -> Tensor:
    """A straight line through the values: gain 1 +- limit about the middle, then the middle moved by +- limit of it."""
    gain, offset = 1 + draws.spread(limit), draws.spread(limit)
    return (batch - MIDDLE) * gain + MIDDLE * (1 + offset)


def colour(batch: Tensor, draws: Draws, limit: float | Tensor) -> Tensor:
    """Hue turned by +- limit of a half circle, saturation and brightness times 1 +- limit; BGR only.

    Grey stays grey, and before brightness every pixel keeps its luma.
    """
    turn = draws.spread(limit).flatten() * math.pi
    saturation, brightness = 1 + draws.spread(limit).flatten(), 1 + draws.spread(limit).flatten()
    return recolour(batch, turn, saturation, brightness)


def recolour(batch: Tensor, turn: Tensor, saturation: Tensor, brightness: Tensor) -> Tensor:
    """Turns and stretches the plane of colour differences of YCrCb, then all of it; one 3x3 matrix per picture.

    Args:
        batch: (N, 3, H, W) BGR.
        turn: (N,) radians, from the Cr axis to the Cb axis.
        saturation: (N,) factors of the colour differences.
        brightness: (N,) factors of everything.
    """
    to_ycc = torch.tensor(TO_YCC, device=batch.device)
    # exact differences: the rounded table above would tint grey by a few thousandths
    to_ycc[1:] -= to_ycc[1:].mean(dim=1, keepdim=True)
    cos, sin = saturation * turn.cos(), saturation * turn.sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [torch.stack(row, dim=1) for row in ((one, zero, zero), (zero, cos, -sin), (zero, sin, cos))]
    matrix = torch.linalg.inv(to_ycc) @ torch.stack(rows, dim=1) @ to_ycc
    mixed: Tensor = (brightness.view(-1, 1, 1) * matrix) @ batch.flatten(2)
    return mixed.view(batch.shape)


def blur(batch: Tensor, draws: Draws, probability: float | Tensor) -> Tensor:
    """`blur3` of some pictures."""
    return torch.where(draws.chosen(probability), blur3(batch), batch)


def blur3(batch: Tensor) -> Tensor:
    """Binomial 3x3 blur (1 2 1)/4 both ways of float (N, C, H, W); the border repeats."""
    padded = F.pad(batch, (1, 1, 1, 1), mode="replicate")
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4


def noise(batch: Tensor, draws: Draws, limit: float | Tensor) -> Tensor:
    """Normal noise for every value, its deviation up to `limit` of the scale, another one for each picture."""
    strength = 255.0 * limit * draws.uniform()
    return batch + strength * draws.normal(*batch.shape[1:])
