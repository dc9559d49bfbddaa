"""Where each pixel of the changed picture is read: drawn as a `Geometry`, then applied to pictures.

Boxes and masks of the same pictures follow from the same `Geometry`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.augment.draws import Draws

Limits = Mapping[str, float | Tensor]
"""Knob -> its limit for all pictures, or float32 (N, 1, 1, 1), one for each."""

ASPECT = math.log(4 / 3)  # largest change of a crop's sides. Source: Szegedy et al. 2015 (arXiv:1409.4842), section 6
ELASTIC_SIGMA = 4 / 29  # of a side. Source: Simard et al. 2003: 4 pixels of 29
MOST_POINTS = 32  # drawn per side; 4.4 to an elastic sigma, beyond which more change nothing one could see
RIGHT_ANGLES = ((1.0, 0.0, 0.0, 1.0), (0.0, 1.0, -1.0, 0.0), (-1.0, 0.0, 0.0, -1.0), (0.0, -1.0, 1.0, 0.0))
WARPS = ("rotate_deg", "scale", "shear", "crop", "elastic", "flip_vertical", "quarter_turns")


@dataclass(frozen=True, slots=True)
class Geometry:
    """From a place in the result to the place in the source it is read at.

    Both in half sides from the centre: x = -1 is the left edge (not the middle of the first pixel), 1 the right edge.
    """

    matrix: Tensor
    """float32 (N, 2, 3)."""
    field: Tensor | None = None
    """float32 (N, H, W, 2): x and y that are added to each pixel's place in the source; None: nothing."""

    def apply(self, batch: Tensor) -> Tensor:
        """Float (N, C, H, W) pictures, resampled by `warp`."""
        return warp(batch, self.matrix, self.field)


def is_on(limits: Limits, name: str) -> bool:
    """Whether a knob does anything; a tensor's pictures are not looked at, which would stop a GPU."""
    limit = limits[name]
    return isinstance(limit, Tensor) or limit > 0


def draw_geometry(draws: Draws, limits: Limits, height: int, width: int) -> Geometry:
    """Crop, flips and turns of the picture that rotation, scale, shear, shift and elastic made; one resampling."""
    matrix = draw_affine(draws, limits, width / height)
    if is_on(limits, "crop"):
        matrix = compose(matrix, draw_crop(draws, limits["crop"]))
    for column, name in enumerate(("flip", "flip_vertical")):
        if is_on(limits, name):
            mirrored = 1 - 2 * draws.chosen(limits[name]).view(-1, 1, 1).float()
            columns = list(matrix.chunk(3, dim=2))
            columns[column] = columns[column] * mirrored
            matrix = torch.cat(columns, dim=2)
    if is_on(limits, "quarter_turns"):
        matrix = compose(matrix, draw_turns(draws, limits["quarter_turns"]))
    field = draw_field(draws, limits["elastic"], height, width) if is_on(limits, "elastic") else None
    return Geometry(matrix, field)


def draw_affine(draws: Draws, limits: Limits, aspect: float) -> Tensor:
    """(N, 2, 3): rotation, scale and shear about the centre in square pixels, then a shift.

    `aspect` is width / height: half sides are no square unit, so x is stretched by it around the rotation.
    """
    angle = torch.deg2rad(draws.spread(limits["rotate_deg"]).flatten())
    scale, shear = 1 + draws.spread(limits["scale"]).flatten(), draws.spread(limits["shear"]).flatten()
    # a shift by a share s of the side is 2 s half sides
    x, y = 2 * draws.spread(limits["shift"]).flatten(), 2 * draws.spread(limits["shift"]).flatten()
    cos, sin = angle.cos() / scale, angle.sin() / scale
    top = torch.stack([cos, (shear * cos - sin) / aspect, x], dim=1)
    bottom = torch.stack([sin * aspect, shear * sin + cos, y], dim=1)
    return torch.stack([top, bottom], dim=1)


def draw_crop(draws: Draws, limit: float | Tensor) -> Tensor:
    """(N, 2, 3): a part of random area, sides and place, brought to full size.

    Its area is 1 - limit to 1 of the picture's, its sides' ratio 3/4 to 4/3 of the picture's, neither side longer.
    Source: Szegedy et al. 2015 (arXiv:1409.4842), section 6.
    """
    area, stretch = 1 - draws.uniform() * limit, (draws.spread(ASPECT) / 2).exp()
    width, height = ((area.sqrt() * factor).clamp(max=1).flatten() for factor in (stretch, 1 / stretch))
    x, y = draws.spread(1.0).flatten() * (1 - width), draws.spread(1.0).flatten() * (1 - height)
    none = torch.zeros_like(x)
    return torch.stack([torch.stack([width, none, x], dim=1), torch.stack([none, height, y], dim=1)], dim=1)


def draw_turns(draws: Draws, probability: float | Tensor) -> Tensor:
    """(N, 2, 3): some pictures turned by one, two or three right angles, all alike often."""
    turns = (draws.chosen(probability) * (1 + (3 * draws.uniform()).floor())).flatten().long()
    table = torch.tensor(RIGHT_ANGLES, device=turns.device)
    return F.pad(table[turns].view(-1, 2, 2), (0, 1))


def draw_field(draws: Draws, limit: float | Tensor, height: int, width: int) -> Tensor:
    """(N, H, W, 2) of smooth normal displacements, in half sides, whose standard deviation is `limit` of a side.

    Source: Simard, Steinkraus and Platt 2003, "Best Practices for Convolutional Neural Networks Applied to Visual
    Document Analysis", section 2: noise under a Gaussian of 4 pixels in 29; theirs is uniform, which under so wide a
    Gaussian comes to the same.
    """
    rows, columns = (_smoothing(side, draws.generator.device) for side in (height, width))
    noise = draws.normal(2, rows.shape[1], columns.shape[1])
    return (2 * limit * (rows @ noise @ columns.T)).permute(0, 2, 3, 1)


def _smoothing(side: int, device: torch.device) -> Tensor:
    """(side, points): what each pixel takes of each drawn value; squares of a row add up to 1, so variance stays 1."""
    points = min(side, MOST_POINTS)
    pixels = (torch.arange(side, device=device) + 0.5) / side
    places = (torch.arange(points, device=device) + 0.5) / points
    weights = (-0.5 * ((pixels[:, None] - places) / ELASTIC_SIGMA) ** 2).exp()
    return weights / weights.square().sum(dim=1, keepdim=True).sqrt()


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """(N, 2, 3): places go through `inner` first, then through `outer`."""
    linear = outer[..., :2]
    return torch.cat([linear @ inner[..., :2], linear @ inner[..., 2:] + outer[..., 2:]], dim=2)


def warp(batch: Tensor, matrix: Tensor, field: Tensor | None = None) -> Tensor:
    """Bilinear resampling of float (N, C, H, W) pictures; outside, the border repeats.

    Args:
        batch: Values of any range.
        matrix: (N, 2, 3), as `Geometry.matrix`.
        field: (N, H, W, 2), as `Geometry.field`.
    """
    grid = places(batch.shape[2], batch.shape[3], matrix, field)
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)


def places(height: int, width: int, matrix: Tensor, field: Tensor | None = None) -> Tensor:
    """(N, H, W, 2): x and y of where each pixel of the result is read, in half sides from the source's centre."""
    x = (2 * torch.arange(width, device=matrix.device) + 1) / width - 1
    y = (2 * torch.arange(height, device=matrix.device) + 1) / height - 1
    # F.affine_grid gives the same, three times slower on a CPU
    of_x, of_y, shift = matrix[:, None, None].unbind(-1)
    grid: Tensor = of_x * x.view(1, 1, -1, 1) + (of_y * y.view(1, -1, 1, 1) + shift)
    return grid if field is None else grid + field


def shift_and_flip(frames: Tensor, draws: Draws, limits: Limits) -> tuple[Tensor, Geometry]:
    """Moves uint8 (N, H, W, C) frames by whole pixels and mirrors them; the border repeats, nothing is blurred."""
    n, height, width, _ = frames.shape
    y = torch.arange(height, device=frames.device).expand(n, -1)
    x = torch.arange(width, device=frames.device).expand(n, -1)
    matrix = torch.eye(2, 3, device=frames.device).repeat(n, 1, 1)
    if is_on(limits, "shift"):
        down, right = _whole(draws, limits["shift"], height), _whole(draws, limits["shift"], width)
        y, x = (y + down).clamp_(0, height - 1), (x + right).clamp_(0, width - 1)
        matrix[:, :, 2] = 2 * torch.cat([right / width, down / height], dim=1)
    if is_on(limits, "flip"):
        mirrored = draws.chosen(limits["flip"]).view(-1, 1)
        x = torch.where(mirrored, x.flip(1), x)
        matrix[:, 0, :1] = 1 - 2 * mirrored.float()
    moved = frames[torch.arange(n, device=frames.device)[:, None, None], y[:, :, None], x[:, None, :]]
    return moved, Geometry(matrix)


def _whole(draws: Draws, limit: float | Tensor, side: int) -> Tensor:
    """int64 (N, 1), every whole number of pixels up to `limit` of a side alike."""
    most = torch.as_tensor(limit, device=draws.generator.device).mul(side).floor()
    return (draws.uniform() * (2 * most + 1)).floor().sub(most).long().view(-1, 1)
