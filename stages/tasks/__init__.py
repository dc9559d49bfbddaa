"""What a task does while training: loss, targets, augmentation, the raw outputs of its network. Registry: `TASKS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.arrays import load_boxes, load_truth
from stages.augment import Draws, augment
from stages.augment.boxes import augment_boxes
from stages.augment.masks import augment_masks
from stages.spec import AugmentConfig, DataResult, Split, TrainConfig
from stages.tasks import classify, detect, multilabel, segment


class Targets(Protocol):
    """The truth of a split as the loss takes it, item by item; a tensor (N, ...) is one."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""

    def to(self, device: torch.device, /) -> Self:
        """The same on another device."""

    def __len__(self) -> int: ...

    def __getitem__(self, picked: Tensor | slice, /) -> Tensor:
        """Of some items, as one tensor (n, ...)."""


@dataclass(frozen=True, slots=True)
class Task:
    """One row of functions."""

    raw_outputs: tuple[str, ...]
    """Names of what the bare network returns, in order; the first is what parity and SQNR are measured on."""
    outputs: tuple[str, ...]
    """Names of the deployed graph's outputs, in order: `edge_demo.tasks.TASKS[name].outputs`."""
    post: Callable[[tuple[int, int]], nn.Module]
    """(width and height of the network's input) -> raw outputs -> final outputs, as a module that exports."""
    check: Callable[[TrainConfig, DataResult], None]
    """(config, data) -> InputError where they do not suit the task, e.g. for a setting that would do nothing."""
    targets: Callable[[DataResult, Split], Targets]
    """The truth of a split as `loss` takes it, on the CPU; InputError where it is damaged."""
    loss: Callable[[tuple[Tensor, ...], Tensor, TrainConfig, Tensor | None], Tensor]
    """(raw outputs, targets, config, weights of the classes) -> scalar loss, mean over the batch."""
    hits: Callable[[tuple[Tensor, ...], Tensor], Tensor] | None
    """(raw outputs, targets) -> sum over the batch of the leading metric while training, on their device; None where
    that metric is no mean over the items."""
    augment: Callable[[Tensor, Tensor, AugmentConfig, Draws, int], tuple[Tensor, Tensor]]
    """(uint8 NHWC frames, targets, config, draws, number of labels) -> the same, changed."""
    truths: Callable[[DataResult, Split], list[Any]]
    """The truth of every item of a split, as `edge_demo.tasks.TASKS[name].score` takes it."""
    plain_truth: Callable[[Any], Any]
    """One of those as plain JSON values, which `score` takes as well."""
    strata: Callable[[DataResult, Split], NDArray[np.int64]]
    """(N,) class that each item stands for in a stratified sample."""
    predictions: Callable[[Sequence[Any], Sequence[Any]], dict[str, NDArray[Any]]]
    """(truths, results) -> arrays that `predictions.npz` keeps of them, for the report."""
    fits_from: float
    """What the leading metric is on its own training items where a network fits them; below it is called underfitting.
    Our judgement."""
    is_teachable: bool = False
    """Whether the first raw output is logits along axis 1, one answer per frame: what `train.teacher` needs."""


TASKS: dict[str, Task] = {
    "classify": Task(
        raw_outputs=("logits", "embedding"),
        outputs=("scores", "embedding"),
        post=classify.post,
        check=classify.check,
        targets=classify.targets,
        loss=classify.loss,
        hits=classify.hits,
        augment=augment,
        truths=classify.truths,
        plain_truth=int,
        strata=load_truth,
        predictions=classify.predictions,
        fits_from=0.9,
        is_teachable=True,
    ),
    "multilabel": Task(
        raw_outputs=("logits", "embedding"),
        outputs=("scores", "embedding"),
        post=multilabel.post,
        check=multilabel.check,
        targets=multilabel.targets,
        loss=multilabel.loss,
        hits=None,
        augment=augment,
        truths=multilabel.truths,
        plain_truth=multilabel.plain_truth,
        strata=multilabel.strata,
        predictions=multilabel.predictions,
        fits_from=0.8,
    ),
    "detect": Task(
        raw_outputs=("logits", "sides"),
        outputs=("boxes", "scores", "classes"),
        post=detect.Post,
        check=detect.check,
        targets=detect.targets,
        loss=detect.loss,
        hits=None,
        augment=augment_boxes,
        truths=load_boxes,
        plain_truth=dict,
        strata=detect.strata,
        predictions=detect.predictions,
        fits_from=0.5,
    ),
    "segment": Task(
        raw_outputs=("logits",),
        outputs=("classes",),
        post=segment.Post,
        check=segment.check,
        targets=segment.targets,
        loss=segment.loss,
        hits=None,
        augment=augment_masks,
        truths=segment.truths,
        plain_truth=segment.plain_truth,
        strata=segment.strata,
        predictions=segment.predictions,
        fits_from=0.7,
    ),
}
