"""Everything that takes part in an optimizer step, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import edge_demo.tasks
import stages.tasks
from stages.graph import Preprocess
from stages.spec import TrainConfig
from stages.train.average import Average
from stages.train.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Learner:
    """Network, optimizer, and what stands around them."""

    config: TrainConfig
    labels: Sequence[str]
    fabric: Fabric
    core: nn.Module
    """The bare network; called directly it computes in float32, which is what ships."""
    model: Any
    """The same network behind Fabric, in the training precision."""
    optimizer: Any
    """Fabric's view of the optimizer."""
    pre: Preprocess
    post: nn.Module
    class_weights: Tensor | None = None
    """float32 (num_labels,) factors of the loss; None: all 1."""
    average: Average | None = None
    """The moving average of the weights, where there is one."""
    teacher: Teacher | None = None
    """Whom it learns from beside the labels, where there is one."""

    @property
    def task(self) -> stages.tasks.Task:
        """Loss, augmentation, outputs."""
        return stages.tasks.TASKS[self.config.task]

    @property
    def device_task(self) -> edge_demo.tasks.Task:
        """Decode and score, as they ship."""
        return edge_demo.tasks.TASKS[self.config.task]

    @property
    def shipped(self) -> nn.Module:
        """The network that is measured, kept and shipped: the average where there is one, else `core`."""
        return self.core if self.average is None else self.average.network

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Fabric around it."""
        optimizer: torch.optim.Optimizer = self.optimizer.optimizer
        return optimizer

    def batch(self, frames: Tensor) -> Tensor:
        """uint8 frames -> the network's input, in the memory layout that convolutions like."""
        batch: Tensor = self.pre(frames)
        return batch.contiguous(memory_format=torch.channels_last)

    def results(self, raw: tuple[Tensor, ...]) -> list[Any]:
        """Raw outputs -> decoded results, by the code that ships."""
        outputs = zip(self.task.outputs, self.post(*(value.float() for value in raw)), strict=True)
        arrays = {name: value.cpu().numpy() for name, value in outputs}
        return self.device_task.decode(arrays, self.device_task.check_params({}, self.labels))
