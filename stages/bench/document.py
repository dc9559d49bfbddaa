"""`pipeline.bench/1`: what `bench.json` holds. Numbers are numbers, units are in the names, raw rounds are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.bench.system import System

SCHEMA = "pipeline.bench/1"
FROZEN = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

Interval = tuple[float, float]
Estimate = tuple[float, float, float]
"""Point estimate, lower and upper end of the 95 % interval."""


class Model(BaseModel):
    """One measured file."""

    model_config = FROZEN
    id: str
    file: str
    """Its name, never a path of a machine."""
    sha256: str
    bytes: int
    precision: str
    """`int8` when the graph holds quantized operators, else `fp32`."""


class Cold(BaseModel):
    """A fresh process: medians over `n` launches, wall time except `cpu_ms`."""

    model_config = FROZEN
    n: int
    import_ms: float
    """Importing the runtime's library."""
    load_ms: float
    """Reading, compiling and binding the model."""
    first_ms: float
    """The first inference."""
    cpu_ms: float
    """CPU time of all three."""


class Memory(BaseModel):
    """Resident bytes of the worker, largest over its launches."""

    model_config = FROZEN
    rss_base: int | None
    """Before the runtime's library was imported."""
    rss_ready: int | None
    """After the first inference."""
    vmhwm: int | None
    """The high-water mark after all rounds: what the device must have."""


class Warmup(BaseModel):
    """How long until the times settled: longest over the launches."""

    model_config = FROZEN
    s: float
    converged: bool


class Round(BaseModel):
    """One recorded slice."""

    model_config = FROZEN
    launch: int
    round: int
    pos: int
    """Place in this round's random order."""
    n: int
    wall_s: float
    cpu_s: float
    run_delay_s: float | None
    nivcsw: int
    """Involuntary context switches."""
    p50_us: float
    freq_mhz: float | None
    interference: float | None


class Latency(BaseModel):
    """Pooled over every recorded inference, slow ones included; a percentile is null when `n` is too small for it."""

    model_config = FROZEN
    n: int
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    min: float
    max: float


class Fps(BaseModel):
    """Frames per second, one inference after the other."""

    model_config = FROZEN
    median: float | None
    """Over clean slices only; null with `reason` when there are fewer than five."""
    ci95: Interval | None
    clean_slices: int
    slices: int
    uncontended_est: float | None
    """One second over the CPU time per inference: what one thread would reach on a quiet host. An estimate."""
    reason: str = ""


class Ratio(BaseModel):
    """Speed against the baseline in the same rounds; > 1 is faster."""

    model_config = FROZEN
    baseline: str
    metric: Literal["wall", "cpu"]
    """Which ratio is the headline: wall time on a quiet host, CPU time on a busy one."""
    wall: Estimate
    p50: Estimate
    cpu: Estimate
    verdict: Literal["faster", "slower", "same", "inconclusive"]

    @property
    def headline(self) -> Estimate:
        """The ratio to quote."""
        return self.wall if self.metric == "wall" else self.cpu


class Accuracy(BaseModel):
    """The task's leading metric on the bundle's sample, run through the very object that was timed."""

    model_config = FROZEN
    metric: str
    value: float
    n: int
    of: int
    """Size of the test split the sample was drawn from."""
    ci95: Interval
    metrics: dict[str, float]
    vs_fp32: float | None
    """This value minus that of the FP32 row it is judged against."""


class Difference(BaseModel):
    """Raw outputs against the baseline's, on the same inputs."""

    model_config = FROZEN
    baseline: str
    n: int
    agreement: float | None
    """Share of inputs with the same decoded answer; null without a task."""
    max_abs: float | None
    cosine: float | None
    """Smallest over outputs. Null, like `max_abs`, when an output is not finite or has another shape."""


class VariantRow(BaseModel):
    """One runtime x precision x threads."""

    model_config = FROZEN
    id: str
    runtime: str
    precision: str
    threads: int
    model: str
    device: str = "CPU"
    scenario: Literal["single"] = "single"
    call_path: str = "bound_infer"
    status: Literal["clean", "noisy", "contended", "failed"]
    reason: str = ""
    """Why it failed."""
    config_requested: dict[str, Any]
    config_effective: dict[str, Any] = {}
    executed: dict[str, int] = {}
    """Operators that really ran, `type:precision` -> how many; empty when the runtime could not tell."""
    cold: Cold | None = None
    memory: Memory | None = None
    warmup: Warmup | None = None
    rounds: tuple[Round, ...] = ()
    latency_us: Latency | None = None
    fps: Fps | None = None
    cpu_us_per_inf: float | None = None
    interference: float | None = None
    ratio: Ratio | None = None
    accuracy: Accuracy | None = None
    difference: Difference | None = None


class SameModel(BaseModel):
    """A/A: the baseline against its own duplicate, which no honest method may call different."""

    model_config = FROZEN
    metric: Literal["wall", "cpu"]
    median: float | None
    """Null, like the intervals, when the duplicate could not be measured."""
    ci95: Interval | None
    noise_floor: float
    """Relative effect below which this run calls two variants the same."""
    wall: Estimate | None
    p50: Estimate | None
    cpu: Estimate | None


class Recommendation(BaseModel):
    """What to deploy here, in one sentence."""

    model_config = FROZEN
    variant: str
    reason: str


class BenchDocument(BaseModel):
    """One benchmark of one target on one host."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)
    schema_: Annotated[Literal["pipeline.bench/1"], Field(alias="schema")] = "pipeline.bench/1"
    created: str
    """RFC 3339, UTC."""
    command: tuple[str, ...]
    target: str
    seed: int
    preset: str
    method: dict[str, float]
    """Launches, rounds, seconds per slice, ..."""
    seconds: float
    status: Literal["clean", "noisy", "contended"]
    interference: float | None
    warnings: tuple[str, ...]
    system: System
    software: dict[str, str]
    models: tuple[Model, ...]
    baseline: str
    variants: tuple[VariantRow, ...]
    aa: SameModel
    recommended: Recommendation

    def row(self, variant_id: str) -> VariantRow:
        """The row of that id; KeyError when there is none."""
        for row in self.variants:
            if row.id == variant_id:
                return row
        raise KeyError(variant_id)


def to_json(document: BenchDocument) -> str:
    """`bench.json`: indented JSON with a final newline."""
    return document.model_dump_json(by_alias=True, indent=2) + "\n"
