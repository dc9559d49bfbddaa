"""The gap between train and val against Newcombe's own tables and a simulation; what is advised is a real option."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load_config
from stages.generalization import Sampled, against_overfitting, against_underfitting, difference_interval, judge
from stages.spec import AugmentConfig, ModelConfig, TrainConfig
from stages.statistics import wilson


def share(value: float, n: int) -> Sampled:
    """A share of right answers with its Wilson interval."""
    return Sampled(value, wilson(value * n, n), n)


@pytest.mark.parametrize(
    ("first", "n_first", "second", "n_second", "want"),
    [
        # Newcombe 1998, table II, method 10
        (56, 70, 48, 80, (0.0524, 0.3339)),
        (9, 10, 3, 10, (0.1705, 0.8090)),
        (10, 10, 0, 20, (0.6791, 1.0)),
    ],
)
def test_interval_of_a_difference_as_published(
    first: int, n_first: int, second: int, n_second: int, want: tuple[float, float]
) -> None:
    got = difference_interval(share(first / n_first, n_first), share(second / n_second, n_second))
    assert got == pytest.approx(want, abs=6e-5)


def test_interval_covers_the_truth() -> None:
    """95 % of 4,000 seeded draws, give or take four standard errors of that share (1.4 points)."""
    rng = np.random.default_rng(0)
    a, b = rng.binomial(2000, 0.99, 4000) / 2000, rng.binomial(300, 0.97, 4000) / 300
    hits = [
        low <= 0.02 <= high
        for low, high in (difference_interval(share(x, 2000), share(y, 300)) for x, y in zip(a, b, strict=True))
    ]
    assert np.mean(hits) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000) + 0.01)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 10_000), st.integers(2, 10_000))
def test_interval_is_antisymmetric_and_holds_the_gap(a: float, b: float, n: int, m: int) -> None:
    low, high = difference_interval(share(a, n), share(b, m))
    assert low - 1e-9 <= a - b <= high + 1e-9
    assert difference_interval(share(b, m), share(a, n)) == pytest.approx((-high, -low))


@pytest.mark.parametrize(
    ("train", "val", "n_val", "kind"),
    [
        (0.999, 0.95, 500, "overfitting"),
        (0.93, 0.90, 50, "undecided"),
        (0.93, 0.90, 5000, "overfitting"),
        (0.999, 0.991, 50_000, "fine"),  # resolved, but below a point
        (0.62, 0.61, 500, "underfitting"),
        (0.991, 0.993, 500, "fine"),
    ],
)
def test_verdicts(train: float, val: float, n_val: int, kind: str) -> None:
    found = judge(TrainConfig(), "accuracy", share(train, 4500), share(val, n_val), 0.9)
    assert found.kind == kind
    assert f"{100 * train:.2f} % on training (n = 4,500)" in found.sentence
    assert f"{100 * val:.2f} % on validation (n = {n_val:,})" in found.sentence
    assert all(f"--set {advice}" in found.sentence for advice in found.advice)
    assert bool(found.advice) == (kind in ("overfitting", "underfitting"))


@pytest.mark.parametrize("name", ["perceptron", "mlp", "convnet", "fast", "resnet", "mobile"])
@pytest.mark.parametrize("plain", [True, False])
def test_advice_is_a_config_that_loads_and_changes_something(name: str, plain: bool) -> None:
    augment = AugmentConfig() if plain else AugmentConfig(shift=0.1, cutout=0.2)
    model = ModelConfig(name=name) if plain else ModelConfig(name=name, dropout=0.2)
    config = TrainConfig(model=model, augment=augment, label_smoothing=0.0 if plain else 0.1)
    for advice in (*against_overfitting(config), *against_underfitting(config)):
        key, _, value = advice.partition("=")
        loaded = load_config(None, None, [advice]).model_dump()
        was = config.model_dump()
        for part in key.split(".")[1:]:
            was = was[part]
        for part in key.split("."):
            loaded = loaded[part]
        assert loaded == pytest.approx(float(value))
        assert loaded != was, advice


def test_advice_that_is_not_allowed_is_not_given() -> None:
    def no_smoothing(config: TrainConfig) -> bool:
        return not config.label_smoothing

    config = TrainConfig()
    assert "train.label_smoothing=0.1" in judge(config, "accuracy", share(0.99, 1000), share(0.9, 1000), 0.9).advice
    found = judge(config, "accuracy", share(0.99, 1000), share(0.9, 1000), 0.9, no_smoothing)
    assert "train.label_smoothing=0.1" not in found.advice
    assert len(found.advice) == 3
    assert "label_smoothing" not in found.sentence


def test_a_metric_that_is_no_share_brings_its_own_interval_and_bar() -> None:
    """MAP of few frames: 0.70 and 0.62 differ by less than their intervals allow, however many boxes there were."""
    train, val = Sampled(0.70, (0.66, 0.74), 200), Sampled(0.62, (0.52, 0.72), 40)
    found = judge(TrainConfig(), "map50_95", train, val, 0.5)
    assert found.ci95 == pytest.approx((0.08 - math.hypot(0.04, 0.10), 0.08 + math.hypot(0.04, 0.10)))
    assert found.kind == "undecided"
    assert found.val_ci95 == (0.52, 0.72)
    assert judge(TrainConfig(), "map50_95", train, val, 0.75).kind == "underfitting"
