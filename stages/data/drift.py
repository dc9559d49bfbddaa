"""Do the splits look alike? Per-picture quantities of train against each other split, as standardized differences.

A model is chosen on val and judged on test; when those are darker, flatter or larger than what it learned from, its
numbers say less about training than about the difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel

from edge_demo.image import Frame, load_cv2
from stages.spec import RESULT, Split

THRESHOLD = 0.2
"""Standard deviations. Source: J. Cohen, Statistical Power Analysis (1988): from 0.2 on a difference is "small"."""
NORMAL_95 = 1.96
# Contrast is the RMS contrast. Source: E. Peli, Contrast in complex images, JOSA A 7 (1990).
QUANTITIES = {
    "brightness": "mean luma (BT.601) of a picture, 0..1",
    "contrast": "standard deviation of its luma, 0..1",
    "size": "log2 of its number of pixels",
    "aspect": "log2 of width over height",
}


class Drift(BaseModel):
    """One quantity of one split against train."""

    model_config = RESULT
    quantity: str
    """A key of `QUANTITIES`."""
    split: Split
    train_mean: float
    split_mean: float
    difference: float | None
    """Standardized: (split - train) / sqrt((sd_train^2 + sd_split^2) / 2); null when they differ but neither varies.

    Source: P. C. Austin, Balance diagnostics for comparing the distribution of baseline covariates between treatment
    groups in propensity-score matched samples, Statistics in Medicine 28 (2009).
    """
    margin95: float | None
    """Half of the 95 % interval of `difference`: what chance alone does to splits of these sizes.

    Source: L. V. Hedges and I. Olkin, Statistical Methods for Meta-Analysis (1985), chapter 5: large-sample variance.
    """
    n: tuple[int, int]
    """Pictures of train and of the split."""
    flagged: bool
    """Beyond `THRESHOLD` and beyond chance."""


@dataclass(slots=True)
class Looks:
    """The quantities of every readable picture of a split, in order."""

    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in QUANTITIES})

    def add(self, picture: Frame) -> None:
        """Measures one picture, uint8 (H, W, 1 or 3)."""
        height, width, channels = picture.shape
        cv2 = load_cv2()
        luma = picture if channels == 1 else cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        mean, deviation = cv2.meanStdDev(luma)
        self.values["brightness"].append(mean.item() / 255)
        self.values["contrast"].append(deviation.item() / 255)
        self.values["size"].append(math.log2(width * height))
        self.values["aspect"].append(math.log2(width / height))


def drifts(looks: dict[Split, Looks]) -> tuple[Drift, ...]:
    """Every quantity of val and test against train; nothing where a split has fewer than two pictures."""
    return tuple(
        _drift(name, split, looks["train"].values[name], looks[split].values[name])
        for split in ("val", "test")
        for name in QUANTITIES
        if min(len(looks["train"].values[name]), len(looks[split].values[name])) > 1
    )


def _drift(quantity: str, split: Split, train: list[float], other: list[float]) -> Drift:
    mean_train, mean_other = float(np.mean(train)), float(np.mean(other))
    spread = math.sqrt((np.var(train, ddof=1) + np.var(other, ddof=1)) / 2)
    gap, difference, margin = mean_other - mean_train, None, None
    n, m = len(train), len(other)
    # Asked of the values themselves: rounding gives equal numbers a tiny variance and two equal means a tiny gap.
    varies = len({*train}) > 1 or len({*other}) > 1
    if varies or train[0] == other[0]:
        difference = gap / spread if varies else 0.0
        margin = NORMAL_95 * math.sqrt((n + m) / (n * m) + difference**2 / (2 * (n + m)))
    return Drift(
        quantity=quantity,
        split=split,
        train_mean=mean_train,
        split_mean=mean_other,
        difference=difference,
        margin95=margin,
        n=(n, m),
        flagged=difference is None or margin is None or abs(difference) > max(THRESHOLD, margin),
    )


def sentence(drift: Drift) -> str:
    """What a flagged drift means, in plain words."""
    more, less = {
        "brightness": ("brighter", "darker"),
        "contrast": ("richer in contrast", "flatter"),
        "size": ("larger", "smaller"),
        "aspect": ("wider for their height", "narrower for their height"),
    }[drift.quantity]
    word = more if drift.split_mean > drift.train_mean else less
    amount = (
        "though neither split varies"
        if drift.difference is None or drift.margin95 is None
        else f"by {abs(drift.difference):.2f} +- {drift.margin95:.2f} standard deviations (limit {THRESHOLD})"
    )
    return (
        f"Pictures of {drift.split} are {word} than those of train, {amount}: {drift.quantity} {drift.split_mean:.3f} "
        f"against {drift.train_mean:.3f} ({QUANTITIES[drift.quantity]}; n = {drift.n[1]:,} and {drift.n[0]:,})."
    )
