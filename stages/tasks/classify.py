"""Classification, training side: loss, hits, truths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_demo.errors import InputError
from edge_demo.tasks.classify import Classes
from stages.arrays import load_truth
from stages.spec import DataResult, Split, TrainConfig


class Post(nn.Module):
    """logits (N, num_labels), embedding (N, features) -> scores (N, num_labels) summing to 1, embedding."""

    def forward(self, logits: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax over the classes; the embedding passes through."""
        return torch.softmax(logits, dim=1), embedding + 0.0


def post(size_wh: tuple[int, int]) -> nn.Module:
    """`Post`, whatever the size of the pictures."""
    return Post()


def check(config: TrainConfig, data: DataResult) -> None:
    """Raises InputError for a single class, or parts of pictures, which have no class."""
    if len(data.labels) < 2:
        raise InputError(f"data.{data.name}: one class only ({data.labels[0]})", "add images of a second class")
    if config.augment.mosaic:
        raise InputError(
            "train.augment.mosaic: a part of a picture has no class", "use train.augment.cutmix, or drop it"
        )


def targets(data: DataResult, split: Split) -> Tensor:
    """int64 (N,) class ids.

    Raises:
        InputError: a label outside the data's labels.
    """
    truth = load_truth(data, split)
    outside = truth[(truth < 0) | (truth >= len(data.labels))]
    if outside.size:
        message = f"{split}: label {outside.flat[0]} is not one of the {len(data.labels)} classes"
        raise InputError(message, "type: pipeline data check")
    return torch.from_numpy(truth)


def loss(raw: tuple[Tensor, ...], targets: Tensor, config: TrainConfig, class_weights: Tensor | None = None) -> Tensor:
    """The mean over the batch of each picture's loss, as `config.loss` and `config.label_smoothing` have it.

    - cross-entropy. Source of label smoothing: Szegedy et al. 2016 (arXiv:1512.00567), section 7.
    - binary: one sigmoid per class, its cross entropies added up. Source: Rifkin and Klautau 2004, "In Defense of
      One-Vs-All Classification", JMLR 5. Smoothing mixes in the same uniform distribution as above. What ships is the
      softmax of the same logits: the same answer, but not the probability that this loss fits.

    Args:
        raw: logits (N, num_labels) first.
        targets: int64 (N,), or float32 (N, num_labels) with rows that sum to 1, e.g. of mixed pictures.
        config: Which loss.
        class_weights: float32 (num_labels,); each picture's loss is multiplied by its class's (mixed pictures: by the
            mixed) weight. The mean stays over N, so that a batch is worth the same in parts as in one.
    """
    logits = raw[0].float()
    if class_weights is None and config.loss == "cross-entropy":
        return F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
    soft = targets if targets.is_floating_point() else F.one_hot(targets, logits.shape[1]).float()
    smooth = soft * (1 - config.label_smoothing) + config.label_smoothing / logits.shape[1]
    if config.loss == "cross-entropy":
        losses = F.cross_entropy(logits, smooth, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").sum(dim=1)
    return losses.mean() if class_weights is None else (losses * (soft @ class_weights)).mean()


def hits(raw: tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """How many of the batch are answered right, as a number on its device; a mixed picture's class is its heaviest."""
    truth = targets.argmax(dim=1) if targets.is_floating_point() else targets
    return (raw[0].argmax(dim=1) == truth).sum()


def truths(data: DataResult, split: Split) -> list[int]:
    """The class id of every item."""
    return [int(class_id) for class_id in load_truth(data, split)]


def predictions(truths: Sequence[int], results: Sequence[Classes]) -> dict[str, NDArray[Any]]:
    """`truth` and `answer` int64, `score` float32 of the answer, each (N,)."""
    return {
        "truth": np.asarray(truths, dtype=np.int64),
        "answer": np.array([result.class_id for result in results], dtype=np.int64),
        "score": np.array([result.score for result in results], dtype=np.float32),
    }
