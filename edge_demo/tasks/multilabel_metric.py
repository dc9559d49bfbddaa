"""How well scores rank pictures, label by label: average precision, and its mean with an interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 500

Scores = NDArray[np.float32]
Tags = NDArray[np.bool_]


def average_precision(scores: NDArray[np.float32], tags: NDArray[np.bool_]) -> float | None:
    """Area under precision over recall as a sum of steps, (N,) scores and (N,) truths; None without a positive.

    Pictures of one score stand or fall together. Source: Pedregosa et al. 2011, scikit-learn,
    `average_precision_score`: no interpolation, which would be too optimistic.
    """
    positives = int(tags.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(tags[order])
    last = np.append(ranked[1:] != ranked[:-1], True)  # of each group of equal scores
    precision = hits[last] / (np.flatnonzero(last) + 1)
    steps = np.diff(hits[last], prepend=0) / positives
    return float((precision * steps).sum())


def average_precisions(scores: Scores, tags: Tags) -> dict[int, float]:
    """Label's index -> average precision, of every label that some picture has; both (N, num_labels)."""
    found = {label: average_precision(scores[:, label], tags[:, label]) for label in range(tags.shape[1])}
    return {label: value for label, value in found.items() if value is not None}


def mean_ap(scores: Scores, tags: Tags) -> float:
    """Mean over the labels of `average_precisions`; 0.0 where no picture has any."""
    values = list(average_precisions(scores, tags).values())
    return float(np.mean(values)) if values else 0.0


def mean_ap_interval(scores: Scores, tags: Tags) -> tuple[float, float]:
    """95 % interval of `mean_ap`: percentiles of its bootstrap over pictures, seeded.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    rng, count = np.random.default_rng(0), len(scores)
    drawn = (rng.integers(0, count, count) for _ in range(RESAMPLES))
    means = [mean_ap(scores[picked], tags[picked]) for picked in drawn]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
