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
from pipeline.report_document import BenchDetail, ClassRow, Confused, Confusion
from pipeline.report_format import wilson
from stages.bench.document import BenchDocument
from stages.spec import (
    BenchResult,
    BenchRow,
    DataResult,
    EvaluateResult,
    ExportResult,
    Gate,
    QuantizeResult,
    TrainResult,
)

LIBRARIES = ("train-to-edge", "numpy", "torch", "lightning-fabric", "onnx", "onnxscript", "onnxruntime", "openvino")
MATRIX_CLASSES = 30  # a wider confusion matrix is no longer readable; the worst pairs are listed instead
WORST_PAIRS = 20


def all_gates(*results: TrainResult | ExportResult | QuantizeResult | EvaluateResult | BenchResult) -> tuple[Gate, ...]:
    """The gates of every stage, in the order of the run."""
    return tuple(gate for result in results for gate in result.gates)


def read_predictions(evaluate: EvaluateResult) -> dict[str, NDArray[Any]]:
    """The arrays of what is shipped on test, as the task keeps them.

    Raises:
        Error: the file is missing or damaged.
    """
    file = evaluate.folder / evaluate.predictions
    try:
        with np.load(file, allow_pickle=False) as saved:
            return {name: np.asarray(saved[name]) for name in saved.files}
    except (OSError, ValueError) as error:
        raise Error(f"{evaluate.predictions}: cannot be read ({error})", "run evaluate again") from error


def class_predictions(data: DataResult, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]] | None:
    """`truth`, `answer` int64 (n_test,) and `score` float (n_test,); None where the answer is not one class.

    Raises:
        Error: another number of items than the test split has.
    """
    if not {"truth", "answer", "score"} <= set(arrays) or arrays["answer"].ndim != 1:
        return None
    for name in ("truth", "answer", "score"):
        if len(arrays[name]) != data.counts["test"]:
            raise Error(
                f"predictions.npz: {len(arrays[name])} values of {name} for {data.counts['test']} test items",
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


def reproduce_command(run_folder: Path) -> str:
    """The command that runs this again, with names relative to the folder that holds the run folder."""
    config = f"{run_folder.name}/config.toml"
    return shlex.join(["pipeline", "all", config, "--run", run_folder.name])
