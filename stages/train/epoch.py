"""One pass over the training frames, and the measurement after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_demo.errors import Error
from stages.train.checkpoint import Progress
from stages.train.distributed import in_order, is_due, mine, rank, shard
from stages.train.examples import Examples
from stages.train.learner import Learner
from stages.train.memory import smaller_pass
from stages.train.optim import lr_factor
from stages.train.recover import GOOD_EVERY, is_finite, recover, remember
from stages.train.running import Running
from stages.train.step import seed_device, train_step
from stages.train.stream import Feed

__all__ = ["Learner", "Measured", "Watch", "evaluate", "steps_of", "train_epoch"]

REPORT_EVERY_S = 0.5
EVAL_BATCH = 500  # frames of a pass without gradients
FLIPS = 0  # in the place of an epoch, which count from 1: names the random numbers of `mirrored_in`
EVAL_PIXELS = 1 << 22  # of such a pass, which bounds its memory where frames are large


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told what, while an epoch runs."""

    batch: Callable[[int, dict[str, float]], None]
    """(steps done in this epoch, running loss, metric and images_per_s), about twice a second."""
    note: Callable[[str], None]
    """A sentence for people."""
    good: Callable[[], None]
    """Called when learner and progress are in a state to go on from, every `GOOD_EVERY` steps."""


def steps_of(learner: Learner, examples: Examples) -> int:
    """Optimizer steps of an epoch; an incomplete last batch is left out."""
    return len(examples) // (learner.config.batch_size * learner.config.accumulate)


def epoch_seeds(seed: int, epoch: int, steps: int) -> list[int]:
    """Seeds of an epoch's order, then two for each step (changes, dropout): no random state outlives a step."""
    return [int(n) for n in np.random.SeedSequence((seed, epoch)).generate_state(1 + 2 * steps, np.uint64)]


def mirrored_in(epoch: int, seed: int, count: int, device: torch.device) -> torch.Tensor:
    """Which pictures are mirrored in an epoch, bool (count,): in every other one, from the first or the second on.

    Half of them at any time, and each picture is seen both ways in any two epochs, where coins would show a quarter of
    them twice the same. Source: Jordan 2024, arXiv:2404.00498, section 3.6, "alternating flip".
    """
    coins = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, FLIPS)).generate_state(1, np.uint64)[0]))
    first = torch.rand(count, generator=coins) < 0.5
    return (first if epoch % 2 else ~first).to(device)


def train_epoch(
    learner: Learner, examples: Examples, progress: Progress, total_steps: int, watch: Watch
) -> dict[str, float]:
    """The epoch after `progress.epoch`, from `progress.index` on, over all whole batches in fresh random order.

    A step whose loss or weights are not finite is undone together with those since the last good state, and the epoch
    goes on behind it with half the learning rate. A step that runs out of memory is repeated in smaller passes.

    Returns:
        Means of loss and, where known, metric as trained (augmented, network changing), `lr` of the last step,
        `images_per_s`.

    Raises:
        Error: NaN or infinite too often, or out of memory with the smallest pass.
    """
    config, device = learner.config, examples.device
    steps, epoch = steps_of(learner, examples), progress.epoch + 1
    first_step, batch = (epoch - 1) * steps, config.batch_size * config.accumulate
    seeds = epoch_seeds(config.seed, epoch, steps)
    generator = torch.Generator(device).manual_seed(seeds[0])
    order = torch.randperm(len(examples), generator=generator, device=device)
    batches = Feed(examples, order, batch, shard)
    mirrored = mirrored_in(epoch, config.seed, len(examples), device)[order] if config.augment.flip_in_turn else None
    metric = learner.device_task.metric if learner.task.hits else ""
    running = Running(metric, **progress.sums)  # type: ignore[arg-type]
    good, lr, index, reported = remember(learner), 0.0, progress.index, time.perf_counter()
    learner.model.train()
    while index < steps:
        lr = config.lr * progress.lr_scale * lr_factor(config.schedule, first_step + index, total_steps)
        frames, targets = batches(index)
        generator.manual_seed(seeds[1 + 2 * index])
        seed_device(device, seeds[2 + 2 * index] + rank())
        try:
            turn = None if mirrored is None else mirrored[index * batch : (index + 1) * batch]
            loss, hits = train_step(learner, frames, targets, lr, generator, progress.pass_size, turn)
        except torch.OutOfMemoryError:
            watch.note(smaller_pass(progress, first_step + index + 1))
            continue
        if learner.average is not None:
            learner.average.update(learner.core, first_step + index + 1)
        running.add(index, batch, loss, hits)
        index += 1
        now, checked = time.perf_counter(), index % GOOD_EVERY == 0 or index == steps
        due = is_due(index, now - reported >= REPORT_EVERY_S)
        if not (checked or due):
            continue
        bad = _bad_step(learner, running, index, checked=checked)
        if bad is not None:
            index = bad[0] + 1
            watch.note(recover(learner, good, progress, first_step + index, bad[1]))
        elif checked and index < steps:
            good = remember(learner)
            progress.index, progress.sums = index, running.sums()
            watch.good()
        if due:
            watch.batch(index, running.means())
            reported = now
    if not running.items:
        raise Error(f"training diverged: no step of epoch {epoch} was finite", f"set train.lr below {config.lr:g}")
    progress.index, progress.sums = 0, {}
    return {**running.means(), "lr": lr}


def _bad_step(learner: Learner, running: Running, index: int, *, checked: bool) -> tuple[int, str] | None:
    """Index of the first bad step and what is wrong with it; the weights are looked at only if `checked`."""
    found = running.settle()
    if found is not None:
        return found[0], f"the loss is {found[1]}"
    if checked and not is_finite(learner):
        return index - 1, "a weight is NaN or infinite"
    return None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a network scores on a split."""

    loss: float
    """Mean over the items."""
    metric: float
    """The task's leading metric."""
    error: float
    """Standard error of the metric: the deviation of the items' qualities over the root of their number."""
    others: dict[str, float]
    """What else the task's score says."""
    results: list[Any]
    """The answer to each item, in the order of the split."""


def eval_batch(examples: Examples) -> int:
    """Frames of a pass without gradients."""
    height, width = examples.frames.shape[1:3]
    return max(1, min(EVAL_BATCH, EVAL_PIXELS // (height * width)))


def evaluate(learner: Learner, examples: Examples) -> Measured:
    """Measures in evaluation mode and float32, without augmentation."""
    network, size = learner.shipped.eval(), eval_batch(examples)
    parts: list[tuple[float, list[Any]]] = []
    with torch.inference_mode():
        for start in mine(range(0, len(examples), size)):
            frames, targets = examples.batch(slice(start, start + size))
            raw = network(learner.batch(frames))
            loss = float(learner.task.loss(raw, targets, learner.config, learner.class_weights))
            parts.append((loss * len(targets), learner.results(raw)))
    losses, answers = zip(*in_order(parts), strict=True)
    results = [result for answer in answers for result in answer]
    others = learner.device_task.score(results, examples.truth)
    metric = others.pop(learner.device_task.metric)
    error = float(learner.device_task.correct(results, examples.truth).std()) / len(examples) ** 0.5
    return Measured(sum(losses) / len(examples), metric, error, others, results)
