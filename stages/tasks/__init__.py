"""What a task does while training: loss, targets, augmentation, the raw outputs of its network. Registry: `TASKS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.spec import AugmentConfig, TrainConfig
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
    loss: Callable[[tuple[Tensor, ...], Tensor, TrainConfig], Tensor]
    """(raw outputs, targets, config) -> scalar loss, mean over the batch."""
    augment: Callable[[Tensor, Tensor, AugmentConfig, torch.Generator], tuple[Tensor, Tensor]]
    """(uint8 NHWC frames, targets, config, generator) -> the same, changed."""


TASKS: dict[str, Task] = {
    "classify": Task(
        raw_outputs=("logits", "embedding"),
        outputs=("scores", "embedding"),
        post=classify.Post,
        loss=classify.loss,
        augment=classify.augment,
    ),
}
