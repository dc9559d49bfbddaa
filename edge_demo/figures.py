"""What is counted over a run: totals and whole-run percentiles for its end, the last seconds for whoever watches."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from edge_demo.loop import Processed
from edge_demo.stats import Rate, Recent, WholeRun

STAGES = ("capture", "pre", "infer", "post")
RATE_FROM = 10  # frames


@dataclass(slots=True)
class Figures:
    """Counted by the inference thread, read by any; hold `lock` to read more than one value of the same moment."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    processed: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    newest: Processed | None = None
    rate: Rate = field(default_factory=Rate)
    ages: WholeRun = field(default_factory=WholeRun)
    stages: dict[str, WholeRun] = field(default_factory=lambda: {name: WholeRun() for name in STAGES})
    recent_ages: Recent = field(default_factory=Recent)
    recent_stages: dict[str, Recent] = field(default_factory=lambda: {name: Recent() for name in STAGES})

    def add(self, processed: Processed, now_s: float) -> None:
        """Count one processed frame."""
        with self.lock:
            self.first_s = self.first_s if self.processed else now_s
            self.last_s = now_s
            self.newest = processed
            self.processed += 1
            self.rate.tick(now_s)
            self.ages.add(processed.age_ms)
            self.recent_ages.add(processed.age_ms, now_s)
            for name, value in stage_ms(processed).items():
                self.stages[name].add(value)
                self.recent_stages[name].add(value, now_s)

    def fps(self) -> float | None:
        """Processed frames per second from the first result to the last; None below ten: the start would dominate."""
        span_s = self.last_s - self.first_s
        return (self.processed - 1) / span_s if self.processed >= RATE_FROM and span_s > 0 else None

    def interval_s(self) -> float | None:
        """Mean time from one result to the next; None below two."""
        return (self.last_s - self.first_s) / (self.processed - 1) if self.processed > 1 else None


def stage_ms(processed: Processed) -> dict[str, float]:
    """The ms one frame spent in each of `STAGES`."""
    prediction = processed.prediction
    values = (processed.item.captured.capture_ms, prediction.pre_ms, prediction.infer_ms, prediction.post_ms)
    return dict(zip(STAGES, values, strict=True))
