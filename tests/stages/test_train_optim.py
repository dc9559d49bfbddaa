"""Steps of every optimizer, losses and schedules against hand-written numpy, torch and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import nn

from edge_demo.errors import InputError
from stages.spec import TrainConfig
from stages.tasks.classify import hits, loss
from stages.train.muon import orthogonal
from stages.train.optim import OPTIMIZERS, lr_factor, make_optimizer

LR, DECAY, STEPS = 0.1, 0.05, 3
RULES = sorted(OPTIMIZERS)
RNG = np.random.default_rng(0)
START = {"hidden": RNG.normal(size=(3, 4)), "bias": RNG.normal(size=3), "head": RNG.normal(size=(2, 3))}
GRADIENTS = [{name: RNG.normal(size=value.shape) for name, value in START.items()} for _ in range(STEPS)]

Array = np.ndarray


def sgd(w: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    """Nesterov as Sutskever et al. 2013 in torch's form; the buffer starts as the gradient."""
    s["v"] = g if t == 1 else 0.9 * s["v"] + g
    return w - LR * (g + 0.9 * s["v"])


def adam(w: Array, g: Array, s: dict[str, Any], t: int, beta2: float = 0.999) -> Array:
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * g**2
    return w - LR * (s["m"] / (1 - 0.9**t)) / (np.sqrt(s["v"] / (1 - beta2**t)) + 1e-8)


def rmsprop(w: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    s["v"] = 0.99 * s.get("v", 0) + 0.01 * g**2
    s["b"] = 0.9 * s.get("b", 0) + g / (np.sqrt(s["v"]) + 1e-8)
    return w - LR * s["b"]


def adagrad(w: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    s["v"] = s.get("v", 0) + g**2
    return w - LR * g / (np.sqrt(s["v"]) + 1e-10)


def adadelta(w: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g**2
    change = np.sqrt(s.get("d", 0) + 1e-6) / np.sqrt(s["v"] + 1e-6) * g
    s["d"] = 0.9 * s.get("d", 0) + 0.1 * change**2
    return w - LR * change


UPDATES = {"sgd": sgd, "adam": adam, "rmsprop": rmsprop, "adagrad": adagrad, "adadelta": adadelta}


def by_hand(optimizer: str, name: str) -> Array:
    """A weight after `STEPS` steps in float64; decay is an L2 penalty, with adamw it is taken off the weight itself."""
    weight, state = START[name], {}
    decay = 0.0 if name == "bias" else DECAY
    for t, gradients in enumerate(GRADIENTS, 1):
        if optimizer in ("adamw", "muon"):
            weight = adam(weight * (1 - LR * decay), gradients[name], state, t, beta2=0.99)
        else:
            weight = UPDATES[optimizer](weight, gradients[name] + decay * weight, state, t)
    return weight


class Net(nn.Module):
    """A hidden matrix, a vector and a last layer, with given weights and gradients."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in START.items():
            setattr(self, name, nn.Parameter(torch.tensor(value, dtype=torch.float32)))


def stepped(config: TrainConfig) -> Net:
    net = Net()
    optimizer = make_optimizer(net, config)
    for gradients in GRADIENTS:
        for name, value in gradients.items():
            getattr(net, name).grad = torch.tensor(value, dtype=torch.float32)
        optimizer.step()
    return net


@pytest.mark.parametrize("optimizer", RULES)
def test_three_steps_by_hand(optimizer: str) -> None:
    """With weight decay, on a matrix, a vector (never decayed) and the last layer."""
    net = stepped(TrainConfig(optimizer=optimizer, lr=LR, weight_decay=DECAY))
    names = [name for name in START if (optimizer, name) != ("muon", "hidden")]
    for name in names:
        assert getattr(net, name).detach().numpy() == pytest.approx(by_hand(optimizer, name), rel=1e-4, abs=1e-5)


def test_muon_is_torchs_muon_on_the_hidden_layers() -> None:
    net = stepped(TrainConfig(optimizer="muon", lr=LR, weight_decay=DECAY))
    theirs = nn.Parameter(torch.tensor(START["hidden"], dtype=torch.float32))
    optimizer = torch.optim.Muon([theirs], LR, DECAY, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for gradients in GRADIENTS:
        theirs.grad = torch.tensor(gradients["hidden"], dtype=torch.float32)
        optimizer.step()
    assert torch.equal(net.hidden, theirs)


@pytest.mark.parametrize("shape", [(3, 20), (20, 3), (8, 8)])
def test_muon_moves_all_directions_alike(shape: tuple[int, int]) -> None:
    """Of a matrix whose singular values differ by 10, all come near 1: numpy's decomposition says so."""
    matrix = np.random.default_rng(1).normal(size=shape)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    matrix = u @ np.diag(np.linspace(1, 10, len(s))) @ v
    values = np.linalg.svd(orthogonal(torch.tensor(matrix, dtype=torch.float32)).numpy(), compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_muon_takes_kernels_in_any_memory_layout() -> None:
    """A convolution of a channels-last network moves like the matrix of its rows."""
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 2, bias=False)
    rows = nn.Parameter(conv.weight.detach().flatten(1).clone())
    gradient = torch.randn_like(conv.weight)
    net = nn.Sequential(conv, head).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(net, TrainConfig(optimizer="muon", lr=LR, weight_decay=DECAY))
    theirs = torch.optim.Muon([rows], LR, DECAY, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    conv.weight.grad, rows.grad = gradient.to(memory_format=torch.channels_last), gradient.flatten(1)
    optimizer.step()
    theirs.step()
    assert torch.equal(conv.weight.detach().flatten(1), rows.detach())


def test_muon_without_hidden_layers_is_an_error() -> None:
    with pytest.raises(InputError, match="this network has none; with a single layer it would be adamw"):
        make_optimizer(nn.Linear(3, 2), TrainConfig(optimizer="muon"))


def test_every_name_of_the_config_has_an_optimizer() -> None:
    assert set(OPTIMIZERS) == set(TrainConfig.model_fields["optimizer"].annotation.__args__)


@pytest.mark.parametrize("name", ["adagrad", "adadelta"])
def test_momentum_without_effect_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match=f"train.momentum: has no effect on {name}"):
        make_optimizer(Net(), TrainConfig(optimizer=name, momentum=0.5))


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_momentum_of_one_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match=r"train\.momentum: 1 is not below 1"):
        make_optimizer(Net(), TrainConfig(optimizer=name, momentum=1.0))


def test_schedules_at_their_corners() -> None:
    assert [lr_factor("constant", step, 8) for step in range(8)] == [1.0] * 8
    one_cycle = [lr_factor("one-cycle", step, 8) for step in range(8)]
    down = [0.01 + 0.99 * (8 - step) / 6 for step in range(2, 8)]
    assert one_cycle == pytest.approx([0.5, 1.0, *down])
    cosine = [lr_factor("cosine", step, 8) for step in (0, 4)]
    assert cosine == pytest.approx([1.0, 0.01 + 0.99 / 2])
    assert [lr_factor("step", step, 8) for step in range(8)] == [1.0] * 4 + [0.1] * 2 + [0.01] * 2


@pytest.mark.parametrize("total", [8, 40])
def test_cosine_and_step_are_torchs(total: int) -> None:
    def torchs(make: Any) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler, found = make(optimizer), []
        for _ in range(total):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    schedulers = torch.optim.lr_scheduler
    cosine = torchs(lambda optimizer: schedulers.CosineAnnealingLR(optimizer, total, eta_min=0.01))
    stairs = torchs(lambda optimizer: schedulers.MultiStepLR(optimizer, [total // 2, total * 3 // 4]))
    assert [lr_factor("cosine", step, total) for step in range(total)] == pytest.approx(cosine)
    assert [lr_factor("step", step, total) for step in range(total)] == pytest.approx(stairs)


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


LOGITS = np.random.default_rng(2).normal(size=(6, 3))
CLASSES = np.array([0, 1, 2, 2, 1, 0])
MIXED = 0.7 * np.eye(3)[CLASSES] + 0.3 * np.eye(3)[CLASSES[::-1]]
WEIGHTS = np.array([0.5, 1.0, 2.0])


def losses_by_hand(kind: str, soft: np.ndarray, smoothing: float) -> np.ndarray:
    """(N,): of each picture, from the definitions."""
    soft = (1 - smoothing) * soft + smoothing / 3
    if kind == "binary":
        yes = 1 / (1 + np.exp(-LOGITS))
        return -(soft * np.log(yes) + (1 - soft) * np.log(1 - yes)).sum(1)
    return -(soft * np.log(np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True))).sum(1)


@pytest.mark.parametrize("kind", ["cross-entropy", "binary"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True], ids=["classes", "mixed"])
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_losses_by_hand(kind: Any, smoothing: float, mixed: bool, weighted: bool) -> None:
    soft = MIXED if mixed else np.eye(3)[CLASSES]
    each = losses_by_hand(kind, soft, smoothing) * (soft @ WEIGHTS if weighted else 1)
    targets = torch.tensor(MIXED, dtype=torch.float32) if mixed else torch.tensor(CLASSES)
    weights = torch.tensor(WEIGHTS, dtype=torch.float32) if weighted else None
    got = loss((torch.tensor(LOGITS),), targets, TrainConfig(loss=kind, label_smoothing=smoothing), weights)
    assert got.item() == pytest.approx(each.mean(), rel=1e-5)


def test_hits_count_the_heaviest_class() -> None:
    raw = (torch.tensor(LOGITS),)
    expected = (LOGITS.argmax(1) == CLASSES).sum()
    assert hits(raw, torch.tensor(CLASSES)).item() == expected
    assert hits(raw, torch.tensor(MIXED)).item() == expected
