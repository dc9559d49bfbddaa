"""Limits a run has to keep, checked on its own figures when it has ended: `--expect-p95`, `--expect-fps`."""

from __future__ import annotations

from dataclasses import dataclass

from edge_demo.errors import GateError, InputError
from edge_demo.events import StatsEvent


@dataclass(frozen=True, slots=True)
class Expectation:
    """`p95_ms` the age at most, `fps` the rate at least; None: not asked for."""

    p95_ms: float | None = None
    fps: float | None = None

    def check_options(self) -> None:
        """InputError when a limit is no positive number."""
        for name, value in (("--expect-p95", self.p95_ms), ("--expect-fps", self.fps)):
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} {value}: must be a number above 0", "leave it out to expect nothing")

    def check(self, stats: StatsEvent) -> str:
        """A sentence about what was met; empty when nothing was expected.

        The age is that of the frames in the window where there was one, else that of their results.

        Raises:
            GateError: a limit was missed, or there were too few frames to say.
        """
        window = stats.shown_p95_ms is not None
        age_ms = stats.shown_p95_ms if window else stats.age_p95_ms
        met: list[str] = []
        missed: list[str] = []
        if self.p95_ms is not None:
            what = "age of shown frames p95" if window else "age at the result p95"
            told = "too few frames to say (20 are needed)" if age_ms is None else f"{age_ms:.1f} ms"
            line = f"{what} {told}, expected at most {self.p95_ms:g} ms"
            (met if age_ms is not None and age_ms <= self.p95_ms else missed).append(line)
        if self.fps is not None:
            told = "too few frames to say (10 are needed)" if stats.fps is None else f"{stats.fps:.1f}"
            line = f"FPS {told}, expected at least {self.fps:g}"
            (met if stats.fps is not None and stats.fps >= self.fps else missed).append(line)
        if missed:
            raise GateError(f"not accepted: {'; '.join(missed)} (n = {stats.processed})", "see the summary line above")
        return f"accepted: {'; '.join(met)} (n = {stats.processed})" if met else ""
