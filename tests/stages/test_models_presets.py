"""The networks of the CIFAR-10 presets: built as configured, one optimizer step runs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.config import load_config
from stages.models import build, macs, parameters
from stages.train.optim import make_optimizer

SIZE = (32, 32)


@pytest.mark.parametrize("preset", ["cifar10", "cifar10-gpu"])
def test_a_step_runs_and_helps(preset: str) -> None:
    """On the very pictures it is taken on, a small step lowers the loss."""
    config = load_config(preset=preset).train
    torch.manual_seed(0)
    model = build(config.model, 3, SIZE, 10).train()
    optimizer = make_optimizer(model, config.model_copy(update={"lr": config.lr / 10}))  # full steps wait for warm-up
    batch, targets = torch.randn(8, 3, 32, 32), torch.arange(8)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(model(batch)[0], targets, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(value) for value in losses)
    assert losses[1] < losses[0]


def test_the_cpu_network_is_worth_quantizing() -> None:
    """Hundreds of thousands of weights, so that in INT8 the file is theirs, not the graph's."""
    model = build(load_config(preset="cifar10").train.model, 3, SIZE, 10)
    stem, at_16 = 108 * 48, 9 * 48 * 48
    at_8, at_4 = 9 * (48 * 96 + 96 * 96), 9 * (96 * 192 + 192 * 192)
    assert macs(model, 3, SIZE) == 256 * (stem + at_16) + 64 * at_8 + 16 * at_4 + 1920
    norms = 2 * (48 + 96 + 192 + 192) + 48 + 96  # two of them pooled, without a scale
    assert parameters(model) == stem + at_16 + at_8 + at_4 + norms + 1930
