"""One pass over the training frames, and the measurement after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import edge_demo.tasks
import stages.tasks
from edge_demo.errors import Error
from stages.graph import Preprocess
from stages.spec import TrainConfig
from stages.train.examples import Examples
from stages.train.optim import lr_factor

REPORT_EVERY_S = 0.1
EVAL_BATCH = 500

OnBatch = Callable[[int, dict[str, float]], None]
"""(steps done in this epoch, running loss, metric and images_per_s)."""


@dataclass(frozen=True, slots=True)
class Learner:
    """Everything that takes part in a step."""

    config: TrainConfig
    labels: Sequence[str]
    fabric: Fabric
    core: nn.Module
    """The bare network; called directly it computes in float32, which is what ships."""
    model: nn.Module
    """The same network behind Fabric, in the training precision."""
    optimizer: Any
    """Fabric's view of the optimizer."""
    pre: Preprocess
    post: nn.Module

    @property
    def task(self) -> stages.tasks.Task:
        """Loss, augmentation, outputs."""
        return stages.tasks.TASKS[self.config.task]

    @property
    def device_task(self) -> edge_demo.tasks.Task:
        """Decode and score, as they ship."""
        return edge_demo.tasks.TASKS[self.config.task]

    def batch(self, frames: Tensor) -> Tensor:
        """uint8 frames -> the network's input, in the memory layout that convolutions like."""
        batch: Tensor = self.pre(frames)
        return batch.contiguous(memory_format=torch.channels_last)

    def results(self, raw: tuple[Tensor, ...]) -> list[Any]:
        """Raw outputs -> decoded results, by the code that ships."""
        outputs = zip(self.task.outputs, self.post(*(value.float() for value in raw)), strict=True)
        arrays = {name: value.cpu().numpy() for name, value in outputs}
        return self.device_task.decode(arrays, self.device_task.check_params({}, self.labels))


@dataclass(slots=True)
class Running:
    """Sums over the epoch. Steps wait in `pending` so that a GPU is not stopped for every one of them."""

    learner: Learner
    first_step: int
    pending: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = field(default_factory=list)
    steps: int = 0
    items: int = 0
    loss: float = 0.0
    correct: float = 0.0

    def add(self, loss: Tensor, raw: tuple[Tensor, ...], targets: Tensor) -> None:
        """Notes a step."""
        self.pending.append((loss.detach(), tuple(value.detach() for value in raw), targets))

    def settle(self) -> None:
        """Adds up what waits.

        Raises:
            Error: a loss is NaN or infinite.
        """
        for loss, raw, targets in self.pending:
            value = float(loss)
            if not np.isfinite(value):
                step, lr = self.first_step + self.steps + 1, self.learner.config.lr
                message = f"training diverged: the loss is {value} in step {step}"
                raise Error(message, f"set train.lr below {lr:g}, e.g. --set train.lr={lr / 3:.2g}")
            correct = self.learner.device_task.correct(self.learner.results(raw), targets.tolist())
            self.steps += 1
            self.items += len(targets)
            self.loss += value * len(targets)
            self.correct += float(correct.sum())
        self.pending.clear()

    def means(self) -> dict[str, float]:
        """Loss and leading metric per item so far."""
        return {"loss": self.loss / self.items, self.learner.device_task.metric: self.correct / self.items}


def epoch_seeds(seed: int, epoch: int) -> tuple[int, int]:
    """Seeds of an epoch's data order and changes, and of its dropout: no random state has to outlive an epoch."""
    order, dropout = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64)
    return int(order), int(dropout)


def train_epoch(
    learner: Learner, examples: Examples, epoch: int, total_steps: int, on_batch: OnBatch
) -> dict[str, float]:
    """Epoch 1, 2, ... over all whole batches, in fresh random order; an incomplete last batch is left out.

    Returns:
        Means of loss and metric as trained (augmented, network changing), `lr` of the last step, `images_per_s`.

    Raises:
        Error: the loss is NaN or infinite.
    """
    config, device = learner.config, examples.frames.device
    order_seed, dropout_seed = epoch_seeds(config.seed, epoch)
    generator = torch.Generator(device).manual_seed(order_seed)
    torch.manual_seed(dropout_seed)
    order = torch.randperm(len(examples), generator=generator, device=device)
    steps = len(examples) // config.batch_size
    first_step = (epoch - 1) * steps
    running = Running(learner, first_step)
    learner.model.train()
    began = reported = time.perf_counter()
    lr = 0.0
    for index in range(steps):
        lr = config.lr * lr_factor(config.schedule, first_step + index, total_steps)
        picked = order[index * config.batch_size : (index + 1) * config.batch_size]
        running.add(*train_step(learner, examples.frames[picked], examples.targets[picked], lr, generator))
        now = time.perf_counter()
        if now - reported >= REPORT_EVERY_S:
            running.settle()
            on_batch(index + 1, {**running.means(), "images_per_s": running.items / (now - began)})
            reported = now
    running.settle()
    return {**running.means(), "lr": lr, "images_per_s": running.items / (time.perf_counter() - began)}


def train_step(
    learner: Learner, frames: Tensor, targets: Tensor, lr: float, generator: torch.Generator
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """One optimizer step on a batch; returns loss, raw outputs and targets."""
    frames, targets = learner.task.augment(frames, targets, learner.config.augment, generator)
    raw = learner.model(learner.batch(frames))
    loss = learner.task.loss(raw, targets, learner.config)
    for group in learner.optimizer.param_groups:
        group["lr"] = lr
    learner.optimizer.zero_grad(set_to_none=True)
    learner.fabric.backward(loss)
    learner.optimizer.step()
    return loss, raw, targets


@dataclass(frozen=True, slots=True)
class Measured:
    """What a network scores on a split."""

    loss: float
    """Mean over the items."""
    metric: float
    """The task's leading metric."""
    error: float
    """Standard error of the metric: the deviation of the items' qualities over the root of their number."""


def evaluate(learner: Learner, examples: Examples) -> Measured:
    """Measures in evaluation mode and float32, without augmentation."""
    learner.core.eval()
    results: list[Any] = []
    loss = 0.0
    with torch.inference_mode():
        for start in range(0, len(examples), EVAL_BATCH):
            frames, targets = (part[start : start + EVAL_BATCH] for part in (examples.frames, examples.targets))
            raw = learner.core(learner.batch(frames))
            loss += float(learner.task.loss(raw, targets, learner.config)) * len(targets)
            results += learner.results(raw)
    truth = examples.truth.tolist()
    metric = learner.device_task.score(results, truth)[learner.device_task.metric]
    error = float(learner.device_task.correct(results, truth).std()) / len(examples) ** 0.5
    return Measured(loss / len(examples), metric, error)
