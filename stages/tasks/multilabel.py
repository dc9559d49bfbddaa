"""Any number of labels a picture, training side: one yes or no for each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_demo.errors import InputError
from edge_demo.tasks.multilabel import Tags
from stages.arrays import load_tags
from stages.spec import DataResult, Split, TrainConfig


class Post(nn.Module):
    """logits (N, num_labels), embedding (N, features) -> scores (N, num_labels) in 0..1, embedding."""

    def forward(self, logits: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """A sigmoid for each label; the embedding passes through."""
        return logits.sigmoid(), embedding + 0.0


def post(size_wh: tuple[int, int]) -> nn.Module:
    """`Post`, whatever the size of the pictures."""
    return Post()


def check(config: TrainConfig, data: DataResult) -> None:
    """Raises InputError for changes that take parts of pictures, whose labels nobody knows."""
    for knob in ("mosaic", "crop", "cutmix"):
        if getattr(config.augment, knob):
            raise InputError(f"train.augment.{knob}: what is left of a picture may not show its labels", "leave it out")


def targets(data: DataResult, split: Split) -> Tensor:
    """float32 (N, num_labels): 1 where the picture has the label.

    Raises:
        InputError: another number of labels than the data's.
    """
    tags = load_tags(data, split)
    if tags.shape[1:] != (len(data.labels),):
        message = f"{split}: {tags.shape[1]} labels a picture, but the data has {len(data.labels)}"
        raise InputError(message, "type: pipeline data")
    return torch.from_numpy(tags).float()


def loss(raw: tuple[Tensor, ...], targets: Tensor, config: TrainConfig, class_weights: Tensor | None = None) -> Tensor:
    """The mean over the batch of the sum over the labels of each one's binary cross entropy.

    Sources: Bishop 2006, "Pattern Recognition and Machine Learning", equation 4.90; label smoothing towards one half:
    Szegedy et al. 2016 (arXiv:1512.00567), section 7, for two classes.

    Args:
        raw: logits (N, num_labels) first.
        targets: float32 (N, num_labels), 0 or 1, or between for mixed pictures.
        config: Its label smoothing; the loss is this one whatever `config.loss` says of classes that exclude others.
        class_weights: float32 (num_labels,), of each label's terms.
    """
    smooth = targets * (1 - config.label_smoothing) + config.label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(raw[0].float(), smooth, weight=class_weights, reduction="none")
    return losses.sum(dim=1).mean()


def truths(data: DataResult, split: Split) -> list[NDArray[np.uint8]]:
    """0 or 1 for each label, of every item."""
    return list(load_tags(data, split))


def plain_truth(truth: NDArray[np.uint8]) -> list[int]:
    """The same as JSON holds it."""
    return [int(value) for value in truth]


def strata(data: DataResult, split: Split) -> NDArray[np.int64]:
    """Each picture's rarest label, by the pictures of the split; the number of labels where it has none."""
    tags = load_tags(data, split).astype(bool)
    counts = tags.sum(axis=0)
    rare_first = np.argsort(counts, kind="stable")
    first = tags[:, rare_first].argmax(axis=1)
    stands_for: NDArray[np.int64] = np.where(tags.any(axis=1), rare_first[first], tags.shape[1]).astype(np.int64)
    return stands_for


def predictions(truths: Sequence[NDArray[np.uint8]], results: Sequence[Tags]) -> dict[str, NDArray[Any]]:
    """`tags` bool and `tag_scores` float32, (N, num_labels); `shown` float32, the score from which a label is there."""
    return {
        "tags": np.array(truths, dtype=bool),
        "tag_scores": np.stack([result.scores for result in results]),
        "shown": np.array(results[0].threshold, dtype=np.float32),
    }
