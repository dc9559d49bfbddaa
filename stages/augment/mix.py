"""Two pictures into one, with a target that says how much of each: mixup and cutmix.

Pictures 2k and 2k + 1 of a batch are partners; the batch is in random order, so partners are random, too, and stay in
one process where several share the batch. The last one of an odd number stays as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_demo.errors import InputError
from stages.augment.draws import Draws
from stages.augment.regions import inside


def partners(draws: Draws) -> Tensor:
    """int64 (n,): each picture's partner, by its place in the part.

    Raises:
        InputError: this process's part begins or ends between partners.
    """
    start, stop, _ = draws.part.indices(draws.total)
    if start % 2 or (stop % 2 and stop != draws.total):
        message = f"train.augment: mixup and cutmix join pairs, and a device has pictures {start} to {stop} of a batch"
        raise InputError(message, "set train.batch_size to an even number per device")
    indices = torch.arange(draws.n, device=draws.generator.device)
    return (indices ^ 1).clamp(max=draws.n - 1)


def mixup(batch: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """`share` (N, 1, 1, 1) of each picture, the rest of its partner. Source: Zhang et al. 2018 (arXiv:1710.09412)."""
    return share * batch + (1 - share) * batch[partner]


def cutmix(batch: Tensor, partner: Tensor, share: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A rectangle of the partner in each picture, both sides sqrt(1 - share) of the picture's, cut off at its border.

    Source: Yun et al. 2019 (arXiv:1905.04899), equations 1 and 2.

    Args:
        batch: Float (N, C, H, W).
        partner: int64 (N,).
        share: (N, 1, 1, 1) in 0..1 of the area that stays.
        y: (N, 1, 1, 1) in 0..1, the rectangle's centre.
        x: Likewise.

    Returns:
        The pictures, and the share (N, 1, 1, 1) of each that really stayed, by counting pixels.
    """
    height, width = batch.shape[2:]
    half = (1 - share).sqrt() / 2
    top, bottom = ((y + sign * half).mul(height).round().clamp(0, height).long() for sign in (-1, 1))
    left, right = ((x + sign * half).mul(width).round().clamp(0, width).long() for sign in (-1, 1))
    mask = inside(top, left, bottom, right, height, width)
    taken = ((bottom - top) * (right - left)).float() / (height * width)
    return torch.where(mask, batch[partner], batch), 1 - taken


def mix(
    batch: Tensor, targets: Tensor, draws: Draws, mixup_alpha: float, cutmix_alpha: float, num_labels: int
) -> tuple[Tensor, Tensor]:
    """Mixes a batch; where both ways are on, a coin decides for each picture.

    Args:
        batch: Float (N, C, H, W).
        targets: int64 (N,) class ids, or float (N, num_labels).
        draws: For the same N pictures.
        mixup_alpha: The share is drawn from Beta(alpha, alpha); 0: no mixup.
        cutmix_alpha: Likewise.
        num_labels: Width of the targets.

    Returns:
        The pictures, and float32 (N, num_labels) targets, rows summing to 1 where class ids came in.
    """
    partner = partners(draws)
    mixed, share = batch, torch.ones(len(batch), 1, 1, 1, device=batch.device)
    if mixup_alpha:
        share = draws.beta(mixup_alpha)
        mixed = mixup(batch, partner, share)
    if cutmix_alpha:
        cut, kept = cutmix(batch, partner, draws.beta(cutmix_alpha), draws.uniform(), draws.uniform())
        coin = draws.chosen(0.5 if mixup_alpha else 1.0)
        mixed, share = torch.where(coin, cut, mixed), torch.where(coin, kept, share)
    own = targets if targets.is_floating_point() else F.one_hot(targets, num_labels).float()
    return mixed, own * share.view(-1, 1) + own[partner] * (1 - share.view(-1, 1))
