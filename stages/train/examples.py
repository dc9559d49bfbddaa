"""The labelled frames of a split, on the device or on disk as uint8, and what must hold before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_demo.errors import InputError
from stages.arrays import load_frames
from stages.models import MODELS, network
from stages.spec import DataResult, Split, TrainConfig
from stages.tasks import TASKS, Targets
from stages.train.resident import resident_bytes


@dataclass(frozen=True, slots=True)
class Examples:
    """One split, or a sample of it."""

    frames: Tensor
    """uint8 (N, H, W, C), C = 1 gray or 3 BGR, on the training device; streamed ones on the CPU, mapped from disk."""
    targets: Targets
    """The truth as the loss takes it, on the training device; for classify int64 (N,)."""
    truth: Sequence[Any]
    """The truth as the task's score takes it, an entry per frame."""
    is_streamed: bool = False
    """Whether the frames are left on disk and read as they are needed."""

    @property
    def device(self) -> torch.device:
        """Where training is."""
        return self.targets.device if self.is_streamed else self.frames.device

    def batch(self, picked: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Frames and targets of some items, on the training device."""
        frames = self.frames[picked]
        if self.is_streamed and self.device.type == "cuda":
            frames = frames.pin_memory().to(self.device, non_blocking=True)
        index = picked if isinstance(picked, slice) else picked.to(self.targets.device)
        return frames, self.targets[index]

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def sample(self, n: int, seed: int) -> Examples:
        """At most `n` of them, drawn without replacement, in their order."""
        if n >= len(self):
            return self
        indices = np.sort(np.random.default_rng(seed).permutation(len(self))[:n])
        some = self.batch(torch.from_numpy(indices).to(self.frames.device))
        return Examples(*some, [self.truth[index] for index in indices.tolist()])


def load_examples(data: DataResult, split: Split, device: torch.device, resident_mb: int = 0) -> Examples:
    """Reads a whole split into the device's memory; one that is too large for it is mapped from disk instead.

    Args:
        data: The data stage's result.
        split: Which.
        device: Of the training.
        resident_mb: `TrainConfig.resident_mb`.

    Raises:
        InputError: no frames, frames and truth of different number, or truth that is not the data's.
    """
    task, frames = TASKS[data.task], load_frames(data, split)
    targets = task.targets(data, split)
    if len(frames) != len(targets):
        raise InputError(f"{split}: {len(frames)} frames but {len(targets)} labels", "type: pipeline data check")
    if len(frames) == 0:
        raise InputError(f"{split}: no images; training needs train and val", f"raise data.{split}_fraction")
    targets, truth = targets.to(device), task.truths(data, split)
    if frames.nbytes > resident_bytes(resident_mb, device):
        # torch warns of read-only arrays; this one is copied on a write, and nobody writes
        path = data.folder / f"{split}.frames.npy"
        return Examples(torch.from_numpy(np.load(path, mmap_mode="c")), targets, truth, is_streamed=True)
    return Examples(torch.from_numpy(np.array(frames)).to(device), targets, truth)


def streaming_notes(**splits: Examples) -> tuple[str, ...]:
    """A sentence for each split that was too large for the device's memory."""
    return tuple(
        f"{split} stays on disk and is streamed: {examples.frames.nbytes / 1e6:,.0f} MB are more than "
        "train.resident_mb, by default half of the free memory"
        for split, examples in splits.items()
        if examples.is_streamed
    )


def balanced_weights(data: DataResult, device: torch.device) -> Tensor:
    """float32 (num_labels,): N / (classes x N of the class); every class weighs the same, and a picture 1 on average.

    Source: King and Zeng 2001, "Logistic Regression in Rare Events Data", as scikit-learn has it.

    Raises:
        InputError: a class without training pictures.
    """
    counts = data.class_counts["train"]
    if missing := [label for label, count in zip(data.labels, counts, strict=True) if count == 0]:
        message = f"train.class_weights: no training images of class {missing[0]}, so it has no weight"
        raise InputError(message, "type: pipeline data check")
    return torch.tensor([sum(counts) / (len(counts) * count) for count in counts], device=device)


def check_config(config: TrainConfig, data: DataResult) -> None:
    """What must hold between settings and data.

    Raises:
        InputError: unknown task, data or a network of another task, what the task refuses, or a batch larger than the
            training split.
    """
    if config.task not in TASKS:
        raise InputError(f"train.task: unknown task '{config.task}'", f"known: {', '.join(TASKS)}")
    if config.task != data.task:
        raise InputError(
            f"train.task: {config.task}, but the data is for {data.task}", f"set train.task to {data.task}"
        )
    if config.task not in network(config.model.name).tasks:
        fitting = ", ".join(name for name, row in MODELS.items() if config.task in row.tasks)
        raise InputError(
            f"train.model.name: {config.model.name} is no network for {config.task}", f"known: {fitting or 'none'}"
        )
    TASKS[config.task].check(config, data)
    if config.batch_size * config.accumulate > data.counts["train"] >= config.batch_size:
        message = f"train.accumulate: {config.accumulate} passes of {config.batch_size} are more than the"
        raise InputError(
            f"{message} {data.counts['train']} training images",
            f"set it to {data.counts['train'] // config.batch_size}",
        )
    if config.batch_size > data.counts["train"]:
        message = f"train.batch_size: {config.batch_size} is more than the {data.counts['train']} training images"
        raise InputError(message, f"set it to {data.counts['train']} or less")
