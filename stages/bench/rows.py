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
    Cold,
    Fps,
    Latency,
    Memory,
    Ratio,
    Round,
    SameModel,
    VariantRow,
    Warmup,
)
from stages.bench.method import Record
from stages.bench.stats import Estimate, Status
from stages.bench.target import Variant

Metric = Literal["wall", "cpu"]
COSTS = ("wall", "p50", "cpu")
FREQ_WITHIN = 0.97  # a slice counts as undisturbed only near the highest frequency seen


@dataclass(frozen=True, slots=True)
class Host:
    """How the run went as a whole, and so what its rows may claim."""

    interference: float | None
    status: Status
    floors: dict[Metric, float]
    seed: int


def judge_host(records: Sequence[Record], same: dict[str, Estimate] | None, seed: int) -> Host:
    """Interference over all slices, the status it means, and the noise floor of either metric."""
    share = shared_interference([entry for record in records for entry in rounds_of(record)])
    status = stats.host_status(share) if share is not None else "noisy"
    floors: dict[Metric, float] = {
        "wall": stats.noise_floor(same["wall"] if same else None, status),
        "cpu": stats.noise_floor(same["cpu"] if same else None, status),
    }
    return Host(share, status, floors, seed)


def rounds_of(record: Record) -> list[Round]:
    """The recorded slices, each with its interference."""
    threads = record.variant.threads
    return [
        Round(**entry, interference=stats.interference(entry["wall_s"], entry["cpu_s"], entry["run_delay_s"], threads))
        for entry in record.rounds
    ]


def shared_interference(rounds: Sequence[Round]) -> float | None:
    """Interference of many slices together, weighted by their time; None when no slice knows its own."""
    known = [(entry.interference, entry.wall_s) for entry in rounds if entry.interference is not None]
    total = sum(wall_s for _, wall_s in known)
    return sum(share * wall_s for share, wall_s in known) / total if total else None


def costs(record: Record, launches: int) -> dict[str, NDArray[np.float64]]:
    """What one inference cost in every round, float64 (launches, rounds), in seconds or microseconds."""
    values = {
        "wall": [entry["wall_s"] / entry["n"] for entry in record.rounds],
        "p50": [entry["p50_us"] for entry in record.rounds],
        "cpu": [entry["cpu_s"] / entry["n"] for entry in record.rounds],
    }
    return {name: np.array(series, dtype=np.float64).reshape(launches, -1) for name, series in values.items()}


def speed_ratios(of: Record, against: Record, launches: int, seed: int) -> dict[str, Estimate]:
    """How many times faster `of` is than `against`, from the ratios within each round: wall, p50 and CPU time."""
    mine, theirs = costs(of, launches), costs(against, launches)
    return {name: stats.median_estimate(theirs[name] / mine[name], seed) for name in COSTS}


def duplicate_ratios(
    duplicate: Record | None, baseline: Record, launches: int, seed: int
) -> dict[str, Estimate] | None:
    """A/A: the baseline's duplicate against the baseline; None when either of the two could not be measured."""
    if duplicate is None or duplicate.failure is not None or duplicate.variant is not baseline.variant:
        return None
    return speed_ratios(duplicate, baseline, launches, seed)


def choose_metric(a: Variant, b: Variant, status: Status) -> Metric:
    """Wall time on a quiet host; on a busy one CPU time, if both have one thread (more may burn CPU waiting)."""
    return "cpu" if status != "clean" and a.threads == b.threads == 1 else "wall"


def same_model(ratios: dict[str, Estimate] | None, baseline: Variant, host: Host) -> SameModel:
    """The A/A entry."""
    metric = choose_metric(baseline, baseline, host.status)
    floor = host.floors[metric]
    if ratios is None:
        return SameModel(metric=metric, median=None, ci95=None, noise_floor=floor, wall=None, p50=None, cpu=None)
    point, low, high = ratios[metric]
    return SameModel(metric=metric, median=point, ci95=(low, high), noise_floor=floor, **ratios)


def row(record: Record, baseline: Record, launches: int, host: Host) -> VariantRow:
    """The row of one variant, without accuracy. A failed one keeps its reason and no numbers."""
    variant = record.variant
    common: dict[str, Any] = {
        "id": variant.id,
        "runtime": variant.runtime,
        "precision": variant.precision,
        "threads": variant.threads,
        "model": variant.model.precision,
        "config_requested": {"threads": variant.threads, "precision_hint": variant.hint, "spinning": False},
    }
    if record.failure is not None:
        return VariantRow(**common, status="failed", reason=str(record.failure))
    rounds = rounds_of(record)
    share = shared_interference(rounds)
    return VariantRow(
        **common,
        status="noisy" if share is None else stats.host_status(share),
        config_effective=record.loads[-1]["effective"],
        executed=record.executed,
        cold=_cold(record),
        memory=_memory(record),
        warmup=Warmup(s=max(w["s"] for w in record.warms), converged=all(w["converged"] for w in record.warms)),
        rounds=tuple(rounds),
        latency_us=_latency(record),
        fps=_fps(rounds, variant.threads, host.seed),
        cpu_us_per_inf=median(entry.cpu_s / entry.n for entry in rounds) * 1e6,
        interference=share,
        ratio=_ratio(record, baseline, launches, host),
    )


def _cold(record: Record) -> Cold:
    middle = {key: median(load[key] for load in record.loads) for key in ("import_ms", "load_ms", "first_ms", "cpu_ms")}
    return Cold(n=len(record.loads), **middle)


def _memory(record: Record) -> Memory:
    return Memory(
        rss_base=_largest(record.loads, "rss_base"),
        rss_ready=_largest(record.loads, "rss_ready"),
        vmhwm=_largest(record.memories, "vmhwm"),
    )


def _largest(answers: Sequence[Mapping[str, Any]], key: str) -> int | None:
    return max((answer[key] for answer in answers if answer[key] is not None), default=None)


def _latency(record: Record) -> Latency:
    """Over all recorded inferences of all launches: a slow one is never left out."""
    laps = np.fromfile(record.latencies, dtype=np.int64)
    us = {p: value / 1e3 if (value := stats.percentile(laps, p)) is not None else None for p in stats.MIN_SAMPLES}
    return Latency(
        n=len(laps),
        p50=float(np.median(laps)) / 1e3,
        p90=us[90],
        p95=us[95],
        p99=us[99],
        min=float(laps.min()) / 1e3,
        max=float(laps.max()) / 1e3,
    )


def _fps(rounds: Sequence[Round], threads: int, seed: int) -> Fps:
    top = max((entry.freq_mhz for entry in rounds if entry.freq_mhz is not None), default=0.0)
    clean = np.array([entry.n / entry.wall_s for entry in rounds if _undisturbed(entry, top)])
    estimate = 1.0 / median(entry.cpu_s / entry.n for entry in rounds) if threads == 1 else None
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
    return not waited and (entry.freq_mhz is None or entry.freq_mhz >= FREQ_WITHIN * top_mhz)


def _ratio(record: Record, baseline: Record, launches: int, host: Host) -> Ratio:
    metric = choose_metric(record.variant, baseline.variant, host.status)
    if record is baseline:
        exact = (1.0, 1.0, 1.0)
        return Ratio(baseline=record.variant.id, metric=metric, wall=exact, p50=exact, cpu=exact, verdict="same")
    ratios = speed_ratios(record, baseline, launches, host.seed)
    told = stats.verdict(ratios[metric], host.floors[metric])
    return Ratio(baseline=baseline.variant.id, metric=metric, verdict=told, **ratios)
