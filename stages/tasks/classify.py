"""Classification, training side: cross entropy, and augmentation that leaves the label as it is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.spec import AugmentConfig, TrainConfig

MIDDLE = 127.5  # contrast pivots here, so that it commutes with inverting


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
    """Random changes of a batch, drawn per picture from `generator`, on the device of the frames.

    Order: geometry, cutout, then light as a camera adds it: invert, contrast, blur, noise. Values are rounded to whole
    levels once, at the end. Pixels moved in from outside repeat the border, so inverting keeps paper and ink apart.

    Args:
        frames: uint8 (N, H, W, C), gray or BGR.
        targets: Anything; passes through, because no change here changes a class.
        config: A knob at 0 does nothing and draws nothing.
        generator: On the device of `frames`.

    Returns:
        New uint8 frames of the same shape, and `targets`.
    """
    if config == AugmentConfig():
        return frames, targets
    draw = _Draws(len(frames), generator)
    batch = frames.permute(0, 3, 1, 2).float()
    if config.shift or config.rotate_deg or config.scale or config.shear:
        batch = warp(batch, _random_affine(draw, config, batch.shape[3] / batch.shape[2]))
    if config.flip:
        batch = torch.where(draw.chosen(config.flip), batch.flip(3), batch)
    if config.cutout:
        batch = _cutout(batch, config.cutout, draw)
    if config.invert:
        batch = torch.where(draw.chosen(config.invert), 255.0 - batch, batch)
    if config.contrast:
        gain, offset = 1 + draw.spread(config.contrast), draw.spread(config.contrast)
        batch = (batch - MIDDLE) * gain + MIDDLE * (1 + offset)
    if config.blur:
        batch = torch.where(draw.chosen(config.blur), blur3(batch), batch)
    if config.noise:
        batch = batch + 255.0 * config.noise * draw.uniform() * draw.normal(batch.shape)
    return batch.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous(), targets


def warp(batch: Tensor, matrix: Tensor) -> Tensor:
    """Bilinear resampling of float (N, C, H, W) pictures; outside, the border repeats.

    Args:
        batch: Values of any range.
        matrix: (N, 2, 3), from a place in the result to the place in the source it is read at, both in half sides from
            the centre: x = -1 is the left edge (not the middle of the first pixel), 1 the right edge.
    """
    height, width = batch.shape[2:]
    x = (2 * torch.arange(width, device=batch.device) + 1) / width - 1
    y = (2 * torch.arange(height, device=batch.device) + 1) / height - 1
    # F.affine_grid gives the same, three times slower on a CPU
    of_x, of_y, shift = matrix[:, None, None].unbind(-1)
    grid = of_x * x.view(1, 1, -1, 1) + (of_y * y.view(1, -1, 1, 1) + shift)
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)


def blur3(batch: Tensor) -> Tensor:
    """Binomial 3x3 blur (1 2 1)/4 both ways of float (N, C, H, W); the border repeats."""
    padded = F.pad(batch, (1, 1, 1, 1), mode="replicate")
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4


class _Draws:
    """Random numbers for `n` pictures, shaped (n, 1, 1, 1), on the generator's device."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator

    def uniform(self) -> Tensor:
        """In [0, 1)."""
        return torch.rand(self.n, 1, 1, 1, generator=self.generator, device=self.generator.device)

    def spread(self, limit: float) -> Tensor:
        """In [-limit, limit)."""
        return (2 * self.uniform() - 1) * limit

    def chosen(self, probability: float) -> Tensor:
        """Whether each picture is changed; certain at 0 and 1."""
        return self.uniform() < probability

    def normal(self, shape: torch.Size) -> Tensor:
        """Standard normal values, one per pixel and channel."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)


def _random_affine(draw: _Draws, config: AugmentConfig, aspect: float) -> Tensor:
    """(N, 2, 3) for `warp`: rotation, scale and shear about the centre in square pixels, then a shift.

    `aspect` is width / height: half sides are no square unit, so x is stretched by it around the rotation.
    """
    angle = draw.spread(math.radians(config.rotate_deg)).flatten()
    scale, shear = 1 + draw.spread(config.scale).flatten(), draw.spread(config.shear).flatten()
    # a shift by a share s of the side is 2 s half sides
    x, y = 2 * draw.spread(config.shift).flatten(), 2 * draw.spread(config.shift).flatten()
    cos, sin = angle.cos() / scale, angle.sin() / scale
    top = torch.stack([cos, (shear * cos - sin) / aspect, x], dim=1)
    bottom = torch.stack([sin * aspect, shear * sin + cos, y], dim=1)
    return torch.stack([top, bottom], dim=1)


def _cutout(batch: Tensor, share: float, draw: _Draws) -> Tensor:
    """Blanks one square per picture with that picture's mean. Source: DeVries and Taylor 2017 (arXiv:1708.04552)."""
    height, width = batch.shape[2:]
    side_y, side_x = max(1, round(share * height)), max(1, round(share * width))
    top = (draw.uniform() * (height - side_y + 1)).long()
    left = (draw.uniform() * (width - side_x + 1)).long()
    y = torch.arange(height, device=batch.device).view(1, 1, -1, 1)
    x = torch.arange(width, device=batch.device).view(1, 1, 1, -1)
    inside = (y >= top) & (y < top + side_y) & (x >= left) & (x < left + side_x)
    return torch.where(inside, batch.mean(dim=(2, 3), keepdim=True), batch)
