"""One step of every optimizer worked by hand; schedules at their corners; the loss against scikit-learn and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import nn

from edge_demo.errors import InputError
from stages.spec import TrainConfig
from stages.tasks.classify import loss
from stages.train.optim import OPTIMIZERS, lr_factor, make_optimizer

LR, W, G = 0.1, 2.0, 0.5

# First update of a weight W with gradient G, no weight decay, momentum 0.9.
FIRST_STEP = {
    "sgd": LR * (G + 0.9 * G),  # Nesterov: gradient + momentum x buffer, and the buffer starts as the gradient
    "adam": LR,  # both averages are bias-corrected: G / sqrt(G^2)
    "adamw": LR,
    "rmsprop": LR * G / math.sqrt(0.01 * G * G),  # alpha 0.99
    "adagrad": LR,
    "adadelta": LR * math.sqrt(1e-6) / math.sqrt(0.1 * G * G + 1e-6) * G,  # rho 0.9, eps 1e-6
}


def step_once(config: TrainConfig, gradient: float) -> tuple[float, float]:
    """Weight (a matrix) and bias (a vector), both W at first, after one step."""
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, W)
    nn.init.constant_(layer.bias, W)
    optimizer = make_optimizer(layer, config)
    layer.weight.grad = torch.full_like(layer.weight, gradient)
    layer.bias.grad = torch.full_like(layer.bias, gradient)
    optimizer.step()
    return layer.weight.item(), layer.bias.item()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_first_step_by_hand(name: str) -> None:
    config = TrainConfig(optimizer=name, lr=LR, weight_decay=0.0)
    weight, bias = step_once(config, G)
    assert weight == pytest.approx(W - FIRST_STEP[name], rel=1e-5)
    assert bias == weight


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_weight_decay_spares_vectors(name: str) -> None:
    """Without gradient only decay moves a weight: by LR x decay x W (decoupled), or as a gradient of decay x W."""
    weight, bias = step_once(TrainConfig(optimizer=name, lr=LR, weight_decay=0.1), 0.0)
    assert bias == W
    assert weight < W
    if name == "adamw":
        assert weight == pytest.approx(W * (1 - LR * 0.1), rel=1e-6)
    if name == "sgd":
        assert weight == pytest.approx(W - LR * 1.9 * 0.1 * W, rel=1e-6)


def test_every_name_of_the_config_has_an_optimizer() -> None:
    assert set(OPTIMIZERS) == set(TrainConfig.model_fields["optimizer"].annotation.__args__)


@pytest.mark.parametrize("name", ["adagrad", "adadelta"])
def test_momentum_without_effect_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match=f"train.momentum: has no effect on {name}"):
        step_once(TrainConfig(optimizer=name, momentum=0.5), G)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_momentum_of_one_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match=r"train\.momentum: 1 is not below 1"):
        step_once(TrainConfig(optimizer=name, momentum=1.0), G)


def test_schedules_at_their_corners() -> None:
    assert [lr_factor("constant", step, 8) for step in range(8)] == [1.0] * 8
    one_cycle = [lr_factor("one-cycle", step, 8) for step in range(8)]
    down = [0.01 + 0.99 * (8 - step) / 6 for step in range(2, 8)]
    assert one_cycle == pytest.approx([0.5, 1.0, *down])
    cosine = [lr_factor("cosine", step, 8) for step in (0, 4)]
    assert cosine == pytest.approx([1.0, 0.01 + 0.99 / 2])
    assert [lr_factor("step", step, 8) for step in range(8)] == [1.0] * 4 + [0.1] * 2 + [0.01] * 2


@given(schedule=st.sampled_from(("constant", "one-cycle", "cosine", "step")), total=st.integers(1, 500))
def test_schedules_stay_in_range(schedule: str, total: int) -> None:
    factors = [lr_factor(schedule, step, total) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1
    peak = factors.index(max(factors))
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_loss_is_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(20, 5)), rng.integers(0, 5, 20)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    got = loss((torch.tensor(logits),), torch.tensor(targets), TrainConfig())
    assert got.item() == pytest.approx(log_loss(targets, shares, labels=range(5)), rel=1e-5)


def test_label_smoothing_mixes_with_the_uniform_distribution() -> None:
    logits, targets = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    log_shares = np.log(np.exp([2, 0, -1]) / np.exp([2, 0, -1]).sum())
    expected = -(0.9 * log_shares[0] + 0.1 * log_shares.mean())
    got = loss((logits,), targets, TrainConfig(label_smoothing=0.1))
    assert got.item() == pytest.approx(expected, rel=1e-6)
