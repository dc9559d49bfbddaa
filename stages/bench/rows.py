"""From records to rows: what the workers answered becomes what `bench.json` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.bench import stats
from stages.bench.document import (
    Camera,
    Cold,
    Energy,
    Fps,
    Latency,
    Memory,
    Ratio,
    Round,
    SameModel,
    Sustain,
    VariantRow,
    Warmup,
)
from stages.bench.method import UNPAIRED, Record
from stages.bench.stats import Estimate, Status
from stages.bench.variants import Variant

Metric = Literal["wall", "cpu"]
COSTS = ("wall", "p50", "cpu")
FREQ_WITHIN = 0.97  # a slice counts as undisturbed only near the highest frequency seen
DRIFT_BEYOND = 0.05  # of the baseline's CPU time per inference, over the whole run
THROTTLED_BEYOND = 0.10  # share of slices in which a core was slowed down for heat
SUSTAIN_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Host:
    """How the rounds went as a whole, and so what their rows may claim."""

    interference: float | None
    status: Status
    floors: dict[str, float]
    """The noise floor of each of `COSTS`."""
    seed: int
    drift: float | None = None


def judge_host(records: Sequence[Record], same: dict[str, Estimate] | None, seed: int) -> Host:
    """Interference over all slices, the status it means, and the noise floors.

    The first record is the baseline: its drift counts.
    """
    rounds = [entry for record in records for entry in rounds_of(record)]
    share = shared_interference(rounds) if rounds else load_interference(records)
    moved = stats.drift(np.array([entry.cpu_s / entry.n for entry in rounds_of(records[0])]))
    status = host_status(rounds, share, moved)
    floors = {name: stats.noise_floor((same or {}).get(name), status) for name in COSTS}
    return Host(share, status, floors, seed, moved)


def host_status(rounds: Sequence[Round], share: float | None, moved: float | None) -> Status:
    """The worst that is known: throttled, contended, drifting, noisy, clean."""
    hot = sum(bool(entry.throttled) for entry in rounds)
    if rounds and hot > THROTTLED_BEYOND * len(rounds):
        return "throttled"
    status = stats.host_status(share) if share is not None else "noisy"
    return "drifting" if status != "contended" and moved is not None and abs(moved) > DRIFT_BEYOND else status


def rounds_of(record: Record) -> list[Round]:
    """The recorded slices, each with its interference."""
    return [Round(**entry, interference=_interference(entry, record.variant)) for entry in record.rounds]


def _interference(entry: Mapping[str, Any], variant: Variant) -> float | None:
    if variant.scenario == "camera":
        return stats.paced_interference(entry["cpu_s"], entry["run_delay_s"])
    return stats.interference(entry["wall_s"], entry["cpu_s"], entry["run_delay_s"], variant.threads)


def shared_interference(rounds: Sequence[Round]) -> float | None:
    """Interference of many slices together, weighted by their time; None when no slice knows its own."""
    known = [(entry.interference, entry.wall_s) for entry in rounds if entry.interference is not None]
    total = sum(wall_s for _, wall_s in known)
    return sum(share * wall_s for share, wall_s in known) / total if total else None


def load_interference(records: Sequence[Record]) -> float | None:
    """The same where nothing but starting up was timed; None when not known."""
    loads = [load for record in records for load in record.loads]
    delays = [load["run_delay_ms"] for load in loads if load["run_delay_ms"] is not None]
    return stats.paced_interference(sum(load["cpu_ms"] for load in loads), sum(delays)) if delays else None


def costs(record: Record, launches: int) -> dict[str, NDArray[np.float64]]:
    """What one inference cost in every round, float64 (launches, rounds), in seconds or microseconds.

    Of a cold start: wall and CPU time from the library's import to the first answer, one per launch.
    """
    if record.variant.scenario == "cold":
        values = {
            "wall": [load["import_ms"] + load["load_ms"] + load["first_ms"] for load in record.loads],
            "cpu": [load["cpu_ms"] for load in record.loads],
        }
    else:
        values = {
            "wall": [entry.get("mean_us") or entry["wall_s"] * 1e6 / entry["n"] for entry in record.rounds],
            "cpu": [entry["cpu_s"] / entry["n"] for entry in record.rounds],
        }
        if all(entry["p50_us"] is not None for entry in record.rounds):
            values["p50"] = [entry["p50_us"] for entry in record.rounds]
    return {name: np.array(series, dtype=np.float64).reshape(launches, -1) for name, series in values.items()}


def speed_ratios(of: Record, against: Record, launches: int, seed: int, level: float = 0.95) -> dict[str, Estimate]:
    """How many times faster `of` is than `against`, from the ratios within each round: wall, p50 and CPU time.

    Frames per second where the two files declare different batches.
    """
    mine, theirs = costs(of, launches), costs(against, launches)
    scale = batch_of(of) / batch_of(against)
    return {
        name: stats.median_estimate(theirs[name] / mine[name] * scale, seed, level)
        for name in COSTS
        if name in mine and name in theirs
    }


def batch_of(record: Record) -> int:
    """Frames per inference: the first dimension of a picture input, else 1."""
    first: list[Any] = next(iter(record.loads[0]["inputs"].values()), []) if record.loads else []
    return int(first[1]) if len(first) == 5 else 1


def duplicate_ratios(
    duplicate: Record | None, baseline: Record, launches: int, seed: int
) -> dict[str, Estimate] | None:
    """A/A: the baseline's duplicate against the baseline; None when either of the two could not be measured."""
    if duplicate is None or duplicate.failure is not None or duplicate.variant is not baseline.variant:
        return None
    return speed_ratios(duplicate, baseline, launches, seed)


def choose_metric(a: Variant, b: Variant, status: Status) -> Metric:
    """Wall time on a quiet host; on a busy one CPU time, if both have one thread (more may burn CPU waiting)."""
    return "cpu" if status != "clean" and a.threads == b.threads == 1 and a.scenario != "throughput" else "wall"


def same_model(ratios: dict[str, Estimate] | None, baseline: Variant, host: Host) -> SameModel:
    """The A/A entry."""
    metric = choose_metric(baseline, baseline, host.status)
    floor = host.floors[metric]
    if ratios is None:
        return SameModel(metric=metric, median=None, ci95=None, noise_floor=floor, wall=None, p50=None, cpu=None)
    point, low, high = ratios[metric]
    known = {name: ratios.get(name) for name in COSTS}
    return SameModel(metric=metric, median=point, ci95=(low, high), noise_floor=floor, **known)


def row(record: Record, baseline: Record, launches: int, host: Host, fps_target: float = 30.0) -> VariantRow:
    """The row of one variant, without accuracy. A failed one keeps its reason and no numbers."""
    variant = record.variant
    key = variant.target.key if variant.target else ""
    common: dict[str, Any] = {
        "id": variant.id,
        "runtime": variant.runtime,
        "precision": variant.precision,
        "threads": variant.threads,
        "model": model_id(variant),
        "target": key,
        "scenario": variant.scenario,
        "call_path": CALL_PATHS.get((variant.scenario, variant.runtime), "bound_infer"),
        "config_requested": {
            "threads": variant.threads,
            "precision_hint": variant.hint,
            "spinning": variant.spinning,
        },
    }
    if record.failure is not None:
        return VariantRow(**common, status="failed", reason=str(record.failure))
    rounds = rounds_of(record)
    share = shared_interference(rounds)
    swept = {"jobs": record.jobs, "jobs_sweep": record.jobs_sweep} if record.jobs_sweep else {}
    paced = variant.scenario == "camera"
    return VariantRow(
        **common,
        batch=batch_of(record),
        status=host_status(rounds, share, None) if rounds else host.status,
        config_effective={**record.loads[-1]["effective"], **swept},
        executed=record.executed,
        cold=_cold(record),
        memory=_memory(record),
        warmup=_warmup(record),
        rounds=tuple(rounds),
        latency_us=_latency(record),
        fps=_fps(rounds, variant, batch_of(record), host.seed) if rounds and not paced else None,
        cpu_us_per_inf=median(entry.cpu_s / entry.n for entry in rounds) * 1e6 if rounds else None,
        interference=share,
        camera=_camera(rounds, fps_target) if paced else None,
        stage_us=_stages(rounds),
        sustain=_sustain(rounds, host.seed) if variant.scenario == "sustain" else None,
        energy=_energy(record, rounds),
        ratio=None if variant.scenario in UNPAIRED else _ratio(record, baseline, launches, host),
    )


CALL_PATHS = {
    ("throughput", "openvino"): "async_queue",
    ("throughput", "onnxruntime"): "caller_threads",
    ("e2e", "onnxruntime"): "demo_predictor",
    ("e2e", "openvino"): "demo_predictor",
}


def model_id(variant: Variant) -> str:
    """The file's id in `models`: its precision, after the target's key where there are several targets."""
    key = variant.target.key if variant.target else ""
    return "-".join(filter(None, (key, variant.model.precision)))


def _cold(record: Record) -> Cold:
    middle = {key: median(load[key] for load in record.loads) for key in ("import_ms", "load_ms", "first_ms", "cpu_ms")}
    return Cold(n=len(record.loads), load_ms_launches=tuple(load["load_ms"] for load in record.loads), **middle)


def _memory(record: Record) -> Memory:
    return Memory(
        rss_base=_largest(record.loads, "rss_base"),
        rss_ready=_largest(record.loads, "rss_ready"),
        vmhwm=_largest(record.memories, "vmhwm"),
        vmhwm_launches=tuple(answer["vmhwm"] for answer in record.memories if answer["vmhwm"] is not None),
    )


def _largest(answers: Sequence[Mapping[str, Any]], key: str) -> int | None:
    return max((answer[key] for answer in answers if answer[key] is not None), default=None)


def _warmup(record: Record) -> Warmup | None:
    if not record.warms:
        return None
    return Warmup(s=max(w["s"] for w in record.warms), converged=all(w["converged"] for w in record.warms))


def _latency(record: Record) -> Latency | None:
    """Over all recorded inferences of all launches: a slow one is never left out. None where none was timed alone."""
    if not record.latencies.is_file():
        return None
    laps = np.fromfile(record.latencies, dtype=np.int64)
    us = {p: value / 1e3 if (value := stats.percentile(laps, p)) is not None else None for p in stats.MIN_SAMPLES}
    safe = stats.early_stop(laps, 90)
    return Latency(
        n=len(laps),
        p50=float(np.median(laps)) / 1e3,
        p90=us[90],
        p95=us[95],
        p99=us[99],
        p99_9=us[99.9],
        p90_early_stop=None if safe is None else safe / 1e3,
        min=float(laps.min()) / 1e3,
        max=float(laps.max()) / 1e3,
        hist=tuple((edge / 1e3, count) for edge, count in stats.histogram(laps)),
    )


def _fps(rounds: Sequence[Round], variant: Variant, batch: int, seed: int) -> Fps:
    top = max((entry.freq_mhz for entry in rounds if entry.freq_mhz is not None), default=0.0)
    clean = np.array([batch * entry.n / entry.wall_s for entry in rounds if _undisturbed(entry, top)])
    alone = variant.threads == 1 and variant.scenario != "throughput"
    estimate = batch / median(entry.cpu_s / entry.n for entry in rounds) if alone else None
    known: dict[str, Any] = {"clean_slices": len(clean), "slices": len(rounds), "uncontended_est": estimate}
    if len(clean) < stats.MIN_CLEAN_SLICES:
        reason = (
            f"host busy: only {len(clean)} of {len(rounds)} slices had their CPU to themselves "
            f"(at least {stats.MIN_CLEAN_SLICES} needed)"
        )
        return Fps(median=None, ci95=None, reason=reason, **known)
    point, low, high = stats.median_estimate(clean[np.newaxis], seed)
    return Fps(median=point, ci95=(low, high), **known)


def _undisturbed(entry: Round, top_mhz: float) -> bool:
    waited = entry.interference is None or entry.interference > stats.CLEAN_BELOW
    return not waited and not entry.throttled and (entry.freq_mhz is None or entry.freq_mhz >= FREQ_WITHIN * top_mhz)


def _camera(rounds: Sequence[Round], fps_target: float) -> Camera:
    frames, missed = sum(entry.frames or 0 for entry in rounds), sum(entry.missed or 0 for entry in rounds)
    return Camera(
        fps_target=fps_target,
        frames=frames,
        missed=missed,
        miss_rate=missed / frames,
        ci95=stats.wilson(missed, frames),
        cpu_percent=100 * sum(entry.cpu_s for entry in rounds) / sum(entry.wall_s for entry in rounds),
    )


def _stages(rounds: Sequence[Round]) -> dict[str, float] | None:
    known = [entry.stage_us for entry in rounds if entry.stage_us is not None]
    return {name: median(stages[name] for stages in known) for name in known[0]} if known else None


def _sustain(rounds: Sequence[Round], seed: int) -> Sustain:
    total = sum(entry.wall_s for entry in rounds)
    window = min(SUSTAIN_WINDOW_S, total / 3)
    count = max(2, round(len(rounds) * window / total))
    first, last = rounds[:count], rounds[-count:]

    def speed(cost: str) -> Estimate:
        early, late = (np.array([getattr(entry, cost) / entry.n for entry in part]) for part in (first, last))
        return stats.two_medians(early, late, seed)

    return Sustain(
        minutes=total / 60,
        window_s=window,
        wall=speed("wall_s"),
        cpu=speed("cpu_s"),
        temp_c=(_middle(first, "temp_c"), _middle(last, "temp_c")),
        freq_mhz=(_middle(first, "freq_mhz"), _middle(last, "freq_mhz")),
    )


def _middle(rounds: Sequence[Round], name: str) -> float | None:
    known = [value for entry in rounds if (value := getattr(entry, name)) is not None]
    return median(known) if known else None


def _energy(record: Record, rounds: Sequence[Round]) -> Energy | None:
    if not rounds:
        return None
    known = [entry.energy_j / entry.n for entry in rounds if entry.energy_j is not None]
    source = record.loads[-1]["energy_source"]
    return Energy(source=source, j_per_inf=median(known)) if known and source else Energy(source="none", j_per_inf=None)


def _ratio(record: Record, baseline: Record, launches: int, host: Host) -> Ratio:
    metric = choose_metric(record.variant, baseline.variant, host.status)
    exact = (1.0, 1.0, 1.0)
    ratios = speed_ratios(record, baseline, launches, host.seed)
    if record is baseline:
        p50 = exact if "p50" in ratios else None
        return Ratio(baseline=record.variant.id, metric=metric, wall=exact, p50=p50, cpu=exact, verdict="same")
    told = stats.verdict(ratios[metric], host.floors[metric])
    known = {name: ratios.get(name) for name in COSTS}
    return Ratio(baseline=baseline.variant.id, metric=metric, verdict=told, **known)
