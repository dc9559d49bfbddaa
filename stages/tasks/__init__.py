"""What a task does while training: loss, targets, augmentation, the raw outputs of its network. Registry: `TASKS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.arrays import load_truth
from stages.augment import Draws, augment
from stages.spec import AugmentConfig, DataResult, Split, TrainConfig
from stages.tasks import classify


@dataclass(frozen=True, slots=True)
class Task:
    """One row of functions."""

    raw_outputs: tuple[str, ...]
    """Names of what the bare network returns, in order; the first is what parity and SQNR are measured on."""
    outputs: tuple[str, ...]
    """Names of the deployed graph's outputs, in order: `edge_demo.tasks.TASKS[name].outputs`."""
    post: Callable[[], nn.Module]
    """raw outputs -> final outputs, as a module that exports."""
    loss: Callable[[tuple[Tensor, ...], Tensor, TrainConfig, Tensor | None], Tensor]
    """(raw outputs, targets, config, weights of the classes) -> scalar loss, mean over the batch."""
    hits: Callable[[tuple[Tensor, ...], Tensor], Tensor]
    """(raw outputs, targets) -> sum over the batch of the leading metric while training, on their device."""
    augment: Callable[[Tensor, Tensor, AugmentConfig, Draws, int], tuple[Tensor, Tensor]]
    """(uint8 NHWC frames, targets, config, draws, number of labels) -> the same, changed."""
    truths: Callable[[DataResult, Split], list[Any]]
    """The truth of every item of a split, as `edge_demo.tasks.TASKS[name].score` takes it."""
    strata: Callable[[DataResult, Split], NDArray[np.int64]]
    """(N,) class that each item stands for in a stratified sample."""
    predictions: Callable[[Sequence[Any], Sequence[Any]], dict[str, NDArray[Any]]]
    """(truths, results) -> arrays that `predictions.npz` keeps of them, for the report."""


TASKS: dict[str, Task] = {
    "classify": Task(
        raw_outputs=("logits", "embedding"),
        outputs=("scores", "embedding"),
        post=classify.Post,
        loss=classify.loss,
        hits=classify.hits,
        augment=augment,
        truths=classify.truths,
        strata=load_truth,
        predictions=classify.predictions,
    ),
}
