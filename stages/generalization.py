"""Whether a network generalizes: the gap between train and val with its uncertainty, in one sentence with advice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stages.spec import Generalization, TrainConfig

PRACTICAL_GAP = 0.01  # a smaller gap has no practical weight even where a large val split resolves it (our judgement)
SHRINKABLE_WIDTH = 8  # a narrower network is not what overfits
FIXED_WIDTH = ("perceptron", "convnet")  # networks without that dial


@dataclass(frozen=True, slots=True)
class Sampled:
    """A metric of a sample of items."""

    value: float
    ci95: tuple[float, float]
    """The 95 % interval that suits the metric, e.g. Wilson's for a share of right answers."""
    n: int
    """Items."""


def difference_interval(first: Sampled, second: Sampled) -> tuple[float, float]:
    """95 % interval of `first - second`, of two independent samples: their own intervals, squared and added.

    Source: Newcombe 1998, Statistics in Medicine 17, pages 873-890, method 10, which does it with Wilson intervals of
    two shares; in general Zou and Donner 2008, Statistics in Medicine 27, pages 1693-1702 (MOVER).
    """
    (low_a, high_a), (low_b, high_b), gap = first.ci95, second.ci95, first.value - second.value
    below = math.hypot(max(0.0, first.value - low_a), max(0.0, high_b - second.value))
    above = math.hypot(max(0.0, high_a - first.value), max(0.0, second.value - low_b))
    return gap - below, gap + above


def judge(
    config: TrainConfig,
    metric: str,
    train: Sampled,
    val: Sampled,
    fits_from: float,
    is_allowed: Callable[[TrainConfig], bool] = lambda _: True,
) -> Generalization:
    """The verdict on a metric of training items and of val.

    `fits_from` is what a network that fits its training items reaches on them (`Task.fits_from`); a set whose labels
    allow no more is named as the other explanation. Val also chose the epoch, so the gap is if anything larger; only
    test is free of choices. No advice is given that makes a training that is not allowed.
    """
    gap, interval = train.value - val.value, difference_interval(train, val)
    numbers = (
        f"{metric} {_percent(train.value)} on training (n = {train.n:,}) against {_percent(val.value)} on "
        f"validation (n = {val.n:,}), a gap of {100 * gap:+.2f} points (95 % interval {100 * interval[0]:+.2f} to "
        f"{100 * interval[1]:+.2f})"
    )
    if interval[0] > 0 and gap > PRACTICAL_GAP:
        kind, advice = "overfitting", against_overfitting(config, is_allowed)
        sentence = f"Overfitting: {numbers}. {_try(advice)}"
    elif train.value < fits_from:
        kind, advice = "underfitting", against_underfitting(config, is_allowed)
        sentence = f"Underfitting, or labels that allow no more: {numbers}. {_try(advice)}"
    elif gap > PRACTICAL_GAP:
        kind, advice = "undecided", ()
        sentence = f"Undecided: {numbers}; chance alone may do that. A larger data.val_fraction would tell."
    else:
        kind, advice = "fine", ()
        sentence = f"No sign of over- or underfitting: {numbers}."
    return Generalization(
        kind=kind,
        gap=gap,
        ci95=interval,
        n_train=train.n,
        n_val=val.n,
        val_ci95=val.ci95,
        advice=advice,
        sentence=sentence,
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
