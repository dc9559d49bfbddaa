"""The bench stage: open the target, measure its variants, say what to deploy."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from edge_demo.errors import Error, InputError
from stages.bench import answers, rows
from stages.bench.census import integer_share, summary
from stages.bench.document import BenchDocument, Model, VariantRow, to_json
from stages.bench.method import PLANS, Lab, Plan, Record, measure
from stages.bench.recommend import MIN_COSINE, recommend
from stages.bench.system import software, system
from stages.bench.target import Target, Variant, open_target, plan_variants
from stages.spec import BenchConfig, BenchResult, BenchRow, BundleResult, OnStep, ignore


def run(config: BenchConfig, bundle: BundleResult, *, out_dir: Path, on_step: OnStep = ignore) -> BenchResult:
    """The stage: benchmark the run's bundle and write `bench.json` into `out_dir`."""
    document = bench_target(bundle.folder, config, json_file=out_dir / "bench.json", on_step=on_step)
    return BenchResult(
        folder=out_dir,
        baseline=document.baseline,
        rows=tuple(bench_row(row, document) for row in document.variants),
        recommended=document.recommended.variant,
        reason=document.recommended.reason,
        status=document.status,
    )


def bench_target(
    target: Path,
    config: BenchConfig,
    *,
    json_file: Path | None = None,
    on_step: OnStep = ignore,
    plan: Plan | None = None,
) -> BenchDocument:
    """Measure every variant of a bundle, run folder, .onnx or .xml on this host.

    Args:
        target: What to measure.
        config: Which runtimes, precisions, threads; the preset decides how long.
        json_file: Where to write the document, too.
        on_step: Progress.
        plan: Instead of the preset's; for tests.

    Raises:
        InputError: nothing to measure there, no runtime takes the model, or `json_file` cannot be written.
        Error: every variant failed while running.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise InputError(f"{json_file}: no such folder {json_file.parent}", "make it first, or write elsewhere")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        opened = open_target(target, Path(folder))
        document = _measured(opened, config, plan or PLANS[config.preset], Path(folder), on_step)
    if json_file is not None:
        try:
            json_file.write_text(to_json(document), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{json_file}: cannot be written ({error.strerror})", "write elsewhere") from None
    return document


def _measured(target: Target, config: BenchConfig, plan: Plan, scratch: Path, on_step: OnStep) -> BenchDocument:
    started, host_before = time.monotonic(), system()
    variants, left_out = plan_variants(target, config)
    frames = target.sample.frames if target.sample else None
    records, duplicate = measure(variants, Lab(scratch, frames, config.seed, plan, on_step))
    baseline = _first_working(list(records.values()))
    arms = [record for record in (*records.values(), duplicate) if record is not None and record.failure is None]
    same = rows.duplicate_ratios(duplicate, baseline, plan.launches, config.seed)
    host = rows.judge_host(arms, same, config.seed)
    measured = [rows.row(record, baseline, plan.launches, host) for record in records.values()]
    measured = answers.judge(measured, records, baseline.variant.id, target.sample, config.seed)
    return BenchDocument(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(target.name, config),
        target=target.name,
        seed=config.seed,
        preset=config.preset,
        method={"launches": plan.launches, "rounds": plan.rounds, "slice_s": plan.slice_s, "min_runs": plan.min_runs},
        seconds=time.monotonic() - started,
        status=host.status,
        interference=host.interference,
        warnings=(*left_out, *_warnings(measured, records, host, host_before.cores_effective)),
        system=host_before,
        software=software(),
        models=_models(variants),
        baseline=baseline.variant.id,
        variants=tuple(measured),
        aa=rows.same_model(same, baseline.variant, host),
        recommended=recommend({row.id: row for row in measured}, records, plan.launches, host, target.fp32_because),
    )


def _first_working(records: Sequence[Record]) -> Record:
    """The baseline: the first variant, in order of preference, that was measured to the end."""
    for record in records:
        if record.failure is None:
            return record
    failures = [record.failure for record in records if record.failure is not None]
    first, kind = failures[0], InputError if all(failure.by_input for failure in failures) else Error
    raise kind(f"nothing could be measured: {first.reason}", first.hint)


def _models(variants: Sequence[Variant]) -> tuple[Model, ...]:
    files = {variant.model.precision: variant.model for variant in variants}
    return tuple(
        Model(id=key, file=model.file, sha256=model.sha256, bytes=model.size_bytes, precision=model.precision)
        for key, model in files.items()
    )


def _command(name: str, config: BenchConfig) -> tuple[str, ...]:
    """What to type to measure this again."""
    options = [word for runtime in config.runtimes for word in ("--runtime", runtime)]
    options += [word for precision in config.precisions for word in ("--precision", precision)]
    return ("pipeline", "bench", name, *options, "--threads", ",".join(map(str, config.threads)),
            "--preset", config.preset)  # fmt: skip


def _warnings(measured: Sequence[VariantRow], records: Mapping[str, Record], host: rows.Host, cores: int) -> list[str]:
    """Sentences about what limits these numbers."""
    said = list(dict.fromkeys(note for record in records.values() for load in record.loads for note in load["notes"]))
    if host.interference is None:
        said.append("this system does not say how long threads waited for a CPU: absolute FPS are not given")
    elif host.status != "clean":
        said.append(
            f"the host was busy: {100 * host.interference:.0f} % of the time a thread waited for a CPU; "
            "trust the ratios, not the absolute times"
        )
    for row in measured:
        if row.threads > cores:
            said.append(f"{row.id}: {row.threads} threads on {cores} usable CPUs")
        said += _doubts(row)
    return said


def _doubts(row: VariantRow) -> list[str]:
    """What a working row does differently from what its name promises."""
    said = []
    integer, heavy = integer_share(row.executed)
    if row.precision == "int8" and row.executed and integer < heavy:
        said.append(
            f"{row.id}: only {integer} of {heavy} heavy operators run on 8-bit integers: {summary(row.executed)}"
        )
    if row.difference is not None and (row.difference.cosine is None or row.difference.cosine < MIN_COSINE):
        how = "cannot be compared" if row.difference.cosine is None else f"cosine {row.difference.cosine:.3f}"
        said.append(f"{row.id}: outputs differ from {row.difference.baseline}'s ({how})")
    return said


def bench_row(row: VariantRow, document: BenchDocument) -> BenchRow:
    """The summary of one row for report and console."""
    size = {model.id: model.bytes for model in document.models}[row.model]
    latency, cold, fps = row.latency_us, row.cold, row.fps
    p50, p90, p99 = (latency.p50, latency.p90, latency.p99) if latency else (None, None, None)
    return BenchRow(
        id=row.id,
        runtime=row.runtime,
        precision=row.precision,
        effective=summary(row.executed),
        threads=row.threads,
        fps=fps and fps.median,
        fps_uncontended_est=fps and fps.uncontended_est,
        p50_ms=_ms(p50),
        p90_ms=_ms(p90),
        p99_ms=_ms(p99),
        ratio=row.ratio and row.ratio.headline,
        accuracy=row.accuracy and row.accuracy.value,
        load_ms=cold and cold.load_ms,
        first_ms=cold and cold.first_ms,
        rss_mb=row.memory.vmhwm / 1e6 if row.memory and row.memory.vmhwm else None,
        size_mb=size / 1e6,
        status=row.status,
        reason=row.reason or (fps.reason if fps else ""),
    )


def _ms(us: float | None) -> float | None:
    return None if us is None else us / 1e3
