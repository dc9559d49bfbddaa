"""Random changes of a training batch, on its device. What is drawn and what is applied are apart, in each file."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_demo.errors import InputError
from stages.augment import light
from stages.augment.draws import Draws
from stages.augment.geometry import WARPS, Geometry, Limits, draw_geometry, is_on, shift_and_flip
from stages.augment.mix import mix
from stages.augment.policy import with_policy
from stages.augment.regions import cutout
from stages.spec import AugmentConfig

__all__ = ["Draws", "Geometry", "as_frames", "augment", "augment_alone", "change", "limits_of"]

# in the order in which a camera adds them
LIGHT = {
    "invert": light.invert,
    "contrast": light.contrast,
    "colour": light.colour,
    "blur": light.blur,
    "noise": light.noise,
}
PER_PICTURE = ("shift", "flip", *WARPS, "cutout", *LIGHT)
"""Knobs that change a picture alone; mixup and cutmix join two."""


def augment(
    frames: Tensor, targets: Tensor, config: AugmentConfig, draws: Draws, num_labels: int
) -> tuple[Tensor, Tensor]:
    """Random changes of a labelled batch, drawn per picture, on the device of the frames.

    Order: geometry, cutout, then light as a camera adds it: invert, contrast, colour, blur, noise; then mixing. Values
    are rounded to whole levels once, at the end. Pixels moved in from outside repeat the border, so inverting keeps
    paper and ink apart.

    CPU time of 128 frames, one thread of an AMD EPYC on a busy host (median of 20), 28x28 gray and 32x32 BGR: shift 0.8
    and 2.1 ms (1.1 and 3.7 if it were resampled), flip 0.6 and 2.0, rotation 1.2 and 4.3, crop 1.4 and 3.0, elastic 3.1
    and 6.7, the three together 3.5 and 8.3, cutout 0.7 and 2.6, invert 0.3 and 1.5, contrast 0.2 and 0.6, colour 1.9
    (BGR), blur 1.0 and 4.4, noise 0.6 and 3.2, mixup 0.6 and 2.5, cutmix 0.9 and 4.0, policy of 2 3.1 and 10.5.

    Args:
        frames: uint8 (N, H, W, C), gray or BGR.
        targets: int64 (N,) class ids; anything else passes through where nothing is mixed.
        config: A knob at 0 does nothing and draws nothing.
        draws: For these N pictures, its generator on the device of `frames`.
        num_labels: How many classes there are.

    Returns:
        New uint8 frames of the same shape; `targets`, or float32 (N, num_labels) where pictures are mixed.

    Raises:
        InputError: colour changes of gray frames, or a part of a batch that mixing cannot join in pairs.
    """
    if not (config.mixup or config.cutmix):
        return augment_alone(frames, config, draws)[0], targets
    batch, _ = change(frames, limits_of(config, draws, frames.shape[3]), draws)
    batch, targets = mix(batch, targets, draws, config.mixup, config.cutmix, num_labels)
    return as_frames(batch), targets


def augment_alone(frames: Tensor, config: AugmentConfig, draws: Draws) -> tuple[Tensor, Geometry | None]:
    """Random changes of each picture on its own: all but mixup and cutmix.

    Args:
        frames: uint8 (N, H, W, C), gray or BGR.
        config: Its knobs.
        draws: For these N pictures.

    Returns:
        New uint8 frames of the same shape, and how their pixels moved, by which boxes and masks follow; None: not.

    Raises:
        InputError: as `augment`.
    """
    if config == AugmentConfig():
        return frames, None
    limits = limits_of(config, draws, frames.shape[3])
    if not any(is_on(limits, name) for name in (*WARPS, "cutout", *LIGHT)):
        return shift_and_flip(frames, draws, limits)
    batch, geometry = change(frames, limits, draws)
    return as_frames(batch), geometry


def as_frames(batch: Tensor) -> Tensor:
    """Float (N, C, H, W) on the scale 0..255, which it may leave -> uint8 (N, H, W, C); takes the batch apart."""
    return batch.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def limits_of(config: AugmentConfig, draws: Draws, channels: int) -> Limits:
    """The limit of each knob in `PER_PICTURE`, for all pictures or, under a policy, for each.

    Raises:
        InputError: colour changes of gray frames.
    """
    if config.colour and channels == 1:
        raise InputError(
            "train.augment.colour: the frames are gray", "set it to 0, or data.colour = 'rgb' for a set in colour"
        )
    limits: Limits = {name: float(getattr(config, name)) for name in PER_PICTURE}
    if config.policy:
        limits = with_policy(limits, draws, config.policy, config.policy_magnitude, channels)
    mirrored = draws.own_mirrored()
    return limits if mirrored is None else {**limits, "flip": mirrored.float()}  # 0 and 1 are certain


def change(frames: Tensor, limits: Limits, draws: Draws) -> tuple[Tensor, Geometry | None]:
    """uint8 (N, H, W, C) frames, changed one by one, as float (N, C, H, W) on the scale 0..255, maybe beyond it.

    With how their pixels moved; None: nothing moved.
    """
    geometry = None
    if any(is_on(limits, name) for name in WARPS):
        batch = frames.permute(0, 3, 1, 2).float()
        geometry = draw_geometry(draws, limits, *batch.shape[2:])
        batch = geometry.apply(batch)
    else:
        if is_on(limits, "shift") or is_on(limits, "flip"):
            frames, geometry = shift_and_flip(frames, draws, limits)
        batch = frames.permute(0, 3, 1, 2).float()
    if is_on(limits, "cutout"):
        batch = cutout(batch, draws, limits["cutout"])
    for name, apply in LIGHT.items():
        if is_on(limits, name):
            batch = apply(batch, draws, limits[name])
    return batch, geometry
