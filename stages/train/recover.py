"""Undoing a NaN or infinite step: the last good state is kept in memory, and a worse one is replaced by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edge_demo.errors import Error
from stages.train.checkpoint import Progress
from stages.train.learner import Learner

GOOD_EVERY = 50
"""Steps between two good states. A number of steps, not of seconds: the outcome must not depend on speed."""
MOST = 3
"""Recoveries of one training; each halves the learning rate, so this many make an eighth of it."""


@dataclass(frozen=True, slots=True)
class Good:
    """Copies of weights, moments and loss scale, on the device."""

    weights: list[Tensor]
    moments: list[tuple[Tensor, dict[str, Any]]]
    scaler: dict[str, Any]


def remember(learner: Learner) -> Good:
    """The state as it is."""
    moments = [(param, _copies(state)) for param, state in learner.inner_optimizer.state.items()]
    scaler = dict(learner.fabric.strategy.precision.state_dict())
    return Good([tensor.clone() for tensor in _weights(learner)], moments, scaler)


def restore(learner: Learner, good: Good) -> None:
    """Puts a remembered state back, in place; it can be put back again."""
    with torch.no_grad():
        for tensor, copy in zip(_weights(learner), good.weights, strict=True):
            tensor.copy_(copy)
    learner.inner_optimizer.state.clear()
    for param, state in good.moments:
        learner.inner_optimizer.state[param] = _copies(state)
    learner.fabric.strategy.precision.load_state_dict(good.scaler)


def is_finite(learner: Learner) -> bool:
    """Whether every weight is a number; a loss shows a bad gradient only one step later."""
    norms = torch._foreach_norm([tensor for tensor in _weights(learner) if tensor.is_floating_point()])
    return bool(torch.stack(list(norms)).isfinite().all())


def recover(learner: Learner, good: Good, progress: Progress, step: int, what: str) -> str:
    """Goes back to the last good state with half the learning rate for all that follows.

    Args:
        learner: Gets the state.
        good: What to go back to.
        progress: Gets the count, the factor of the learning rate and the sentence.
        step: Number of the bad step, from 1.
        what: What was wrong with it.

    Returns:
        What happened, as a sentence.

    Raises:
        Error: it happened too often.
    """
    lr = learner.config.lr
    if progress.recoveries == MOST:
        message = f"training diverged: {what} in step {step}, after {MOST} recoveries"
        raise Error(message, f"set train.lr below {lr:g}, e.g. --set train.lr={lr / 10:.2g}")
    restore(learner, good)
    progress.recoveries += 1
    progress.lr_scale /= 2
    note = (
        f"{what} in step {step}: went back to the last good state, and on with {progress.lr_scale:g} of the learning "
        f"rate (recovery {progress.recoveries} of {MOST})"
    )
    progress.notes.append(note)
    return note


def _weights(learner: Learner) -> list[Tensor]:
    averaged = [] if learner.average is None else learner.average.network.state_dict().values()
    return [*learner.core.state_dict().values(), *averaged]


def _copies(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
