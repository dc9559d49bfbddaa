"""What to deploy on this host, in one sentence: the fastest variant whose answers are as good as FP32's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.bench import stats
from stages.bench.document import Recommendation, VariantRow
from stages.bench.method import Record
from stages.bench.rows import Host, choose_metric, speed_ratios

MAX_DROP = 0.003  # of the leading metric, against the FP32 row; the default of quantize.max_drop
MIN_COSINE = 0.99  # of raw outputs against the baseline, where there is no labelled sample
NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a variant has to reach to be deployed; None: anything will do."""

    target_fps: float | None = None
    max_rss_mb: float | None = None
    min_accuracy: float | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.target_fps, self.max_rss_mb, self.min_accuracy))


def recommend(
    rows: Mapping[str, VariantRow],
    records: Mapping[str, Record],
    launches: int,
    host: Host,
    fp32_because: str,
    limits: Limits = Limits(),
) -> Recommendation:
    """Walk through the rows, FP32 first; a later one takes over only if it is faster beyond the noise floor.

    `fp32_because` is the bundle's own reason when it says FP32 should be deployed; INT8 is then out. A row that misses
    a limit is out as long as another meets them all.
    """
    working = [row for row in rows.values() if row.status != "failed"]
    missed = {row.id: _missed(row, limits) for row in working}
    allowed = [
        row for row in working if not missed[row.id] and (row is working[0] or not _objection(row, fp32_because))
    ]
    met = bool(allowed)
    best, passed_over = (allowed or working)[0], []
    for row in working:
        if row is best:
            continue
        objection = _objection(row, fp32_because) or (missed[row.id] if met else "")
        if not objection and row.ratio is None:
            objection = "speeds were not compared"
        if not objection and not _faster(records[row.id], records[best.id], launches, host):
            objection = f"not faster than {best.id} beyond the noise floor"
        if objection:
            passed_over.append((row, objection))
        else:
            best = row
    reason = _sentence(best, passed_over, host)
    if not limits:
        return Recommendation(variant=best.id, reason=reason)
    if not met:
        reason = f"no variant meets what was asked; of {best.id}: {missed[best.id]}. Without limits: {reason}"
    else:
        reason += f"; meets {_asked(limits)}"
    return Recommendation(variant=best.id, reason=reason, met=met)


def _asked(limits: Limits) -> str:
    parts = {"FPS >= {:g}": limits.target_fps, "RSS <= {:g} MB": limits.max_rss_mb, "accuracy >= {:g}":
             limits.min_accuracy}  # fmt: skip
    return ", ".join(form.format(value) for form, value in parts.items() if value is not None)


def _missed(row: VariantRow, limits: Limits) -> str:
    """Which limit a row misses, or cannot be shown to meet; empty when it meets them all."""
    if limits.target_fps is not None:
        fps, how = fps_of(row)
        if fps is None or fps < limits.target_fps:
            return f"{'FPS unknown' if fps is None else f'{fps:.1f} FPS{how}'}, {limits.target_fps:g} asked"
    if limits.max_rss_mb is not None:
        peak = row.memory.vmhwm if row.memory else None
        if peak is None or peak / 1e6 > limits.max_rss_mb:
            return (
                f"RSS {'unknown' if peak is None else f'{peak / 1e6:.0f} MB'}, at most {limits.max_rss_mb:g} MB asked"
            )
    if limits.min_accuracy is not None and (row.accuracy is None or row.accuracy.value < limits.min_accuracy):
        value = "was not measured" if row.accuracy is None else f"{row.accuracy.value:.4f}"
        return f"accuracy {value}, {limits.min_accuracy:g} asked"
    return ""


def fps_of(row: VariantRow) -> tuple[float | None, str]:
    """Frames per second and how it is known: measured, or by CPU time on a busy host, or as a camera's frames kept."""
    if row.camera is not None:
        return row.camera.fps_target * (1.0 - row.camera.miss_rate), " kept"
    if row.fps is None:
        return None, ""
    return (row.fps.median, "") if row.fps.median is not None else (row.fps.uncontended_est, " by CPU time")


def _objection(row: VariantRow, fp32_because: str) -> str:
    """Why a variant must not be deployed however fast it is; empty when it may."""
    if row.precision == "int8" and fp32_because:
        return f"the bundle recommends FP32: {fp32_because}"
    if row.accuracy is not None and row.accuracy.vs_fp32 is not None and row.accuracy.vs_fp32 < -MAX_DROP:
        return (
            f"{row.accuracy.metric} {100 * row.accuracy.vs_fp32:+.1f} points against FP32 "
            f"(n={row.accuracy.n}, limit {-100 * MAX_DROP:.1f})"
        )
    if row.difference is not None and (row.difference.cosine is None or row.difference.cosine < MIN_COSINE):
        return "its outputs are not those of the baseline"
    return ""


def _faster(candidate: Record, best: Record, launches: int, host: Host) -> bool:
    metric = choose_metric(candidate.variant, best.variant, host.status)
    ratio = speed_ratios(candidate, best, launches, host.seed)[metric]
    return stats.verdict(ratio, host.floors[metric]) == "faster"


def _sentence(best: VariantRow, passed_over: list[tuple[VariantRow, str]], host: Host) -> str:
    said = f"{NAMES[best.runtime]} {best.precision.upper()} ({best.id})"
    if best.ratio is None:
        said += ": speeds were not compared"
    elif best.ratio.baseline != best.id:
        point, low, high = best.ratio.headline
        said += f": {point:.2f}x [{low:.2f}, {high:.2f}] the speed of {best.ratio.baseline}"
        said += " by CPU time (host busy)" if best.ratio.metric == "cpu" else ""
    else:
        said += ": nothing measured here is faster and as good"
    if best.accuracy is None:
        said += "; accuracy was not measured (no labelled sample)"
    else:
        low, high = best.accuracy.ci95
        said += f"; {best.accuracy.metric} {best.accuracy.value:.4f} [{low:.4f}, {high:.4f}], n={best.accuracy.n}"
    int8 = [(row, why) for row, why in passed_over if row.precision == "int8"]
    if best.precision == "fp32" and int8 and best.ratio is not None:
        row, why = int8[-1]
        floor = host.floors[row.ratio.metric if row.ratio else "wall"]
        speed = "" if row.ratio is None else f" {row.ratio.headline[0]:.2f}x, noise floor {100 * floor:.1f} %;"
        said = f"keep FP32. {said}. INT8 ({row.id}):{speed} {why}"
    return said
