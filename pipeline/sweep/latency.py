"""The last stage of a trial with latency as an objective: the INT8 file on this host, by the bench stage's method.

The real bench stage measures a bundle, and a bundle needs the test metrics; a sweep must not look at test.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from edge_demo.errors import Error
from stages.bench import bench_target
from stages.spec import RESULT, BenchConfig, OnStep, QuantizeResult, ignore


class LatencyResult(BaseModel):
    """The fastest of the measured runtimes and threads, and the val metric of the same file in the same runtime."""

    model_config = RESULT
    folder: Path = Field(default=Path(), exclude=True)
    file: str = "bench.json"
    latency_ms: float
    """Median over single inferences, batch 1."""
    row: str
    """Id of the row in `bench.json`."""
    val: float
    status: str
    """How quiet the host was: clean | noisy | drifting | contended | throttled."""


def run(config: BenchConfig, quantize: QuantizeResult, *, out_dir: Path, on_step: OnStep = ignore) -> LatencyResult:
    """Measure the INT8 file on random pictures, the same for every trial.

    Raises:
        Error: nothing could be measured.
    """
    document = bench_target(
        quantize.folder / quantize.model, as_measured(config), json_file=out_dir / "bench.json", on_step=on_step
    )
    timed = [(row.latency_us.p50, row) for row in document.variants if row.status != "failed" and row.latency_us]
    if not timed:
        raise Error("the INT8 file could not be measured", "see bench.json of an `all` run of this config")
    p50_us, fastest = min(timed, key=lambda pair: pair[0])
    return LatencyResult(
        folder=out_dir,
        latency_ms=p50_us / 1e3,
        row=fastest.id,
        val=quantize.val_int8[fastest.runtime],
        status=fastest.status,
    )


def as_measured(config: BenchConfig) -> BenchConfig:
    """The run's own bench settings, for INT8 files alone and one inference after the other."""
    return config.model_copy(update={"precisions": ("int8",), "scenarios": ("single",)})
