"""Masks follow their pictures: each pixel takes the class that stands where the geometry reads the picture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edge_demo.errors import InputError
from edge_demo.tasks.segment_metric import VOID
from stages.augment import augment_alone
from stages.augment.draws import Draws
from stages.augment.geometry import Geometry, places
from stages.augment.mosaic import draw_mosaic
from stages.spec import AugmentConfig


def augment_masks(
    frames: Tensor, masks: Tensor, config: AugmentConfig, draws: Draws, num_labels: int
) -> tuple[Tensor, Tensor]:
    """Random changes of a batch with masks: mosaic, then what `augment_alone` does.

    What is moved in from outside is void: the picture repeats its border there, and nobody knows what it shows.

    Args:
        frames: uint8 (N, H, W, C), gray or BGR.
        masks: uint8 (N, H, W) class ids, 255 void.
        config: mixup and cutmix have to be off.
        draws: For these N pictures.
        num_labels: Plays no part.

    Returns:
        New frames and masks of the same shapes.

    Raises:
        InputError: colour changes of gray frames, or a part of a batch that mosaic cannot join in fours.
    """
    if config.mosaic:
        mosaic = draw_mosaic(draws, config.mosaic, *frames.shape[1:3])
        frames, masks = mosaic.apply(frames), mosaic.apply(masks)
    frames, geometry = augment_alone(frames, config, draws)
    return frames, masks if geometry is None else moved(masks, geometry)


def moved(masks: Tensor, geometry: Geometry) -> Tensor:
    """Masks uint8 (N, H, W) of the source -> of the result: the nearest pixel's class, void outside."""
    grid = places(masks.shape[1], masks.shape[2], geometry.matrix, geometry.field)
    # grid_sample has zeros outside, so void is made zero; whole numbers to 255 are exact as floats.
    shifted = F.grid_sample(masks[:, None].float() - VOID, grid, mode="nearest", align_corners=False)
    return (shifted[:, 0] + VOID).to(masks.dtype)


def check_masks_augment(config: AugmentConfig) -> None:
    """Raises InputError for changes that masks cannot follow."""
    for name in ("mixup", "cutmix"):
        if getattr(config, name):
            message = f"train.augment.{name}: joins the classes of pictures, not of pixels"
            raise InputError(message, "use train.augment.mosaic, or drop it")
