"""Annotated frames as training sees them: its random changes, and the truth that went along. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_demo.errors import missing_extra
from stages.data.annotated import CROWD, Boxes, SizeWh, boxes_of
from stages.data.annotated_show import Shown
from stages.spec import AugmentConfig

if TYPE_CHECKING:
    from torch import Tensor


def as_trained(shown: Shown, augment: AugmentConfig, seed: int) -> Shown:
    """The same frames as one batch of training, in random order; each is known by its place in it.

    Raises:
        InputError: torch is not installed, or changes that do not suit the frames.
    """
    try:
        import torch
    except ImportError:
        raise missing_extra("showing training's random changes", "torch", "train") from None

    from stages.augment import Draws
    from stages.tasks import TASKS

    generator = torch.Generator().manual_seed(seed)
    count = len(shown.frames)
    order = torch.randperm(count, generator=generator)
    frames = torch.from_numpy(np.stack(shown.frames))[order]
    height, width = frames.shape[1:3]
    to_targets, to_truths = TARGETS[shown.task]
    targets = to_targets([shown.truths[index] for index in order.tolist()], (width, height))
    changed, targets = TASKS[shown.task].augment(frames, targets, augment, Draws(generator, count), len(shown.labels))
    truths = to_truths(targets, (width, height))
    return replace(shown, frames=list(changed.numpy()), truths=truths, names=[str(at) for at in range(count)])


def _rows(truths: Sequence[Boxes], size_wh: SizeWh) -> Tensor:
    """Boxes as `stages.augment.boxes` has them."""
    import torch

    from stages.augment.boxes import COLUMNS, NOTHING

    rows = torch.zeros(len(truths), max(1, *(len(boxes) for boxes in truths)), COLUMNS)
    rows[..., 4] = NOTHING
    for row, boxes in zip(rows, truths, strict=True):
        row[: len(boxes), :4] = torch.from_numpy((boxes.xyxy / (size_wh * 2)).astype(np.float32))
        row[: len(boxes), 4] = torch.from_numpy(boxes.classes)
        row[: len(boxes), 5] = torch.from_numpy(boxes.flags & CROWD)
    return rows


def _boxes(rows: Tensor, size_wh: SizeWh) -> list[Boxes]:
    """And back."""
    found = []
    for row in rows.numpy():
        kept = row[row[:, 4] >= 0]
        found.append(boxes_of(kept[:, :4] * np.array(size_wh * 2), kept[:, 4], kept[:, 5]))
    return found


def _stacked(truths: Sequence[Any], size_wh: SizeWh) -> Tensor:
    """Masks as they are."""
    import torch

    return torch.from_numpy(np.stack(truths))


def _tags(truths: Sequence[Any], size_wh: SizeWh) -> Tensor:
    """0 and 1 as numbers that may be mixed."""
    return _stacked(truths, size_wh).float()


def _listed(targets: Tensor, size_wh: SizeWh) -> list[Any]:
    """Picture by picture."""
    return list(targets.numpy())


TARGETS: dict[str, tuple[Any, Any]] = {
    "detect": (_rows, _boxes),
    "segment": (_stacked, _listed),
    "multilabel": (_tags, _listed),
}
"""Task -> (truths, size) -> what its augmentation takes, and back."""
