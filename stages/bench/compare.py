"""New against old: `--compare` with an earlier bench.json, in ratio space; `--against` another bundle, paired."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import exp, log, sqrt
from pathlib import Path

from pydantic import ValidationError

from edge_demo.errors import InputError
from stages.bench import stats
from stages.bench.document import SCHEMA, BenchDocument, Comparison, Estimate, GateRow, VariantRow
from stages.bench.gates import Change, Gate, judge, level, overall, z_of
from stages.bench.method import UNPAIRED, Record
from stages.bench.rows import Host, speed_ratios

SPEED = {"p50": "p50", "wall": "wall", "fps": "wall", "cpu": "cpu"}
"""Gate metric -> the ratio it is read from."""
AGAINST_KEYS = ("old", "new")


def read_base(path: Path) -> BenchDocument:
    """An earlier bench.json.

    Raises:
        InputError: it cannot be read, is no bench.json, or is of another schema.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", "give a file that --json wrote") from None
    try:
        found = json.loads(raw)
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != SCHEMA:
            raise InputError(f"{path}: schema is {schema!r}, not {SCHEMA!r}", "give a file that --json wrote")
        return BenchDocument.model_validate(json.loads(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}", "was it written by another version?") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})", "give a file that --json wrote") from None


# --- an earlier document ---------------------------------------------------------------------------------------------


def compare(document: BenchDocument, base: BenchDocument, name: str, gates: Sequence[Gate]) -> Comparison:
    """Every row against the row of the same id in `base`.

    Speed is compared as the ratio to each run's own baseline, so that a busier host or a slower clock cancels; times
    and memory themselves only on the same host.

    Raises:
        InputError: the two documents have no row in common.
    """
    theirs = {row.id: row for row in base.variants}
    pairs = [(row, theirs[row.id]) for row in document.variants if row.id in theirs]
    if not pairs:
        raise InputError(
            f"{name}: no row in common: it has {', '.join(theirs)}",
            f"here: {', '.join(r.id for r in document.variants)}",
        )
    same_host = document.system.fingerprint == base.system.fingerprint
    both_clean = document.status == base.status == "clean"
    confidence = level(len(gates) * len(pairs))
    rows = []
    for mine, old in pairs:
        for gate in gates:
            change = _broken(mine, old) or _change(gate, mine, old, (document, base), same_host, both_clean, confidence)
            rows.append(_judged(gate, mine, old, change))
    notes = [] if same_host else ["another host: times and memory are not compared, only ratios, accuracy and size"]
    notes += [f"{row_id} is only in {name}" for row_id in theirs if row_id not in {row.id for row, _ in pairs}]
    if base.preset != document.preset:
        notes.append(f"{name} was measured with --preset {base.preset}, this with {document.preset}")
    if base.target != document.target:
        notes.append(f"{name} is of {base.target}, this of {document.target}")
    return Comparison(
        how="compare", base=name, same_host=same_host, notes=tuple(notes), gates=tuple(rows), outcome=overall(rows)
    )


def _broken(mine: VariantRow, old: VariantRow) -> str:
    if old.status == "failed":
        return f"{old.id} had failed: {old.reason}"
    return f"broken: {mine.reason}" if mine.status == "failed" else ""


def _judged(gate: Gate, mine: VariantRow, old: VariantRow, change: Change | str, floor: float = 0.0) -> GateRow:
    row = judge(gate, mine.id, old.id, change, floor)
    # A row that worked and does not any more is worse by any measure.
    worse = mine.status == "failed" and old.status != "failed"
    return row.model_copy(update={"outcome": "failed"}) if worse else row


def _change(
    gate: Gate,
    mine: VariantRow,
    old: VariantRow,
    documents: tuple[BenchDocument, BenchDocument],
    same_host: bool,
    both_clean: bool,
    confidence: float,
) -> Change | str:
    if gate.metric not in SPEED:
        if gate.metric in ("rss", "load") and not same_host:
            return "another host: memory and load times say nothing"
        return unpaired(gate, mine, old, documents, confidence)
    if mine.ratio is None or old.ratio is None:
        return f"{gate.metric} was not measured in this scenario"
    if mine.ratio.baseline != old.ratio.baseline:
        return "the two runs have different baselines"
    session = max(stats.FLOOR[document.status] for document in documents)
    if mine.id == mine.ratio.baseline:
        if not (same_host and both_clean):
            return "it is the baseline of both runs: its own change shows only on the same host, quiet both times"
        return _absolute(gate, mine, old, session, confidence)
    new_ratio, old_ratio = (getattr(row.ratio, SPEED[gate.metric]) for row in (mine, old))
    if new_ratio is None or old_ratio is None:
        return f"{gate.metric} was not measured in this scenario"
    return ratio_of_ratios(new_ratio, old_ratio, session, confidence, invert=gate.is_cost)


def ratio_of_ratios(new: Estimate, old: Estimate, session: float, confidence: float, *, invert: bool) -> Change:
    """Relative change of a speed ratio (of its cost with `invert`) between two runs, independent but for the session.

    Half widths add up in squares on the logarithm. `session` is what two runs differ by though nothing changed.
    """
    wider = z_of(confidence) / stats.Z95
    halves = (log(new[2] / new[1]) / 2, log(old[2] / old[1]) / 2, log(1 + session))
    half, point = wider * sqrt(sum(part * part for part in halves)), log(new[0] / old[0])
    point = -point if invert else point
    return exp(point) - 1, exp(point - half) - 1, exp(point + half) - 1


def _absolute(gate: Gate, mine: VariantRow, old: VariantRow, session: float, confidence: float) -> Change | str:
    values = [_time(gate, row) for row in (mine, old)]
    if values[0] is None or values[1] is None:
        return f"{gate.metric} was not measured"
    exact = [(value, value, value) for value in values if value is not None]
    return ratio_of_ratios(exact[0], exact[1], session, confidence, invert=False)


def _time(gate: Gate, row: VariantRow) -> float | None:
    if gate.metric == "p50":
        return row.latency_us.p50 if row.latency_us else None
    if gate.metric == "cpu":
        return row.cpu_us_per_inf
    fps = row.fps.median if row.fps else None
    return None if fps is None else fps if gate.metric == "fps" else 1 / fps


# --- what needs no pairing within rounds -----------------------------------------------------------------------------


def unpaired(
    gate: Gate, mine: VariantRow, old: VariantRow, documents: tuple[BenchDocument, BenchDocument], confidence: float
) -> Change | str:
    """Change of memory, load time, file size or accuracy of two rows."""
    if gate.metric == "accuracy":
        return _accuracy(mine, old, confidence)
    if gate.metric == "size":
        new_bytes, old_bytes = (
            next((model.bytes for model in document.models if model.id == row.model), None)
            for document, row in zip(documents, (mine, old), strict=True)
        )
        if not new_bytes or not old_bytes:
            return "the size of a file is not known"
        return (new_bytes / old_bytes - 1,) * 3
    new_values, old_values = (_launches(gate, row) for row in (mine, old))
    if not new_values or not old_values:
        return f"{gate.metric} was not measured"
    point = sorted(new_values)[len(new_values) // 2] / sorted(old_values)[len(old_values) // 2]
    # Too few launches for a bootstrap: the interval holds every pair of them.
    return point - 1, min(new_values) / max(old_values) - 1, max(new_values) / min(old_values) - 1


def _launches(gate: Gate, row: VariantRow) -> Sequence[float]:
    if gate.metric == "rss":
        return row.memory.vmhwm_launches if row.memory else ()
    return row.cold.load_ms_launches if row.cold else ()


def _accuracy(mine: VariantRow, old: VariantRow, confidence: float) -> Change | str:
    new, base = mine.accuracy, old.accuracy
    if new is None or base is None:
        return "accuracy was not measured: no labelled sample"
    if new.metric != base.metric:
        return f"{new.metric} against {base.metric}"
    z = z_of(confidence)
    if new.wrong is not None and base.wrong is not None and new.sample_sha256 == base.sample_sha256 != "":
        better, worse = len(set(base.wrong) - set(new.wrong)), len(set(new.wrong) - set(base.wrong))
        if better == worse == 0:
            return 0.0, 0.0, 0.0
        return ((better - worse) / new.n, *stats.paired_share(better, worse, new.n, z))
    halves = [(part.ci95[1] - part.ci95[0]) / 2 * z / stats.Z95 for part in (new, base)]
    half, point = sqrt(sum(part * part for part in halves)), new.value - base.value
    return point, point - half, point + half


# --- another bundle, in the same rounds ------------------------------------------------------------------------------


def against(
    document: BenchDocument,
    records: Mapping[str, Record],
    hosts: Mapping[str, Host],
    launches: Mapping[str, int],
    gates: Sequence[Gate],
    name: str,
) -> Comparison:
    """Every row of the new target against the same row of the old one, by the ratios within each round.

    Args:
        document: The run, with rows of both targets.
        records: What the workers answered, by row id.
        hosts: By scenario.
        launches: By scenario.
        gates: Limits.
        name: Of the old target.

    Raises:
        InputError: the two targets have no row in common.
    """
    theirs = {_kind(row): row for row in document.variants if row.target == AGAINST_KEYS[0]}
    mine = [row for row in document.variants if row.target == AGAINST_KEYS[1]]
    pairs = [(row, theirs[_kind(row)]) for row in mine if _kind(row) in theirs]
    if not pairs:
        raise InputError(f"{name}: no row in common with the target", "ask for a precision both have")
    confidence = level(len(gates) * len(pairs))
    rows = []
    for row, old in pairs:
        host = hosts[row.scenario]
        for gate in gates:
            floor = host.floors[SPEED[gate.metric]] if gate.metric in SPEED else 0.0
            change: Change | str = _broken(row, old)
            if not change and gate.metric in SPEED:
                change = _paired(gate, records[row.id], records[old.id], launches[row.scenario], host, confidence)
            elif not change:
                change = unpaired(gate, row, old, (document, document), confidence)
            rows.append(_judged(gate, row, old, change, floor))
    return Comparison(how="against", base=name, same_host=True, notes=(), gates=tuple(rows), outcome=overall(rows))


def _kind(row: VariantRow) -> tuple[str, str, int, str]:
    return row.runtime, row.precision, row.threads, row.scenario


def _paired(gate: Gate, new: Record, old: Record, launches: int, host: Host, confidence: float) -> Change | str:
    if new.variant.scenario in UNPAIRED:
        return f"{new.variant.scenario} runs one variant after the other: nothing is paired"
    ratios = speed_ratios(new, old, launches, host.seed, confidence)
    if SPEED[gate.metric] not in ratios:
        return f"{gate.metric} was not measured in this scenario"
    point, low, high = ratios[SPEED[gate.metric]]
    if gate.is_cost:
        return 1 / point - 1, 1 / high - 1, 1 / low - 1
    return point - 1, low - 1, high - 1
