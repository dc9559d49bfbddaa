"""The labelled frames of a split, resident on the device as uint8, and what must hold before training starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_demo.errors import InputError
from stages.arrays import load_frames, load_truth
from stages.spec import DataResult, Split, TrainConfig
from stages.tasks import TASKS


@dataclass(frozen=True, slots=True)
class Examples:
    """One split, or a sample of it."""

    frames: Tensor
    """uint8 (N, H, W, C), C = 1 gray or 3 BGR, on the training device."""
    targets: Tensor
    """The truth as the loss takes it, on the training device; for classify int64 (N,)."""
    truth: NDArray[Any]
    """The truth as the task's score takes it."""

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def sample(self, n: int, seed: int) -> Examples:
        """At most `n` of them, drawn without replacement, in their order."""
        if n >= len(self):
            return self
        indices = np.sort(np.random.default_rng(seed).permutation(len(self))[:n])
        picked = torch.from_numpy(indices).to(self.frames.device)
        return Examples(self.frames[picked], self.targets[picked], self.truth[indices])


def load_examples(data: DataResult, split: Split, device: torch.device) -> Examples:
    """Reads a whole split into the device's memory.

    Raises:
        InputError: no frames, frames and truth of different number, or a label outside the data's labels.
    """
    frames, truth = load_frames(data, split), load_truth(data, split)
    if len(frames) != len(truth):
        raise InputError(f"{split}: {len(frames)} frames but {len(truth)} labels", "type: pipeline data check")
    if len(frames) == 0:
        raise InputError(f"{split}: no images; training needs train and val", f"raise data.{split}_fraction")
    outside = truth[(truth < 0) | (truth >= len(data.labels))]
    if outside.size:
        message = f"{split}: label {outside.flat[0]} is not one of the {len(data.labels)} classes"
        raise InputError(message, "type: pipeline data check")
    return Examples(torch.from_numpy(np.array(frames)).to(device), torch.from_numpy(truth).to(device), truth)


def check_config(config: TrainConfig, data: DataResult) -> None:
    """What must hold between settings and data.

    Raises:
        InputError: unknown task, data of another task, a single class, or a batch larger than the training split.
    """
    if config.task not in TASKS:
        raise InputError(f"train.task: unknown task '{config.task}'", f"known: {', '.join(TASKS)}")
    if config.task != data.task:
        raise InputError(
            f"train.task: {config.task}, but the data is for {data.task}", f"set train.task to {data.task}"
        )
    if len(data.labels) < 2:
        raise InputError(f"data.{data.name}: one class only ({data.labels[0]})", "add images of a second class")
    if config.batch_size > data.counts["train"]:
        message = f"train.batch_size: {config.batch_size} is more than the {data.counts['train']} training images"
        raise InputError(message, f"set it to {data.counts['train']} or less")
