"""Running figures of the live demo: percentiles over a window or a whole run, and rates. Pure: time is passed in."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence

import numpy as np

WINDOW_S = 5.0
KEPT = 10_000  # values a whole-run percentile is computed from; beyond it a uniform sample of all


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile (0..100, linear interpolation), or None with too few values to have one.

    A tail percentile needs at least one value beyond it: p95 from 20 values on, p99 from 100 on.
    """
    tail = min(q, 100.0 - q) / 100.0
    if not values or (q != 50.0 and len(values) * tail < 1.0 - 1e-9):
        return None
    return float(np.percentile(np.asarray(values, dtype=np.float64), q))


class Recent:
    """The values of the last `window_s` seconds."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._values: deque[tuple[float, float]] = deque()

    def add(self, value: float, now_s: float) -> None:
        """Note one value at a time that never runs backwards."""
        self._values.append((now_s, value))
        self._forget(now_s)

    def percentile(self, q: float, now_s: float) -> float | None:
        """As `percentile`, of the values that are not older than the window."""
        self._forget(now_s)
        return percentile([value for _, value in self._values], q)

    def _forget(self, now_s: float) -> None:
        while self._values and self._values[0][0] < now_s - self._window_s:
            self._values.popleft()


class Rate:
    """Events per second over the last `window_s` seconds."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._times: deque[float] = deque()

    def tick(self, now_s: float) -> None:
        """Note one event."""
        self._times.append(now_s)
        self._forget(now_s)

    def per_s(self, now_s: float) -> float | None:
        """Intervals counted over the time they took, up to now (so a stall shows); None below two events."""
        self._forget(now_s)
        if len(self._times) < 2:
            return None
        mean_s = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        # Waiting longer than one mean interval for the next event is itself evidence of a lower rate.
        late_s = max(0.0, now_s - self._times[-1] - mean_s)
        span_s = self._times[-1] - self._times[0] + late_s
        return (len(self._times) - 1) / span_s if span_s > 0 else None

    def _forget(self, now_s: float) -> None:
        while self._times and self._times[0] < now_s - self._window_s:
            self._times.popleft()


class WholeRun:
    """Percentiles over a run of any length in bounded memory: exact up to `kept` values, then a uniform sample.

    Source: Vitter, "Random Sampling with a Reservoir" (1985), algorithm R.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.n = 0
        self._kept = kept
        self._values: list[float] = []
        self._random = random.Random(0)

    def add(self, value: float) -> None:
        """Note one finite value."""
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        self.n += 1
        if len(self._values) < self._kept:
            self._values.append(value)
            return
        at = self._random.randrange(self.n)
        if at < self._kept:
            self._values[at] = value

    def percentile(self, q: float) -> float | None:
        """As `percentile`, over the whole run."""
        return percentile(self._values, q)
