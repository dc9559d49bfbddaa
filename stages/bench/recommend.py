"""What to deploy on this host, in one sentence: the fastest variant whose answers are as good as FP32's."""

from __future__ import annotations

from collections.abc import Mapping

from stages.bench import stats
from stages.bench.document import Recommendation, VariantRow
from stages.bench.method import Record
from stages.bench.rows import Host, choose_metric, speed_ratios

MAX_DROP = 0.003  # of the leading metric, against the FP32 row; the default of quantize.max_drop
MIN_COSINE = 0.99  # of raw outputs against the baseline, where there is no labelled sample
NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def recommend(
    rows: Mapping[str, VariantRow], records: Mapping[str, Record], launches: int, host: Host, fp32_because: str
) -> Recommendation:
    """Walk through the rows, FP32 first; a later one takes over only if it is faster beyond the noise floor.

    `fp32_because` is the bundle's own reason when it says FP32 should be deployed; INT8 is then out.
    """
    working = [row for row in rows.values() if row.status != "failed"]
    best, passed_over = working[0], []
    for row in working[1:]:
        objection = _objection(row, fp32_because)
        if not objection and not _faster(records[row.id], records[best.id], launches, host):
            objection = f"not faster than {best.id} beyond the noise floor"
        if objection:
            passed_over.append((row, objection))
        else:
            best = row
    return Recommendation(variant=best.id, reason=_sentence(best, passed_over, host))


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
    if best.ratio is not None and best.ratio.baseline != best.id:
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
    if best.precision == "fp32" and int8:
        row, why = int8[-1]
        floor = host.floors[row.ratio.metric if row.ratio else "wall"]
        speed = "" if row.ratio is None else f" {row.ratio.headline[0]:.2f}x, noise floor {100 * floor:.1f} %;"
        said = f"keep FP32. {said}. INT8 ({row.id}):{speed} {why}"
    return said
