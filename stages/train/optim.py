"""Optimizers and learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edge_demo.errors import InputError
from stages.spec import TrainConfig
from stages.train.muon import Muon

Groups = list[dict[str, Any]]

WARM_UP = 0.25  # one-cycle: share of the steps until the peak
FLOOR = 0.01  # lowest share of the peak a schedule goes to
MOMENTUM_FREE = ("adagrad", "adadelta")

# `momentum` is beta1 of the Adam family. Adam's beta2 is its paper's (arXiv:1412.6980); AdamW's is 0.99, as the squared
# gradients of a short run change faster than 0.999 can follow.
OPTIMIZERS: dict[str, Callable[[Groups, TrainConfig], torch.optim.Optimizer]] = {
    "sgd": lambda groups, c: torch.optim.SGD(groups, lr=c.lr, momentum=c.momentum, nesterov=c.momentum > 0),
    "adam": lambda groups, c: torch.optim.Adam(groups, lr=c.lr, betas=(c.momentum, 0.999), fused=True),
    "adamw": lambda groups, c: torch.optim.AdamW(groups, lr=c.lr, betas=(c.momentum, 0.99), fused=True),
    "rmsprop": lambda groups, c: torch.optim.RMSprop(groups, lr=c.lr, momentum=c.momentum),
    "adagrad": lambda groups, c: torch.optim.Adagrad(groups, lr=c.lr),
    "adadelta": lambda groups, c: torch.optim.Adadelta(groups, lr=c.lr),
    # foreach: a fused AdamW would be handed gradients still multiplied by the fp16 loss scale
    "muon": lambda groups, c: Muon(_matrices_apart(groups), lr=c.lr, betas=(c.momentum, 0.99), foreach=True),
}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer, with weight decay on matrices and kernels only (not on biases and batch norm).

    `weight_decay` is decoupled for adamw and muon (Loshchilov and Hutter 2019, arXiv:1711.05101), an L2 penalty
    elsewhere. muon moves the hidden layers; the last one and all vectors go by AdamW.

    Raises:
        InputError: `momentum` set on an optimizer that has none, or 1 on one that averages with it; muon for a network
            without hidden layers.
    """
    if config.optimizer in MOMENTUM_FREE and config.momentum != TrainConfig.model_fields["momentum"].default:
        raise InputError(f"train.momentum: has no effect on {config.optimizer}", "leave it out")
    if config.optimizer in ("adam", "adamw", "muon") and config.momentum == 1:
        raise InputError(f"train.momentum: 1 is not below 1, as {config.optimizer} needs it", "0.9 is usual")
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: Groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return OPTIMIZERS[config.optimizer](groups, config)


def _matrices_apart(groups: Groups) -> Groups:
    """Splits the weights of the last layer off the others, which become Muon's."""
    decayed, others = groups
    *hidden, last = decayed["params"]
    if not hidden:
        hint = "with a single layer it would be adamw: set train.optimizer to that"
        raise InputError("train.optimizer: muon moves hidden layers, and this network has none", hint)
    return [{**decayed, "params": hidden, "matrix": True}, {**decayed, "params": [last]}, others]


def lr_factor(schedule: str, step: int, total: int) -> float:
    """Share of the peak learning rate in step 0 <= step < total.

    - constant: 1.
    - one-cycle: linear up over the first quarter, then linear down. Source: Smith and Topin 2019 (arXiv:1708.07120).
    - cosine: half a cosine from 1 down. Source: Loshchilov and Hutter 2017 (arXiv:1608.03983), without restarts.
    - step: a tenth from half of the steps on, a hundredth from three quarters on.
      Source: He et al. 2016 (arXiv:1512.03385), section 4.2.
    """
    if schedule == "constant":
        return 1.0
    done = step / total
    if schedule == "cosine":
        return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2
    if schedule == "step":
        return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    peak = max(1, round(WARM_UP * total))
    if step < peak:
        return (step + 1) / peak
    return FLOOR + (1 - FLOOR) * (total - step) / max(1, total - peak)
