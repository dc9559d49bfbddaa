"""Boxes follow their pictures: the corners of each go where the geometry takes them.

A batch's boxes are one tensor, float32 (N, M, 6): `x0, y0, x1, y1` in shares of the picture's sides, class id, crowd (0
or 1). M is the most that one of the pictures has; rows of class -1 fill up the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_demo.errors import InputError
from stages.augment import augment_alone
from stages.augment.draws import Draws
from stages.augment.geometry import Geometry
from stages.augment.mosaic import draw_mosaic
from stages.spec import AugmentConfig

COLUMNS = 6
NOTHING = -1.0
"""The class of a row that is no box."""
MIN_VISIBLE = 0.2
"""Share of a box that has to stay inside the picture; with less there is nothing to recognize. Our choice."""


def augment_boxes(
    frames: Tensor, boxes: Tensor, config: AugmentConfig, draws: Draws, num_labels: int
) -> tuple[Tensor, Tensor]:
    """Random changes of a batch with boxes: mosaic, then what `augment_alone` does.

    Args:
        frames: uint8 (N, H, W, C), gray or BGR.
        boxes: float32 (N, M, 6), see above.
        config: mixup, cutmix and elastic have to be off.
        draws: For these N pictures.
        num_labels: Plays no part.

    Returns:
        New frames of the same shape, and their boxes (N, M', 6).

    Raises:
        InputError: colour changes of gray frames, or a part of a batch that mosaic cannot join in fours.
    """
    if config.mosaic:
        mosaic = draw_mosaic(draws, config.mosaic, *frames.shape[1:3])
        frames, boxes = mosaic.apply(frames), mosaic_boxes(boxes, mosaic.bounds, mosaic.members)
    frames, geometry = augment_alone(frames, config, draws)
    return frames, boxes if geometry is None else moved(boxes, geometry)


def moved(boxes: Tensor, geometry: Geometry) -> Tensor:
    """Boxes (N, M, 6) of the source -> of the result: the bounds of their four corners, cut off at the picture.

    One of which less than `MIN_VISIBLE` is left is no box any more.

    Raises:
        ValueError: a field, which moves every pixel on its own.
    """
    if geometry.field is not None:
        raise ValueError("boxes cannot follow a field")
    linear, shift = geometry.matrix[..., :2], geometry.matrix[..., 2:]
    x, y = boxes[..., [0, 2, 0, 2]], boxes[..., [1, 1, 3, 3]]
    corners = torch.stack([x, y], dim=1).flatten(2) * 2 - 1  # (N, 2, M * 4), half sides from the centre
    placed = (torch.linalg.solve(linear, corners - shift) + 1) / 2
    of_box = placed.view(len(boxes), 2, -1, 4)
    bounds = torch.cat([of_box.amin(dim=3), of_box.amax(dim=3)], dim=1).transpose(1, 2)
    return clipped(bounds, torch.tensor([0.0, 0.0, 1.0, 1.0], device=boxes.device), boxes[..., 4:])


def clipped(xyxy: Tensor, bounds: Tensor, rest: Tensor) -> Tensor:
    """Boxes cut off at `bounds`; those of which too little is left become rows of class `NOTHING`.

    Args:
        xyxy: (N, M, 4).
        bounds: xyxy (4,), or (N, M, 4) of each.
        rest: (N, M, 2), class and crowd.

    Returns:
        (N, M, 6).
    """
    low, high = bounds[..., :2], bounds[..., 2:]
    cut = torch.cat([(xyxy[..., :2].clamp(low, high)), xyxy[..., 2:].clamp(low, high)], dim=-1)
    left = area(cut) > MIN_VISIBLE * area(xyxy)
    classes = torch.where(left, rest[..., 0], NOTHING)
    return torch.cat([cut, classes[..., None], rest[..., 1:]], dim=-1)


def area(xyxy: Tensor) -> Tensor:
    """(..., 4) -> (...)."""
    return (xyxy[..., 2:] - xyxy[..., :2]).clamp(min=0).prod(dim=-1)


def mosaic_boxes(boxes: Tensor, bounds: Tensor, members: Tensor) -> Tensor:
    """The boxes of the four members of each mosaic, moved and cut off with the parts they lie in.

    Args:
        boxes: (N, M, 6).
        bounds: (N, 4, 6): xyxy of each part in the result, then x and y of the result minus those of the source.
        members: int64 (N, 4), whose picture each part shows.

    Returns:
        (N, M', 6), M' as small as it can be.
    """
    found = boxes[members]  # (N, 4, M, 6)
    xyxy = found[..., :4] + bounds[:, :, None, [4, 5, 4, 5]]
    parts = clipped(
        xyxy.flatten(1, 2), bounds[:, :, None, :4].expand_as(xyxy).flatten(1, 2), found[..., 4:].flatten(1, 2)
    )
    return packed(parts)


def packed(boxes: Tensor) -> Tensor:
    """Boxes (N, M, 6) without the columns that are empty in every picture; boxes first."""
    is_none = boxes[..., 4] == NOTHING
    order = is_none.to(torch.uint8).argsort(dim=1, stable=True)
    most = int((~is_none).sum(dim=1).amax()) if boxes.numel() else 0
    return boxes.gather(1, order[:, : max(most, 1), None].expand(-1, -1, COLUMNS))


def check_boxes_augment(config: AugmentConfig) -> None:
    """Raises InputError for changes that boxes cannot follow."""
    for name in ("mixup", "cutmix"):
        if getattr(config, name):
            raise InputError(f"train.augment.{name}: joins classes, not boxes", "use train.augment.mosaic, or drop it")
    if config.elastic:
        raise InputError("train.augment.elastic: boxes cannot follow it", "use scale, crop or shear, or drop it")
