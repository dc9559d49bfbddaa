"""The range test on a bowl whose limit is known, and on digits: what it suggests trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages import train
from stages.spec import DataResult, ModelConfig, TrainConfig
from stages.train import find_lr


@pytest.mark.parametrize("curvature", [0.5, 10.0, 300.0])
def test_divergence_on_a_bowl_is_near_two_over_the_curvature(curvature: float) -> None:
    """Gradient descent on L w^2 / 2 multiplies w by 1 - lr L: it grows from lr = 2 / L on.

    Noise in the gradient keeps w from vanishing before; as its part of the loss grows with the rate, too, the burst
    shows at 2 / L within a factor of 2, not exactly there.
    """
    rng = np.random.default_rng(0)
    weight = 3.0

    def step(lr: float) -> float:
        nonlocal weight
        loss = curvature * weight**2 / 2
        weight -= lr * curvature * (weight + rng.normal(0, 0.1))
        return loss

    found = find_lr.range_test(step, 2e-4 / curvature, 200 / curvature, 300)
    assert found.diverged is not None
    assert 0.5 <= found.diverged / (2 / curvature) <= 2
    assert found.suggested == pytest.approx(found.lowest / 10)
    assert found.suggested < 2 / curvature
    assert len(found.lrs) == len(found.losses) < 300


def test_a_loss_that_never_bursts_and_one_that_is_not_finite() -> None:
    flat = find_lr.range_test(lambda lr: 1.0, 1e-3, 1.0, 50)
    assert flat.diverged is None
    assert flat.losses == pytest.approx([1.0] * 50)
    broken = find_lr.range_test(lambda lr: float("nan") if lr > 0.1 else 1.0, 1e-3, 1.0, 50)
    assert broken.diverged == pytest.approx(0.1, rel=0.2)


def test_steepest_is_where_the_loss_falls() -> None:
    """A sigmoid over log10 of the rate falls fastest at its middle, here 1e-3; the running mean adds its lag."""
    found = find_lr.range_test(lambda lr: 1 / (1 + np.exp(4 * (np.log10(lr) + 3))), 1e-6, 1.0, 200)
    assert found.steepest == pytest.approx(1e-3, rel=1.5)


def test_what_it_suggests_trains_and_it_leaves_no_trace(small_data: DataResult, tmp_path: Path) -> None:
    config = TrainConfig(epochs=4, batch_size=48, model=ModelConfig(width=4), precision="32-true")
    state, files = torch.get_rng_state(), sorted(small_data.folder.iterdir())
    found = find_lr.run(config, small_data)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(small_data.folder.iterdir()) == files
    assert find_lr.run(config, small_data).losses == found.losses
    find_lr.write_png(tmp_path / "lr.png", found)
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    result = train.run(config.model_copy(update={"lr": found.suggested}), small_data, out_dir=tmp_path / "train")
    assert result.val > 0.85  # chance is 0.1; n = 200
