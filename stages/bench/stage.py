"""The bench stage: open the targets, measure their variants scenario by scenario, say what to deploy."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from edge_demo.errors import Error, InputError
from stages.bench import answers, compare, gates, rows, warnings
from stages.bench.census import summary
from stages.bench.document import BenchDocument, Model, ScenarioFacts, VariantRow, to_json
from stages.bench.method import PLANS, UNPAIRED, Lab, Plan, Record, measure, plan_for
from stages.bench.recommend import Limits, recommend
from stages.bench.stats import Estimate
from stages.bench.system import software, system
from stages.bench.target import Target, open_targets
from stages.bench.variants import plan_variants
from stages.spec import BenchConfig, BenchResult, BenchRow, BundleResult, OnStep, Scenario, ignore


@dataclass(frozen=True, slots=True)
class Demands:
    """What a benchmark is judged by: a base to compare with, limits on getting worse, limits to reach."""

    base: Path | None = None
    """An earlier bench.json."""
    against: Path | None = None
    """Another bundle or model, measured in the same rounds."""
    fail_if: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Phase:
    """One scenario, measured."""

    scenario: Scenario
    plan: Plan
    records: dict[str, Record]
    baseline: Record
    same: dict[str, Estimate] | None
    host: rows.Host


def run(config: BenchConfig, bundle: BundleResult, *, out_dir: Path, on_step: OnStep = ignore) -> BenchResult:
    """The stage: benchmark the run's bundle and write `bench.json`, `bench.md` and `bench.html` into `out_dir`."""
    from stages.bench import pages

    document = bench_target(bundle.folder, config, json_file=out_dir / "bench.json", on_step=on_step)
    (out_dir / "bench.md").write_text(pages.markdown(document), encoding="utf-8")
    (out_dir / "bench.html").write_text(pages.html(document), encoding="utf-8")
    return BenchResult(
        folder=out_dir,
        baseline=document.baseline,
        rows=tuple(bench_row(row, document) for row in document.variants),
        recommended=document.recommended.variant,
        reason=document.recommended.reason,
        status=document.status,
    )


def bench_target(
    target: Path | Sequence[Path],
    config: BenchConfig,
    *,
    json_file: Path | None = None,
    on_step: OnStep = ignore,
    plan: Plan | None = None,
    demands: Demands = Demands(),
    images: Path | None = None,
) -> BenchDocument:
    """Measure every variant of bundles, run folders, .onnx or .xml files on this host.

    Args:
        target: What to measure; several are compared with each other, the first is the baseline's.
        config: Which runtimes, precisions, threads, scenarios; the preset decides how long.
        json_file: Where to write the document, too.
        on_step: Progress.
        plan: Instead of the preset's; for tests.
        demands: What it is judged by. A failed gate is in the document, not raised.
        images: A picture or a folder of pictures to run plain models on, instead of random inputs.

    Raises:
        InputError: nothing to measure there, no runtime takes the model, `json_file` cannot be written, or a base or
            limit that makes no sense.
        Error: every variant failed while running.
    """
    targets = [target] if isinstance(target, Path) else list(target)
    base = _check(targets, json_file, demands)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        keys = compare.AGAINST_KEYS if demands.against else ()
        paths = [*([demands.against] if demands.against else []), *targets]
        opened = open_targets(paths, Path(folder), keys, images)
        if config.shapes and all(each.sample for each in opened):
            raise InputError("--shape has no effect on a bundle, which states its own", "leave it off")
        document = _measured(opened, config, plan or PLANS[config.preset], Path(folder), on_step, demands)
    if images is not None:
        document = document.model_copy(update={"command": (*document.command, "--images", images.name)})
    if base is not None and demands.base is not None:
        limits = [gates.parse(expression) for expression in demands.fail_if]
        found = compare.compare(document, base, demands.base.name, limits)
        document = document.model_copy(update={"comparison": found})
    if json_file is not None:
        try:
            json_file.write_text(to_json(document), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{json_file}: cannot be written ({error.strerror})", "write elsewhere") from None
    return document


def _check(targets: Sequence[Path], json_file: Path | None, demands: Demands) -> BenchDocument | None:
    """Everything that can be wrong before minutes are spent; the base document, if one is given."""
    if json_file is not None and not json_file.parent.is_dir():
        raise InputError(f"{json_file}: no such folder {json_file.parent}", "make it first, or write elsewhere")
    for expression in demands.fail_if:
        gates.parse(expression)
    if demands.fail_if and demands.base is None and demands.against is None:
        raise InputError("--fail-if has nothing to compare with", "add --compare BASE.json or --against OLD_BUNDLE")
    if demands.base is not None and demands.against is not None:
        raise InputError("--compare and --against exclude each other", "give one of them")
    if demands.against is not None and len(targets) > 1:
        raise InputError("--against compares one target with another", f"give one target, not {len(targets)}")
    return compare.read_base(demands.base) if demands.base is not None else None


def _measured(
    targets: Sequence[Target], config: BenchConfig, plan: Plan, scratch: Path, on_step: OnStep, demands: Demands
) -> BenchDocument:
    started, host_before = time.monotonic(), system()
    phases, left_out = _phases(targets, config, plan, scratch, on_step, host_before.cores_effective)
    measured = [row for phase in phases for row in _rows(phase, config)]
    records = {key: record for phase in phases for key, record in phase.records.items()}
    first = phases[0]
    facts = {phase.scenario: _facts(phase) for phase in phases}
    # What is deployed is chosen among one target's rows: two models' answers need not mean the same.
    own = targets[-1] if demands.against else targets[0]
    chosen = next((phase for phase in phases if phase.scenario not in UNPAIRED), first)
    candidates = {row.id: row for row in measured if row.target == own.key and row.scenario == chosen.scenario}
    working = [row for row in candidates.values() if row.status != "failed"]
    if not working:
        failed = next(iter(candidates.values()), None)
        raise Error(f"{own.name}: nothing could be measured{f': {failed.reason}' if failed else ''}")
    document = BenchDocument(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(targets, config, demands),
        target=" + ".join(target.name for target in targets),
        seed=config.seed,
        preset=config.preset,
        method={"launches": plan.launches, "rounds": plan.rounds, "slice_s": plan.slice_s, "min_runs": plan.min_runs},
        seconds=time.monotonic() - started,
        status=first.host.status,
        interference=first.host.interference,
        warnings=(*left_out, *warnings.sentences(measured, records, first.host, host_before.cores_effective)),
        system=host_before,
        software=software(),
        models=_models(targets),
        baseline=first.baseline.variant.id,
        variants=tuple(measured),
        aa=facts[first.scenario].aa,
        recommended=recommend(candidates, records, chosen.plan.launches, chosen.host, own.fp32_because, demands.limits),
        scenarios=facts,
    )
    if demands.against is None:
        return document
    found = compare.against(
        document,
        records,
        {phase.scenario: phase.host for phase in phases},
        {phase.scenario: phase.plan.launches for phase in phases},
        [gates.parse(expression) for expression in demands.fail_if],
        targets[0].name,
    )
    return document.model_copy(update={"comparison": found})


def _phases(
    targets: Sequence[Target], config: BenchConfig, plan: Plan, scratch: Path, on_step: OnStep, cores: int
) -> tuple[list[Phase], list[str]]:
    """Every scenario that could be measured, in the order asked, and a sentence for what was left out."""
    phases: list[Phase] = []
    notes: list[str] = []
    census: dict[tuple[str, str, str], dict[str, int]] = {}
    asked = tuple(dict.fromkeys(config.scenarios))
    problem: Error | None = None
    for scenario in asked:
        try:
            variants, left_out = plan_variants(targets, config, scenario, cores)
            its_plan = plan_for(scenario, plan, config.minutes)
            lab = Lab(scratch, config.seed, its_plan, on_step, fps=config.fps, shapes=config.shapes, census=census)
            records, duplicate = measure(variants, lab)
            baseline = _first_working(list(records.values()))
        except Error as error:
            problem = problem or error
            notes.append(f"{scenario}: {error.message}")
            continue
        notes += left_out
        alive = [record for record in records.values() if record.failure is None]
        arms = [baseline, *(record for record in (*alive, duplicate) if record and record is not baseline)]
        same = rows.duplicate_ratios(duplicate, baseline, its_plan.launches, config.seed)
        host = rows.judge_host([arm for arm in arms if arm.failure is None], same, config.seed)
        phases.append(Phase(scenario, its_plan, records, baseline, same, host))
    if not phases and problem is not None:
        raise problem
    return phases, list(dict.fromkeys(notes))


def _rows(phase: Phase, config: BenchConfig) -> list[VariantRow]:
    made = [
        rows.row(record, phase.baseline, phase.plan.launches, phase.host, config.fps)
        for record in phase.records.values()
    ]
    return answers.judge(made, phase.records, config.seed)


def _facts(phase: Phase) -> ScenarioFacts:
    return ScenarioFacts(
        baseline=phase.baseline.variant.id,
        status=phase.host.status,
        interference=phase.host.interference,
        drift=phase.host.drift,
        aa=rows.same_model(phase.same, phase.baseline.variant, phase.host),
    )


def _first_working(records: Sequence[Record]) -> Record:
    """The baseline: the first variant, in order of preference, that was measured to the end."""
    for record in records:
        if record.failure is None:
            return record
    failures = [record.failure for record in records if record.failure is not None]
    first, kind = failures[0], InputError if all(failure.by_input for failure in failures) else Error
    raise kind(f"nothing could be measured: {first.reason}", first.hint)


def _models(targets: Sequence[Target]) -> tuple[Model, ...]:
    return tuple(
        Model(
            id="-".join(filter(None, (target.key, model.precision))),
            file=model.file,
            sha256=model.sha256,
            bytes=model.size_bytes,
            precision=model.precision,
            opset=model.opset,
        )
        for target in targets
        for model in target.models.values()
    )


def _command(targets: Sequence[Target], config: BenchConfig, demands: Demands) -> tuple[str, ...]:
    """What to type to measure this again; names only, never a path of this machine."""
    names = [target.name for target in targets]
    words = ["pipeline", "bench", *names]
    if demands.against is not None:
        words = ["pipeline", "bench", names[1], "--against", names[0]]
    words += [word for runtime in config.runtimes for word in ("--runtime", runtime)]
    words += [word for precision in config.precisions for word in ("--precision", precision)]
    words += ["--threads", ",".join(map(str, config.threads)), "--preset", config.preset]
    if config.scenarios != ("single",):
        words += [word for scenario in config.scenarios for word in ("--scenario", scenario)]
    words += ["--fps", f"{config.fps:g}"] if "camera" in config.scenarios else []
    words += ["--minutes", f"{config.minutes:g}"] if "sustain" in config.scenarios else []
    words += [word for shape in config.shapes for word in ("--shape", shape)]
    words += ["--spinning"] if config.spinning else []
    words += ["--compare", demands.base.name] if demands.base is not None else []
    limits = {"--target-fps": demands.limits.target_fps, "--max-rss": demands.limits.max_rss_mb,
              "--min-accuracy": demands.limits.min_accuracy}  # fmt: skip
    words += [word for name, value in limits.items() if value is not None for word in (name, f"{value:g}")]
    words += [word for expression in demands.fail_if for word in ("--fail-if", expression)]
    return tuple(words)


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
        scenario=row.scenario,
    )


def _ms(us: float | None) -> float | None:
    return None if us is None else us / 1e3
