"""How many pictures fit into one pass: found before training, or learnt the hard way."""

from __future__ import annotations

import torch

from edge_demo.errors import Error, InputError
from stages.train.checkpoint import Progress
from stages.train.distributed import world
from stages.train.examples import Examples
from stages.train.learner import Learner
from stages.train.recover import remember, restore
from stages.train.step import train_step

FEWEST = 2
"""Pictures of a pass: batch norm takes no mean of one."""
FEWEST_STEPS = 16
"""Of an epoch with `batch_size = 0`; larger batches would leave too few steps to learn from."""


def smaller_pass(progress: Progress, step: int) -> str:
    """Halves the pass after a step that ran out of memory; the batch of an optimizer step stays.

    Returns:
        What happened, as a sentence.

    Raises:
        Error: a pass of two pictures, the fewest that batch norm takes, does not fit; or several processes train.
    """
    if world() > 1:  # the others are in the middle of this step
        raise Error(f"out of memory in step {step}", "set train.batch_size lower, and train.accumulate higher")
    if progress.pass_size <= FEWEST:
        raise Error(f"out of memory in step {step} with two pictures a pass", "set train.model.width lower")
    before, progress.pass_size = progress.pass_size, -(-progress.pass_size // 2)
    note = f"out of memory in step {step}: goes on with {progress.pass_size} in place of {before} pictures a pass"
    progress.notes.append(note)
    return note


def largest_batch(learner: Learner, examples: Examples) -> int:
    """The largest power of two that a whole step fits into the device's memory with; the learner is left as it was.

    All passes of a step together are at most a sixteenth of the pictures, so that an epoch has steps to learn in.

    Raises:
        InputError: on a CPU, whose memory has no such end.
        Error: not even two pictures fit.
    """
    device = examples.device
    if device.type == "cpu":
        raise InputError("train.batch_size: 0 asks for what fits into a GPU, and this runs on a CPU", "64 is usual")
    good, fits, size = remember(learner), 0, FEWEST
    generator = torch.Generator(device).manual_seed(0)
    learner.model.train()
    while size <= max(FEWEST, len(examples) // (FEWEST_STEPS * learner.config.accumulate)):
        if not _try(learner, examples, size, generator):
            break
        fits, size = size, 2 * size
    restore(learner, good)
    learner.optimizer.zero_grad(set_to_none=True)
    if not fits:
        raise Error("out of memory with two pictures", "set train.model.width lower")
    return fits


def _try(learner: Learner, examples: Examples, size: int, generator: torch.Generator) -> bool:
    try:
        train_step(learner, *examples.batch(slice(size)), 0.0, generator, size)
    except torch.OutOfMemoryError:
        return False
    return True
