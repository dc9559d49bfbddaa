"""What a training takes from other runs: a teacher, a network to prune and go on from, or the weights of a body."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from edge_demo.errors import InputError
from stages.arrays import load_frames
from stages.graph import Preprocess
from stages.models import build
from stages.models.prune import pruned
from stages.models.whiten import whiten_start
from stages.other_run import OtherRun, check_same_problem, check_unseen, other_runs
from stages.spec import DataResult, ModelConfig, TrainConfig
from stages.tasks import TASKS
from stages.train.teacher import Teacher
from stages.train.warm_start import INIT_FROM, warm_start
from stages.trained import CHANNELS, load_trained

SEEN = 1024  # pictures for `whiten_start` and `pruned`, which take what they need


def read_sources(
    config: TrainConfig, data: DataResult, out_dir: Path | None = None
) -> tuple[dict[str, OtherRun], tuple[str, ...]]:
    """The runs that the settings name, by setting, and sentences for people about them.

    Args:
        config: Settings.
        data: What is trained on.
        out_dir: Where the result goes; it may not be in one of the runs.

    Raises:
        InputError: no finished run there, or one of another problem, another network, or with val or test in its train.
    """
    runs = other_runs(config)
    notes: list[str] = []
    for key, run in runs.items():
        if out_dir is not None and out_dir.resolve().is_relative_to(run.folder.resolve()):
            raise InputError(f"{key}: {run.folder} is this run itself", "give this one a folder of its own with --run")
        notes += check_unseen(run, data) if key == INIT_FROM else check_same_problem(run, config, data)
        scored = f"{run.train.metric} {run.train.val:.2%} on val, {run.train.macs:,} multiply-accumulates"
        notes.append(f"{key} is {run.folder}: {run.train.model.name}, {scored}")
    if config.teacher and not TASKS[config.task].is_teachable:
        fitting = ", ".join(name for name, task in TASKS.items() if task.is_teachable)
        raise InputError(f"train.teacher: has no effect on {config.task}", f"it is for {fitting}")
    if config.prune and config.init_from:
        message = "train.prune, train.init_from: the network starts either from the one or from the other"
        raise InputError(message, "leave one of them out")
    if config.prune:
        _check_same_network(runs["train.prune"], config.model)
    return runs, tuple(notes)


def _check_same_network(run: OtherRun, model: ModelConfig) -> None:
    """The network that is trained follows from the pruned one: a dial that says something else would have no effect."""
    its, ours = run.train.model.model_dump(), model.model_dump()
    for dial, value in its.items():
        if ours[dial] != value:
            message = f"train.prune: train.model.{dial} of {run.folder} is {value!r}, not {ours[dial]!r}, as here"
            raise InputError(message, "set it to the same in both runs; what is left of it follows from prune_share")


def start(config: TrainConfig, data: DataResult, others: Mapping[str, OtherRun]) -> tuple[nn.Module, ModelConfig]:
    """The network that training begins with, on the CPU, and the config that builds its like.

    Raises:
        InputError: a network that cannot be built for this data, or not be pruned so far.
    """
    channels = CHANNELS[data.colour]

    def built(model: ModelConfig) -> nn.Module:
        return build(model, channels, data.size_wh, len(data.labels))

    if "train.prune" not in others:
        core = built(config.model)
        if config.model.whiten_start:
            whiten_start(core, first_pictures(data, config.seed))
        if INIT_FROM in others:
            warm_start(core, others[INIT_FROM])
        return core, config.model
    other = others["train.prune"]
    core = load_trained(other.data, other.train).core
    return pruned(core, config.model, built, first_pictures(data, config.seed), config.prune_share)


def first_pictures(data: DataResult, seed: int) -> Tensor:
    """Some training pictures, drawn by `seed`, as the network takes them: float32 (N, C, H, W)."""
    frames = load_frames(data, "train")
    picked = np.random.default_rng(seed).permutation(len(frames))[:SEEN]
    pre = Preprocess(data.colour, data.mean, data.std)
    batch: Tensor = pre(torch.from_numpy(np.stack([frames[index] for index in np.sort(picked)])))
    return batch


def load_teacher(config: TrainConfig, others: Mapping[str, OtherRun], fabric: Fabric) -> Teacher | None:
    """The teacher on the device, with the statistics of its own training; None where there is none."""
    if "train.teacher" not in others:
        return None
    other = others["train.teacher"]
    deployed = load_trained(other.data, other.train).requires_grad_(requires_grad=False).to(fabric.device)
    core = deployed.core.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(deployed.pre, core, fabric, config.teacher_weight, config.teacher_temperature)
