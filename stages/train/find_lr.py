"""The learning rate range test: raise the rate over a few hundred steps, and see where the loss falls and bursts.

Command: `pipeline find-lr`. Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks"
(arXiv:1506.01186), section 3.3.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict

from stages.spec import DataResult, OnStep, Step, TrainConfig, ignore
from stages.train.checkpoint import write_atomic
from stages.train.device import choose_accelerator, choose_precision
from stages.train.examples import Examples, check_config, load_examples
from stages.train.memory import largest_batch
from stages.train.sources import read_sources
from stages.train.stage import make_learner, torch_settings
from stages.train.step import train_step

LOWEST, HIGHEST = 1e-6, 10.0
STEPS = 200
SMOOTHING = 0.9  # share of the past in the running mean of the loss: it lags by ten steps, a factor of 2 in the rate
WINDOW = 20  # steps a fall is measured over: from one to the next it is mostly noise
BURST = 4.0  # times the lowest smoothed loss; as fastai's lr_find (Howard and Gugger 2020, arXiv:2002.04688)
MARGIN = 10.0  # the suggestion is this far below the lowest loss: there, noise and instability already balance (fastai)


class LrFinding(BaseModel):
    """What a range test has seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    suggested: float
    """A tenth of the rate at which the smoothed loss was lowest."""
    steepest: float
    """Where the smoothed loss fell fastest per factor of the rate."""
    lowest: float
    """Where the smoothed loss was lowest."""
    diverged: float | None
    """Where the loss first was not finite, or `BURST` times the lowest; None: it never burst."""
    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed, one per rate."""


def range_test(step: Callable[[float], float], lowest: float, highest: float, steps: int) -> LrFinding:
    """Takes training steps at geometrically rising rates until the loss bursts.

    Args:
        step: Learning rate -> loss of the batch before the update with it.
        lowest: First rate.
        highest: Last rate.
        steps: How many at most, at least 3.
    """
    lrs: list[float] = []
    losses: list[float] = []
    mean, best, diverged = 0.0, math.inf, None
    for index in range(steps):
        lr = lowest * (highest / lowest) ** (index / (steps - 1))
        loss = step(lr)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed = mean / (1 - SMOOTHING ** (index + 1))  # as Adam corrects its averages for their start at zero
        if not math.isfinite(smoothed) or smoothed > BURST * best:
            diverged = lr
            break
        lrs.append(lr)
        losses.append(smoothed)
        best = min(best, smoothed)
    at = losses.index(best)
    falls = [losses[i] - losses[i + WINDOW] for i in range(len(losses) - WINDOW)] or [0.0]
    return LrFinding(
        suggested=lrs[at] / MARGIN,
        steepest=lrs[min(falls.index(max(falls)) + WINDOW // 2, len(lrs) - 1)],
        lowest=lrs[at],
        diverged=diverged,
        lrs=tuple(lrs),
        losses=tuple(losses),
    )


def run(config: TrainConfig, data: DataResult, *, on_step: OnStep = ignore) -> LrFinding:
    """Range test of the training that `config` describes; `lr`, `schedule` and `epochs` play no part. Writes nothing.

    Raises:
        InputError: settings that do not fit data or hardware.
    """
    check_config(config, data)
    accelerator = choose_accelerator(config)
    with torch_settings(config):
        fabric = Fabric(accelerator=accelerator, devices=1, precision=choose_precision(config, accelerator))  # type: ignore[arg-type]
        learner = make_learner(config, data, fabric, read_sources(config, data)[0])
        examples = load_examples(data, "train", fabric.device, config.resident_mb)
        learner.model.train()
        generator = torch.Generator(fabric.device).manual_seed(config.seed)
        pass_size = config.batch_size or largest_batch(learner, examples)
        batches = _endless(examples, min(pass_size * config.accumulate, len(examples)), generator)

        def step(lr: float) -> float:
            picked = next(batches)
            frames, targets = examples.batch(picked)
            value = float(train_step(learner, frames, targets, lr, generator, pass_size)[0])
            on_step(Step("find-lr", values={"lr": lr, "loss": value}))
            return value

        return range_test(step, LOWEST, HIGHEST, STEPS)


def _endless(examples: Examples, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Indices of batches, epoch after epoch in fresh order."""
    while True:
        order = torch.randperm(len(examples), generator=generator, device=examples.frames.device)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def write_png(path: Path, found: LrFinding) -> None:
    """Smoothed loss over the rate, with the suggestion and where it burst."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(found.lrs, found.losses, color="tab:blue", linewidth=1.6)
    marks = [("suggested", found.suggested, "tab:green"), ("lowest loss", found.lowest, "tab:gray")]
    marks += [("diverged", found.diverged, "tab:red")] if found.diverged else []
    for label, lr, colour in marks:
        axes.axvline(lr, color=colour, linewidth=1.2, linestyle="--", label=f"{label}: {lr:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)")
    axes.set_ylim(*_loss_range(found.losses))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(path, image.getvalue())


def _loss_range(losses: Sequence[float]) -> tuple[float, float]:
    """All of it, but at most half more than the first: a burst leaves the picture at the top."""
    low, high = min(losses), min(max(losses), 1.5 * losses[0])
    margin = 0.05 * (high - low)
    return low - margin, high + margin
