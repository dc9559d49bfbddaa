"""Random choices among all the changes, with two dials: how many, how strong."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.augment.draws import Draws
from stages.augment.geometry import Limits

STRONGEST = {
    "shift": 0.3,
    "rotate_deg": 30.0,
    "scale": 0.5,
    "shear": 0.3,
    "contrast": 0.9,
    "colour": 0.9,
    "invert": 1.0,
    "blur": 1.0,
    "noise": 0.3,
    "cutout": 0.6,
}
"""Knob -> its limit at magnitude 1. Rotation, shear and contrast as in Cubuk et al. 2018 (arXiv:1805.09501), appendix;
the others are this project's choice. Inverting and blur have no strength: magnitude is their probability."""


def with_policy(limits: Limits, draws: Draws, operations: int, magnitude: float, channels: int) -> Limits:
    """Raises the limits of `operations` knobs, drawn anew (with repetition, `nothing` among them) for each picture.

    Source: Cubuk et al. 2019 (arXiv:1909.13719), RandAugment. As there, all knobs are alike and share one magnitude.
    Unlike there, a change is up to that strong, and changes come in the fixed order of `augment`, so that a whole
    batch takes one pass through each.

    Args:
        limits: What is on for all pictures; stays so.
        draws: Of the pictures.
        operations: How many choices per picture; one that is drawn twice is twice as strong, up to `STRONGEST`.
        magnitude: 0..1 of `STRONGEST`.
        channels: 1 leaves out `colour`.
    """
    names = [name for name in STRONGEST if channels == 3 or name != "colour"]
    # one more than there are knobs: the last one is nothing
    choices = (draws.uniform(operations) * (len(names) + 1)).long()
    raised: dict[str, float | Tensor] = dict(limits)
    for index, name in enumerate(names):
        times = (choices == index).sum(dim=1).view(-1, 1, 1, 1)
        most = STRONGEST[name]
        added = (times * (magnitude * most)).clamp(max=most)
        raised[name] = torch.maximum(torch.as_tensor(limits[name], device=added.device), added)
    return raised
