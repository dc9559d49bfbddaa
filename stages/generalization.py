"""Whether a network generalizes: the gap between train and val with its uncertainty, in one sentence with advice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

from stages.spec import Generalization, TrainConfig
from stages.statistics import wilson

PRACTICAL_GAP = 0.01  # a smaller gap has no practical weight even where a large val split resolves it (our judgement)
UNDERFIT_BELOW = 0.9  # of the training metric; a set whose labels allow no more is named as the other explanation
SHRINKABLE_WIDTH = 8  # a narrower network is not what overfits
FIXED_WIDTH = ("perceptron", "convnet")  # networks without that dial


def difference_interval(first: float, n_first: int, second: float, n_second: int) -> tuple[float, float]:
    """95 % interval of `first - second`, shares of two independent samples.

    Source: Newcombe 1998, Statistics in Medicine 17, pages 873-890, method 10 (square and add of Wilson intervals).
    """
    low_a, high_a = wilson(first * n_first, n_first)
    low_b, high_b = wilson(second * n_second, n_second)
    gap = first - second
    return gap - math.hypot(first - low_a, high_b - second), gap + math.hypot(high_a - first, second - low_b)


def judge(
    config: TrainConfig,
    metric: str,
    train: float,
    n_train: int,
    val: float,
    n_val: int,
    is_allowed: Callable[[TrainConfig], bool] = lambda _: True,
) -> Generalization:
    """The verdict on two shares: `train` of `n_train` training items, `val` of `n_val` items.

    Val also chose the epoch, so the gap is if anything larger; only test is free of choices. No advice is given that
    makes a training that is not allowed.
    """
    gap, interval = train - val, difference_interval(train, n_train, val, n_val)
    numbers = (
        f"{metric} {_percent(train)} on training (n = {n_train:,}) against {_percent(val)} on validation "
        f"(n = {n_val:,}), a gap of {100 * gap:+.2f} points (95 % interval {100 * interval[0]:+.2f} to "
        f"{100 * interval[1]:+.2f})"
    )
    if interval[0] > 0 and gap > PRACTICAL_GAP:
        kind, advice = "overfitting", against_overfitting(config, is_allowed)
        sentence = f"Overfitting: {numbers}. {_try(advice)}"
    elif train < UNDERFIT_BELOW:
        kind, advice = "underfitting", against_underfitting(config, is_allowed)
        sentence = f"Underfitting, or labels that allow no more: {numbers}. {_try(advice)}"
    elif gap > PRACTICAL_GAP:
        kind, advice = "undecided", ()
        sentence = f"Undecided: {numbers}; chance alone may do that. A larger data.val_fraction would tell."
    else:
        kind, advice = "fine", ()
        sentence = f"No sign of over- or underfitting: {numbers}."
    return Generalization(
        kind=kind, gap=gap, ci95=interval, n_train=n_train, n_val=n_val, advice=advice, sentence=sentence
    )


def against_overfitting(
    config: TrainConfig, is_allowed: Callable[[TrainConfig], bool] = lambda _: True
) -> tuple[str, ...]:
    """What narrows the gap and this training does not use yet, as `section.key=value`, the most promising first."""
    changes = config.augment
    found = []
    if not changes.shift:
        found.append("train.augment.shift=0.1")
    if not changes.cutout:
        found.append("train.augment.cutout=0.3")
    if not config.label_smoothing:
        found.append("train.label_smoothing=0.1")
    if not config.model.dropout:
        found.append("train.model.dropout=0.2")
    decay = config.weight_decay * 3 or (0.02 if config.optimizer == "adamw" else 5e-4)
    found.append(f"train.weight_decay={decay:.3g}")
    if config.model.name not in FIXED_WIDTH and config.model.width > SHRINKABLE_WIDTH:
        found.append(f"train.model.width={config.model.width // 2}")
    return _allowed(config, found, is_allowed)[:3]


def against_underfitting(
    config: TrainConfig, is_allowed: Callable[[TrainConfig], bool] = lambda _: True
) -> tuple[str, ...]:
    """What lets the network fit its own training images better, likewise."""
    found = []
    if config.model.dropout:
        found.append("train.model.dropout=0")
    if config.model.name not in FIXED_WIDTH:
        found.append(f"train.model.width={2 * config.model.width}")
    found.append(f"train.epochs={2 * config.epochs}")
    return _allowed(config, found, is_allowed)[:3]


def _allowed(config: TrainConfig, changes: Sequence[str], is_allowed: Callable[[TrainConfig], bool]) -> tuple[str, ...]:
    """Those of `train.a.b=value` that make an allowed training of this one."""
    found = []
    for change in changes:
        key, _, value = change.partition("=")
        values = config.model_dump(mode="json")
        *path, name = key.split(".")[1:]
        inner = values
        for part in path:
            inner = inner[part]
        inner[name] = json.loads(value)
        if is_allowed(TrainConfig.model_validate_json(json.dumps(values))):
            found.append(change)
    return tuple(found)


def _try(advice: tuple[str, ...]) -> str:
    return f"Try {' or '.join(f'--set {change}' for change in advice)}."


def _percent(share: float) -> str:
    """Two decimals; 100 % only for all, 0 % only for none."""
    return f"{100 * (min(max(share, 1e-4), 1 - 1e-4) if 0 < share < 1 else share):.2f} %"
