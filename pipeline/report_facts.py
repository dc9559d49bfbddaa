"""Deriving what a report says from the stages' results and the files they name; no layout here."""

from __future__ import annotations

import csv
import math
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edge_demo.errors import Error
from pipeline.report_document import BenchDetail, ClassRow, Confused, Confusion, Verdict
from stages.bench.document import BenchDocument
from stages.spec import (
    BenchResult,
    BenchRow,
    DataResult,
    EvaluateResult,
    EvaluateRow,
    ExportResult,
    Gate,
    QuantizeResult,
    TrainResult,
)

RUNTIME_NAMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
LIBRARIES = ("train-to-edge", "numpy", "torch", "lightning-fabric", "onnx", "onnxscript", "onnxruntime", "openvino")
MATRIX_CLASSES = 30  # a wider confusion matrix is no longer readable; the worst pairs are listed instead
WORST_PAIRS = 20
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson 1927, JASA 22(158), 209-212; as in doi:10.1214/ss/1009213286, eq. 4."""
    share, z2 = right / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def percent(share: float, n: int | None = None) -> str:
    """A share in percent: one decimal below 1,000 items, else two; 100 % only for all, 0 % only for none."""
    decimals = 1 if n is not None and n < 1000 else 2
    step = 10.0 ** -(decimals + 2)
    if 0 < share < 1:
        share = min(max(share, step), 1 - step)
    return f"{100 * share:.{decimals}f} %"


def span(ci95: tuple[float, float], n: int) -> str:
    """An interval of shares, in percent."""
    return f"{percent(ci95[0], n).removesuffix(' %')} to {percent(ci95[1], n)}"


def points(difference: float) -> str:
    """A difference of two shares, in percentage points, with its sign."""
    return f"{round(100 * difference, 2) + 0.0:+.2f} points"  # + 0.0 turns a rounded -0.0 into 0.0


def times(ratio: tuple[float, float, float]) -> str:
    """A speed ratio with its 95 % interval."""
    return f"{ratio[0]:.2f}x [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def sentence(text: str) -> str:
    """The text with a capital at its start and a full stop at its end."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def runtime_name(key: str) -> str:
    """The name people know a runtime by."""
    return RUNTIME_NAMES.get(key, key)


def shipped_rows(evaluate: EvaluateResult) -> tuple[EvaluateRow, ...]:
    """The rows of what ships: the recommended precision, in the runtimes of the device.

    Raises:
        Error: there is none.
    """
    rows = tuple(
        row
        for row in evaluate.rows
        if row.precision == evaluate.recommended and row.runtime in ("onnxruntime", "openvino")
    )
    if not rows:
        raise Error(
            f"evaluate: no test result of the recommended precision {evaluate.recommended}", "run evaluate again"
        )
    return rows


def make_verdict(
    evaluate: EvaluateResult, bench: BenchResult, details: dict[str, BenchDetail], gates: tuple[Gate, ...]
) -> Verdict:
    """The verdict; where runtimes differ it states the lower metric."""
    rows = shipped_rows(evaluate)
    row = min(rows, key=lambda candidate: candidate.metrics[evaluate.metric])
    value = row.metrics[evaluate.metric]
    advised = next((candidate for candidate in bench.rows if candidate.id == bench.recommended), None)
    ratio = advised.ratio if advised else None
    missing = "" if ratio else _why_no_ratio(bench, advised)
    missed = [gate.name for gate in gates if not gate.passed]
    opening = f"Not ready to ship, missed: {', '.join(missed)}. " if missed else ""
    among = f"the lowest of {len(rows)} runtimes" if len(rows) > 1 else runtime_name(row.runtime)
    by = details[advised.id].ratio_by if advised and advised.id in details else None
    speed = _speed_sentence(bench, advised, ratio, by, missing)
    sentence = (
        f"{opening}{evaluate.recommended.upper()} ships: {evaluate.reason.rstrip('.')}. "
        f"Test {evaluate.metric} {percent(value, row.n)} "
        f"(95 % interval {span(row.ci95, row.n)}, n = {row.n:,}, {among}). "
        f"{speed} Host while measuring: {bench.status}."
    )
    return Verdict(
        passed=not missed,
        ships=evaluate.recommended,
        sentence=sentence,
        metric=evaluate.metric,
        value=value,
        n=row.n,
        ci95=row.ci95,
        runtime=row.runtime,
        recommended=advised.id if advised else "",
        ratio=ratio,
        ratio_missing=missing,
        ratio_by=by,
        host_status=bench.status,
    )


def _why_no_ratio(bench: BenchResult, advised: BenchRow | None) -> str:
    if advised is None:
        return bench.reason.rstrip(".") or "no variant was recommended"
    if advised.id == bench.baseline:
        return "it is the baseline itself"
    return advised.reason.rstrip(".") or f"status {advised.status}"


def _speed_sentence(
    bench: BenchResult,
    advised: BenchRow | None,
    ratio: tuple[float, float, float] | None,
    by: str | None,
    missing: str,
) -> str:
    if advised is None:
        return f"Speed: not measured ({missing})."
    if ratio is None:
        return f"Recommended on this host: {advised.id}; speed against {bench.baseline} not measured ({missing})."
    low, high = ratio[1:]
    told = f"{times(ratio)} the speed of {bench.baseline}{' by CPU time' if by == 'cpu' else ''}"
    if low <= 1 <= high:
        told += ", so no difference was shown"
    return f"Recommended on this host: {advised.id}, {told}."


def all_gates(*results: TrainResult | ExportResult | QuantizeResult | EvaluateResult | BenchResult) -> tuple[Gate, ...]:
    """The gates of every stage, in the order of the run."""
    return tuple(gate for result in results for gate in result.gates)


OVERFIT_GAP = (
    0.01  # a smaller gap is of no practical weight even where a large val split can resolve it (our judgement)
)
UNDERFIT_BELOW = 0.9  # of the training metric; a set whose labels allow no more is named as the other explanation


def fit_sentences(data: DataResult, train: TrainResult, verdict: Verdict) -> str:
    """Under- or overfitting in plain words: training against val, val against test, with sampling errors."""
    n_val = data.counts["val"]
    gap = train.train - train.val
    low, high = wilson(round(train.val * n_val), n_val)
    numbers = (
        f"{train.metric} {percent(train.train)} on training against {percent(train.val, n_val)} on validation "
        f"(n = {n_val:,})"
    )
    if gap > max(OVERFIT_GAP, (high - low) / 2):
        first = (
            f"Overfitting: {numbers}, a gap of {points(gap)}. More data, augmentation, dropout or weight decay "
            "usually narrow it."
        )
    elif train.train < UNDERFIT_BELOW:
        first = (
            f"Underfitting, or labels that allow no more: {numbers}. The network does not fit its own training "
            "images; more width, depth or epochs is the next thing to try."
        )
    else:
        first = (
            f"No sign of over- or underfitting: {numbers}, a gap of {points(gap)} where the sampling error of "
            f"validation alone is {100 * (high - low) / 2:.2f} points either way."
        )
    return f"{first} {_val_against_test(train, verdict, (low, high))}"


def _val_against_test(train: TrainResult, verdict: Verdict, val_ci95: tuple[float, float]) -> str:
    numbers = f"Test {train.metric} {percent(verdict.value, verdict.n)} (n = {verdict.n:,})"
    if verdict.ci95[1] < val_ci95[0]:
        return (
            f"{numbers} is lower than validation by more than both sampling errors: the test images are harder or "
            "different, so trust the test number."
        )
    if verdict.ci95[0] > val_ci95[1]:
        return f"{numbers} is higher than validation by more than both sampling errors: the test images are easier."
    return f"{numbers} agrees with validation within both sampling errors."


def read_predictions(data: DataResult, evaluate: EvaluateResult) -> dict[str, NDArray[Any]] | None:
    """`truth`, `answer` int64 (n_test,) and `score` float (n_test,); null where the answer is not one class.

    Raises:
        Error: the file is missing, or has another number of items than the test split.
    """
    file = evaluate.folder / evaluate.predictions
    try:
        with np.load(file, allow_pickle=False) as saved:
            arrays = {name: np.asarray(saved[name]) for name in saved.files}
    except (OSError, ValueError) as error:
        raise Error(f"{evaluate.predictions}: cannot be read ({error})", "run evaluate again") from error
    if not {"truth", "answer", "score"} <= set(arrays) or arrays["answer"].ndim != 1:
        return None
    for name in ("truth", "answer", "score"):
        if len(arrays[name]) != data.counts["test"]:
            raise Error(
                f"{evaluate.predictions}: {len(arrays[name])} values of {name} for {data.counts['test']} test items",
                "run evaluate again",
            )
    return arrays


def confusion_of(labels: tuple[str, ...], predictions: dict[str, NDArray[Any]]) -> Confusion:
    """Counts of (truth, answer); ties among the worst pairs in the order of the labels."""
    counts = confusion_counts(labels, predictions)
    per_class = counts.sum(axis=1)
    pairs = [(int(counts[t, a]), int(t), int(a)) for t, a in np.argwhere(counts) if t != a]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return Confusion(
        n=int(counts.sum()),
        mistakes=int(counts.sum() - np.trace(counts)),
        matrix=tuple(tuple(map(int, row)) for row in counts) if len(labels) <= MATRIX_CLASSES else None,
        worst=tuple(
            Confused(truth=labels[t], answer=labels[a], n=n, share=n / int(per_class[t]))
            for n, t, a in pairs[:WORST_PAIRS]
        ),
    )


def confusion_counts(labels: tuple[str, ...], predictions: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """int64 (num_labels, num_labels): row = truth, column = answer."""
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, (predictions["truth"], predictions["answer"]), 1)
    return counts


def class_rows(data: DataResult, predictions: dict[str, NDArray[Any]] | None) -> tuple[ClassRow, ...]:
    """Counts per split of every class, and its recall on test where answers are classes."""
    counts = confusion_counts(data.labels, predictions) if predictions else None
    rows = []
    for index, label in enumerate(data.labels):
        n = int(counts[index].sum()) if counts is not None else None
        right = int(counts[index, index]) if counts is not None else None
        rows.append(
            ClassRow(
                label=label,
                counts={split: per_class[index] for split, per_class in data.class_counts.items()},
                right=right,
                n=n,
                ci95=wilson(right, n) if n and right is not None else None,
            )
        )
    return tuple(rows)


def read_curves(train: TrainResult) -> tuple[dict[str, float | None], ...]:
    """One dict per epoch; an empty cell is null. No rows when the file is absent."""
    file = train.folder / train.curves_csv
    if not file.is_file():
        return ()
    with file.open(newline="", encoding="utf-8") as opened:
        return tuple({name: _number(cell) for name, cell in row.items()} for row in csv.DictReader(opened))


def _number(cell: str | None) -> float | None:
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else None


def read_bench(bench: BenchResult) -> BenchDocument:
    """The whole bench document.

    Raises:
        Error: it cannot be read.
    """
    try:
        return BenchDocument.model_validate_json((bench.folder / bench.file).read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise Error(f"{bench.file}: cannot be read ({reason})", "run bench again") from error


def bench_details(document: BenchDocument) -> dict[str, BenchDetail]:
    """Row id -> what the summary rows leave out."""
    return {
        row.id: BenchDetail(
            accuracy_n=row.accuracy.n if row.accuracy else None,
            accuracy_ci95=row.accuracy.ci95 if row.accuracy else None,
            latency_n=row.latency_us.n if row.latency_us else None,
            fps_estimated=row.fps.uncontended_est if row.fps else None,
            fps_reason=row.fps.reason if row.fps else "",
            ratio_by=row.ratio.metric if row.ratio else None,
            verdict=row.ratio.verdict if row.ratio else None,
        )
        for row in document.variants
    }


COLUMNS = {
    "ratio": "speed against the baseline", "fps": "FPS", "p50_ms": "p50", "p90_ms": "p90", "p99_ms": "p99",
    "load_ms": "load time", "first_ms": "first inference", "rss_mb": "peak RSS", "accuracy": "accuracy",
}  # fmt: skip


def not_measured(bench: BenchResult, details: dict[str, BenchDetail]) -> tuple[str, ...]:
    """Why each null of the bench table is one; rows that lack the same for the same reason share a sentence."""
    rows_of: dict[tuple[str, str], list[str]] = {}
    for row in bench.rows:
        names_of: dict[str, list[str]] = {}
        for field, name in COLUMNS.items():
            if getattr(row, field) is None and not (field == "ratio" and row.id == bench.baseline):
                names_of.setdefault(_why_null(row, details[row.id], field), []).append(name)
        for why, names in names_of.items():
            rows_of.setdefault((", ".join(names), why), []).append(row.id)
    return tuple(f"{', '.join(rows)}: {names} not measured: {why}." for (names, why), rows in rows_of.items())


def _why_null(row: BenchRow, detail: BenchDetail, field: str) -> str:
    if row.status == "failed":
        return (row.reason or "the variant failed").rstrip(".")
    if field == "fps" and detail.fps_reason:
        return detail.fps_reason.rstrip(".")
    if field in ("p90_ms", "p99_ms") and detail.latency_n:
        return f"{detail.latency_n:,} inferences are too few for that percentile"
    return row.reason.rstrip(".") or "no reason was recorded"


def host_facts(document: BenchDocument) -> dict[str, str]:
    """What the times were measured on, as bench.json states it; what is unknown is left out. Never a host name."""
    system = document.system
    facts = {
        "CPU": system.cpu_model or system.arch,
        "instruction sets": ", ".join(system.isa),
        "board": system.board,
        "cores usable": f"{system.cores_effective} of {system.cores_logical}",
        "governor": system.governor,
        "memory": f"{system.mem_total_bytes / 2**30:.1f} GiB" if system.mem_total_bytes else None,
        "load average": ", ".join(f"{load:.2f}" for load in system.loadavg) if system.loadavg else None,
        "system": f"{system.os} {system.kernel}",
        "virtualization": system.virt,
        "measured at": document.created,
        "noise floor": f"{100 * document.aa.noise_floor:.1f} % (the baseline against its own duplicate)",
    }
    return {name: value for name, value in facts.items() if value}


def software_versions() -> dict[str, str]:
    """Installed versions of the libraries whose code shaped the numbers; a missing one is said to be missing."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def make_warnings(
    data: DataResult,
    train: TrainResult,
    quantize: QuantizeResult,
    evaluate: EvaluateResult,
    bench: BenchResult,
    bench_warnings: tuple[str, ...],
) -> tuple[str, ...]:
    """What a reader must know before believing the numbers, most serious first. Missed gates are in their own table."""
    found: list[str] = []
    if data.composed:
        found.append("The pictures were composed by the program: accuracy on photographs is not measured here.")
    found += [
        f"{row.id}: {row.status}, {row.reason or 'no reason given'}" for row in bench.rows if row.status == "failed"
    ]
    found += [sentence(warning) for warning in bench_warnings]
    found += _precision_warnings(quantize, evaluate, bench)
    found += _data_warnings(data)
    if train.best_epoch >= train.epochs > 1 and train.val < 1:
        found.append(f"The best epoch was the last one ({train.epochs}): longer training may still improve it.")
    return tuple(found)


def _precision_warnings(quantize: QuantizeResult, evaluate: EvaluateResult, bench: BenchResult) -> list[str]:
    found = []
    if not quantize.passed:
        found.append(
            f"INT8 loses {100 * quantize.drop:.2f} points of {quantize.metric} on validation in the worse runtime; "
            f"{100 * quantize.max_drop:.2f} are allowed."
        )
    advised = next((row for row in bench.rows if row.id == bench.recommended), None)
    if advised and advised.precision in ("fp32", "int8") and advised.precision != evaluate.recommended:
        found.append(
            f"The bundle recommends {evaluate.recommended.upper()} by accuracy, but on this host bench recommends "
            f"{advised.id}: {bench.reason}"
        )
    return found


MIN_TEST_ITEMS = 1000  # below, a 95 % interval around 99 % is wider than one point (Wilson: 98.2 to 99.5 at n = 1,000)
IMBALANCE = 3.0  # largest class over smallest, from where overall accuracy hides the small classes (our judgement)


def _data_warnings(data: DataResult) -> list[str]:
    found = []
    if data.counts["test"] < MIN_TEST_ITEMS:
        found.append(f"Only {data.counts['test']:,} test items: read the interval, not the number.")
    train_counts = data.class_counts["train"]
    if min(train_counts) * IMBALANCE < max(train_counts):
        small, large = (data.labels[train_counts.index(pick(train_counts))] for pick in (min, max))
        found.append(
            f"Unbalanced classes: {max(train_counts):,} training items of {large}, {min(train_counts):,} of {small}; "
            "see the accuracy per class."
        )
    empty = [label for label, n in zip(data.labels, data.class_counts["test"], strict=True) if n == 0]
    if empty:
        found.append(
            f"No test items of {', '.join(empty[:5])}{' and others' if len(empty) > 5 else ''}: never measured."
        )
    return found


def reproduce_command(run_folder: Path) -> str:
    """The command that runs this again, with names relative to the folder that holds the run folder."""
    config = f"{run_folder.name}/config.toml"
    return shlex.join(["pipeline", "all", config, "--run", run_folder.name])
