"""`pipeline.bench/1`: what `bench.json` holds. Numbers are numbers, units are in the names, raw rounds are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.bench.system import System
from stages.spec import Scenario

SCHEMA = "pipeline.bench/1"
FROZEN = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

HostStatus = Literal["clean", "noisy", "drifting", "contended", "throttled"]
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
    """`int8` when the graph holds quantized operators, `fp16` when most float weights are float16, else `fp32`."""
    opset: int | None = None


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
    load_ms_launches: tuple[float, ...] = ()
    """`load_ms` of every launch."""


class Memory(BaseModel):
    """Resident bytes of the worker, largest over its launches."""

    model_config = FROZEN
    rss_base: int | None
    """Before the runtime's library was imported."""
    rss_ready: int | None
    """After the first inference."""
    vmhwm: int | None
    """The high-water mark after all rounds: what the device must have."""
    vmhwm_launches: tuple[int, ...] = ()
    """`vmhwm` of every launch."""


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
    p50_us: float | None
    """Null where several inferences run at a time."""
    freq_mhz: float | None
    interference: float | None
    temp_c: float | None = None
    throttled: int | None = None
    """How often a core was slowed down for heat in this slice."""
    energy_j: float | None = None
    """Of the whole host, never only of this process; null without a readable counter."""
    frames: int | None = None
    """`camera`: frames that were due."""
    missed: int | None = None
    """`camera`: frames dropped, or done later than the next one was due."""
    mean_us: float | None = None
    """`camera`: mean time from due to done."""
    stage_us: dict[str, float] | None = None
    """`e2e`: mean time in each stage."""


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
    p99_9: float | None = None
    p90_early_stop: float | None = None
    """The value that is above p90 with 99 % confidence; null below 64 inferences."""
    hist: tuple[tuple[float, int], ...] = ()
    """(upper edge in microseconds, how many): bins 5 % wide, empty ones left out."""


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


class Camera(BaseModel):
    """Frames that come at a fixed rate; latencies are from the moment a frame was due."""

    model_config = FROZEN
    fps_target: float
    frames: int
    missed: int
    miss_rate: float
    ci95: Interval
    """Wilson, of the miss rate."""
    cpu_percent: float
    """Of one CPU."""


class Sustain(BaseModel):
    """The same load for minutes: the beginning against the end."""

    model_config = FROZEN
    minutes: float
    window_s: float
    """Length of the beginning and of the end that are compared."""
    wall: Estimate
    """Speed at the end over speed at the beginning; < 1: it slowed down."""
    cpu: Estimate
    temp_c: tuple[float | None, float | None]
    freq_mhz: tuple[float | None, float | None]


class Energy(BaseModel):
    """Joules per inference by a counter or sensor of the host; never estimated."""

    model_config = FROZEN
    source: Literal["rapl", "ina", "pmic", "none"]
    """`rapl` counts the processors; `ina` and `pmic` are the board's watts before and after each slice."""
    j_per_inf: float | None


class Paired(BaseModel):
    """Item by item against the FP32 row's answers."""

    model_config = FROZEN
    better: int
    """Items only this row has right, or has more right."""
    worse: int
    """Items only the FP32 row has right, or has more right."""
    p: float
    """Exact McNemar (sign) test: how likely so uneven a split is if neither is better."""


class Ratio(BaseModel):
    """Speed against the baseline in the same rounds; > 1 is faster."""

    model_config = FROZEN
    baseline: str
    metric: Literal["wall", "cpu"]
    """Which ratio is the headline: wall time on a quiet host, CPU time on a busy one."""
    wall: Estimate
    p50: Estimate | None
    """Null where several inferences run at a time."""
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
    """Of `value`: Wilson where every item is right or wrong, else bootstrap or jackknife over the items."""
    metrics: dict[str, float]
    vs_fp32: float | None
    """This value minus that of the FP32 row it is judged against."""
    paired: Paired | None = None
    """Null where there is no FP32 row."""
    sample_sha256: str = ""
    """Of frames and labels: rows with the same one were scored on the same items."""
    wrong: tuple[int, ...] | None = None
    """Which items were answered wrongly; null where an item is more or less right."""


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
    target: str = ""
    """What the row is a variant of, where there are several targets."""
    scenario: Scenario = "single"
    call_path: str = "bound_infer"
    batch: int = 1
    """Frames of one inference: what the file declares, else 1."""
    status: Literal["clean", "noisy", "drifting", "contended", "throttled", "failed"]
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
    camera: Camera | None = None
    stage_us: dict[str, float] | None = None
    """`e2e`: median over the rounds of the mean time in each stage."""
    sustain: Sustain | None = None
    energy: Energy | None = None
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


class ScenarioFacts(BaseModel):
    """One scenario's rounds: its baseline row, its A/A arm, and how quiet the host was."""

    model_config = FROZEN
    baseline: str
    status: HostStatus
    interference: float | None
    drift: float | None
    """How far the baseline's CPU time per inference moved from first to last round, as a share; null if unknown."""
    aa: SameModel


class Recommendation(BaseModel):
    """What to deploy here, in one sentence."""

    model_config = FROZEN
    variant: str
    reason: str
    met: bool | None = None
    """Whether it meets what was demanded (FPS, memory, accuracy); null when nothing was."""


class GateRow(BaseModel):
    """One `--fail-if` on one row."""

    model_config = FROZEN
    expression: str
    variant: str
    against: str
    """The row it is compared with: of the base document, or of the same run."""
    change: float | None
    """What was measured: relative (0.05 is 5 % more), or in points of 0..1 for accuracy; null if not comparable."""
    ci: Interval | None
    """Interval of the change: 95 %, divided among all gates of the run (Bonferroni)."""
    outcome: Literal["passed", "failed", "inconclusive"]
    reason: str


class Comparison(BaseModel):
    """Against an earlier document, or against another bundle in the same rounds."""

    model_config = FROZEN
    how: Literal["compare", "against"]
    base: str
    same_host: bool
    notes: tuple[str, ...]
    gates: tuple[GateRow, ...]
    outcome: Literal["passed", "failed", "inconclusive"]


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
    status: HostStatus
    interference: float | None
    warnings: tuple[str, ...]
    system: System
    software: dict[str, str]
    models: tuple[Model, ...]
    baseline: str
    variants: tuple[VariantRow, ...]
    aa: SameModel
    recommended: Recommendation
    scenarios: dict[str, ScenarioFacts] = {}
    """By scenario; `baseline`, `status`, `interference` and `aa` above are those of the first one."""
    comparison: Comparison | None = None

    def row(self, variant_id: str) -> VariantRow:
        """The row of that id; KeyError when there is none."""
        for row in self.variants:
            if row.id == variant_id:
                return row
        raise KeyError(variant_id)


def to_json(document: BenchDocument) -> str:
    """`bench.json`: indented JSON with a final newline."""
    return document.model_dump_json(by_alias=True, indent=2) + "\n"
