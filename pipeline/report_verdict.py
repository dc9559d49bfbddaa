"""What the report concludes: the verdict, under- or overfitting in words, and the warnings."""

from __future__ import annotations

from edge_demo.errors import Error
from pipeline.report_document import BenchDetail, Verdict
from pipeline.report_format import percent, runtime_name, sentence, span, times
from stages.spec import (
    BenchResult,
    BenchRow,
    DataResult,
    EvaluateResult,
    EvaluateRow,
    Gate,
    QuantizeResult,
    TrainResult,
)

ACCURACY_GATE = "evaluate.min_accuracy"
MIN_TEST_ITEMS = 1000  # below, a 95 % interval around 99 % is wider than one point (Wilson: 98.2 to 99.5 at n = 1,000)
IMBALANCE = 3.0  # largest class over smallest, from where overall accuracy hides the small classes (our judgement)


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
        headline="Not ready to ship" if missed else "Ready to ship" if _is_judged(gates) else "No gate missed",
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


def _is_judged(gates: tuple[Gate, ...]) -> bool:
    """Whether the run was told which accuracy is enough."""
    return any(gate.name == ACCURACY_GATE for gate in gates)


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


def fit_sentences(train: TrainResult, verdict: Verdict) -> str:
    """Under- or overfitting as the training judged it, and val against test, with sampling errors."""
    judged = train.generalization
    if judged is None:
        return f"Training against validation was not judged. {_test_numbers(train, verdict)}."
    return f"{judged.sentence} {_val_against_test(train, verdict, judged.val_ci95)}"


def _test_numbers(train: TrainResult, verdict: Verdict) -> str:
    return f"Test {train.metric} {percent(verdict.value, verdict.n)} (n = {verdict.n:,})"


def _val_against_test(train: TrainResult, verdict: Verdict, val_ci95: tuple[float, float]) -> str:
    numbers = _test_numbers(train, verdict)
    if verdict.ci95[1] < val_ci95[0]:
        return (
            f"{numbers} is lower than validation by more than both sampling errors: the test images are harder or "
            "different, so trust the test number."
        )
    if verdict.ci95[0] > val_ci95[1]:
        return f"{numbers} is higher than validation by more than both sampling errors: the test images are easier."
    return f"{numbers} agrees with validation within both sampling errors."


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
    if not _is_judged(evaluate.gates):
        found.append(f"No {evaluate.metric} was asked for: judge the test number yourself, or set {ACCURACY_GATE}.")
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
