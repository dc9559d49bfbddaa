"""What the timed objects answered: accuracy on the labelled sample, distance to the baseline's raw outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.tasks import TASKS
from stages.bench import stats
from stages.bench.document import Accuracy, Difference, Paired, VariantRow
from stages.bench.method import Record
from stages.bench.target import Sample

Raw = Mapping[str, NDArray[Any]]


def judge(rows: Sequence[VariantRow], records: Mapping[str, Record], seed: int) -> list[VariantRow]:
    """The rows with `difference` and, where there is a labelled sample, `accuracy`; failed rows as they are.

    Each target's rows are judged by that target's first working row: two models may well answer differently.
    """
    judged: dict[str, VariantRow] = {}
    for key in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == key]
        working = [row.id for row in own if row.status != "failed"]
        target = records[own[0].id].variant.target
        sample = target.sample if target else None
        done = _judge(own, records, working[0], sample, seed) if working else own
        judged |= {row.id: row for row in done}
    return [judged[row.id] for row in rows]


def _judge(
    rows: Sequence[VariantRow], records: Mapping[str, Record], baseline: str, sample: Sample | None, seed: int
) -> list[VariantRow]:
    raws = {row.id: raw_outputs(records[row.id]) for row in rows if row.status != "failed"}
    results: dict[str, list[Any]] = {}
    if sample is not None:
        results = {name: TASKS[sample.task].decode(raw, sample.params) for name, raw in raws.items()}
    fp32 = next((row.id for row in rows if row.id in raws and row.precision == "fp32"), None)
    judged = []
    for row in rows:
        if row.id not in raws:
            judged.append(row)
            continue
        update: dict[str, Any] = {"difference": difference(baseline, raws, results, row.id, sample)}
        if sample is not None:
            update["accuracy"] = accuracy(results[row.id], results.get(fp32 or ""), sample, seed)
        judged.append(row.model_copy(update=update))
    return judged


def raw_outputs(record: Record) -> dict[str, NDArray[Any]]:
    """The raw outputs of all samples by name, first axis = sample; memory-mapped."""
    assert record.outputs is not None
    arrays = {name: np.load(record.outputs / f"{i}.npy", mmap_mode="r") for i, name in enumerate(record.output_names)}
    # Every run had batch size 1: that axis goes.
    return {name: array[:, 0] if array.ndim > 1 and array.shape[1] == 1 else array for name, array in arrays.items()}


def accuracy(results: list[Any], fp32: list[Any] | None, sample: Sample, seed: int) -> Accuracy:
    """The task's leading metric on the sample, with its interval and its distance to the FP32 row's."""
    task = TASKS[sample.task]
    metrics = task.score(results, sample.truths)
    value = metrics[task.metric]
    scores = np.asarray(task.correct(results, sample.truths), dtype=np.float64)
    binary = task.interval is None and bool(np.isin(scores, (0.0, 1.0)).all())
    paired = None
    if fp32 is not None:
        theirs = np.asarray(task.correct(fp32, sample.truths), dtype=np.float64)
        better, worse = int((scores > theirs).sum()), int((scores < theirs).sum())
        paired = Paired(better=better, worse=worse, p=stats.mcnemar(better, worse))

    return Accuracy(
        metric=task.metric,
        value=value,
        n=len(results),
        of=sample.of,
        ci95=stats.mean_interval(scores, seed) if task.interval is None else task.interval(results, sample.truths),
        metrics=metrics,
        vs_fp32=None if fp32 is None else value - task.score(fp32, sample.truths)[task.metric],
        paired=paired,
        sample_sha256=sample.sha256,
        wrong=tuple(np.flatnonzero(scores == 0.0).tolist()) if binary else None,
    )


def difference(
    baseline: str, raws: Mapping[str, Raw], results: Mapping[str, list[Any]], name: str, sample: Sample | None
) -> Difference:
    """Raw outputs (and answers, where they can be decoded) of one variant against the baseline's.

    Of a known task without what no answer depends on, such as the order of candidates.
    """
    mine, base = raws[name], raws[baseline]
    if sample is not None and (align := TASKS[sample.task].align) is not None:
        mine, base = align(mine, base)
    max_abs, cosine = distance(mine, base)
    agreement = None
    if sample is not None:
        same = TASKS[sample.task].same
        agreement = float(np.mean([same(a, b) for a, b in zip(results[name], results[baseline], strict=True)]))
    count = len(next(iter(raws[name].values())))
    return Difference(baseline=baseline, n=count, agreement=agreement, max_abs=max_abs, cosine=cosine)


def distance(mine: Raw, base: Raw) -> tuple[float | None, float | None]:
    """Largest absolute difference and smallest cosine over all outputs; None where they cannot be compared."""
    largest, smallest = 0.0, 1.0
    for name, array in mine.items():
        if name not in base or base[name].shape != array.shape:
            return None, None
        x, y = np.asarray(array, dtype=np.float64).ravel(), np.asarray(base[name], dtype=np.float64).ravel()
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return None, None
        norm = float(np.linalg.norm(x) * np.linalg.norm(y))
        largest = max(largest, float(np.abs(x - y).max(initial=0.0)))
        smallest = min(smallest, float(x @ y) / norm if norm else float(np.array_equal(x, y)))
    return largest, smallest
