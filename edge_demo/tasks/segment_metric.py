"""Intersection over union of class maps, from one confusion matrix summed over all pixels of a set; void left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOID = 255
RESAMPLES = 2000


def as_map(truth: Any) -> NDArray[np.uint8]:
    """A truth as uint8 (H, W): an array, nested lists, or what `to_runs` gives.

    Raises:
        ValueError: the runs do not fill the size, or it is no map of numbers in 0..255.
    """
    if isinstance(truth, dict):
        height, width = truth["size"]
        runs = np.asarray(truth["runs"], dtype=np.int64).reshape(-1, 2)
        if (runs[:, 1] < 1).any() or runs[:, 1].sum() != height * width:
            raise ValueError(f"runs of {runs[:, 1].sum()} pixels for a map of {height} x {width}")
        truth = np.repeat(runs[:, 0], runs[:, 1]).reshape(height, width)
    values = np.asarray(truth)
    if values.ndim != 2 or not ((values >= 0) & (values <= VOID)).all():
        raise ValueError(f"a class map is (H, W) of 0..255, not {list(values.shape)}")
    return values.astype(np.uint8)


def to_runs(classes: NDArray[Any]) -> dict[str, Any]:
    """A class map (H, W) as `{"size": [H, W], "runs": [[class, pixels], ...]}`, row after row: small as JSON."""
    flat = classes.reshape(-1)
    starts = np.flatnonzero(np.diff(flat.astype(np.int64), prepend=-1))
    lengths = np.diff(starts, append=len(flat))
    return {"size": list(classes.shape), "runs": np.stack([flat[starts], lengths], axis=1).astype(int).tolist()}


def confusion(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(256, 256) pixel counts, true class by found class; pixels whose truth is void are not counted.

    Raises:
        ValueError: the two have not the same size.
    """
    if found.shape != truth.shape:
        raise ValueError(f"a map of {list(found.shape)} for a truth of {list(truth.shape)}")
    known = truth != VOID
    codes = truth[known].astype(np.int64) * 256 + found[known]
    return np.bincount(codes, minlength=256 * 256).reshape(256, 256)


def total(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> NDArray[np.int64]:
    """The confusion matrices of (found, truth) pairs, summed."""
    matrix = np.zeros((256, 256), dtype=np.int64)
    for found, truth in pairs:
        matrix += confusion(found, truth)
    return matrix


def ious(matrix: NDArray[np.int64]) -> dict[int, float]:
    """Class -> IoU, of every class that some true pixel has."""
    both = np.diag(matrix)
    true, found = matrix.sum(axis=1), matrix.sum(axis=0)
    return {int(c): float(both[c] / (true[c] + found[c] - both[c])) for c in np.flatnonzero(true)}


def mean_iou(matrix: NDArray[np.int64]) -> float:
    """Mean over the classes of `ious`; 1.0 where every true pixel is void: nothing was wrong."""
    values = list(ious(matrix).values())
    return float(np.mean(values)) if values else 1.0


def mean_iou_interval(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> tuple[float, float]:
    """95 % interval of the mean IoU of a set of (found, truth) pairs: percentiles of its bootstrap over frames.

    The mean IoU is one of sums over all pixels, not a mean over frames; so it is computed anew for each resample.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    right, true, found = (
        np.array(part, dtype=np.float64) for part in zip(*(_sums(confusion(*pair)) for pair in pairs), strict=True)
    )
    count = len(true)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
    shared, wanted, answered = times @ right, times @ true, times @ found
    shown = wanted > 0
    iou = np.where(shown, shared / np.maximum(wanted + answered - shared, 1), 0.0).sum(axis=1)
    means = np.where(shown.any(axis=1), iou / np.maximum(shown.sum(axis=1), 1), 1.0)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _sums(matrix: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Per class: pixels that are right, true ones, found ones; all that an IoU takes of a confusion matrix."""
    return np.diag(matrix).copy(), matrix.sum(axis=1), matrix.sum(axis=0)
