"""Whether a score means what it says: of all answers given with 80 %, are 80 % right?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from stages.statistics import Z_95

BINS = 15  # as in Guo et al. 2017, section 4
FROZEN = ConfigDict(extra="forbid", frozen=True)


class Bin(BaseModel):
    """The answers whose score lies in (low, high]."""

    model_config = FROZEN
    low: float
    high: float
    n: int
    score: float
    """Mean."""
    right: float
    """Share."""


class Reliability(BaseModel):
    """The reliability diagram, and how far it is from the diagonal."""

    model_config = FROZEN
    n: int
    ece: float
    """Expected calibration error: mean over the answers of |share right - mean score| of their bin. It is never
    negative, so a perfect network scores above 0 on few items, too."""
    excess: float
    """Mean score - share right: above 0 the network is too sure of itself."""
    excess_error: float
    """Half of the 95 % interval of `excess`."""
    bins: tuple[Bin, ...]
    """Those with answers in them."""
    sentence: str


def reliability(scores: NDArray[Any], right: NDArray[Any], bins: int = BINS) -> Reliability:
    """Bins of equal width over the scores.

    Source: Naeini, Cooper and Hauskrecht 2015 (AAAI) for the error; Guo et al. 2017 (arXiv:1706.04599), section 2, for
    bins that are open on the left.

    Args:
        scores: float (N,), of the answers, in 0..1; N > 0.
        right: bool (N,).
        bins: How many.
    """
    values, hits = scores.astype(np.float64), right.astype(np.float64)
    place = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    found = []
    for index in np.unique(place):
        inside = place == index
        mean, share = float(values[inside].mean()), float(hits[inside].mean())
        found.append(Bin(low=index / bins, high=(index + 1) / bins, n=int(inside.sum()), score=mean, right=share))
    n = len(values)
    ece = sum(part.n * abs(part.right - part.score) for part in found) / n
    excess, error = float((values - hits).mean()), Z_95 * float((values - hits).std()) / math.sqrt(n)
    return Reliability(
        n=n,
        ece=ece,
        excess=excess,
        excess_error=error,
        bins=tuple(found),
        sentence=_sentence(ece, excess, error, float(values.mean()), float(hits.mean()), n),
    )


def _sentence(ece: float, excess: float, error: float, score: float, right: float, n: int) -> str:
    if abs(excess) <= error:
        what = "On average its scores say what they are worth"
    elif excess > 0:
        what = "It is surer of itself than it should be: read a score as less than it says"
    else:
        what = "It is less sure of itself than it could be: a threshold on the score rejects more than it seems to"
    return (
        f"{what}. Mean score {100 * score:.1f} %, right {100 * right:.1f} %, difference {100 * excess:+.1f} points "
        f"(95 % interval {100 * (excess - error):+.1f} to {100 * (excess + error):+.1f}); expected calibration error "
        f"{100 * ece:.1f} points (n = {n:,}, bins of 1/{BINS})."
    )
