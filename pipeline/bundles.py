"""What the bundle and data commands print, and how they find what a person points at."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from rich.markup import escape
from rich.table import Table

from edge_demo.errors import InputError

if TYPE_CHECKING:
    from edge_demo.manifest import Manifest
    from edge_demo.verify import VerifyReport
    from stages.data.check import CheckReport
    from stages.data.sets import SetRow
    from stages.spec import BenchConfig

SCHEMAS = {
    "manifest": "edge_demo.manifest:Manifest",
    "event": "edge_demo.events:Event",
    "bench": "stages.bench.document:BenchDocument",
    "run": "pipeline.workspace:RunDocument",
    "config": "pipeline.config:PipelineConfig",
    "report": "pipeline.report_document:ReportDocument",
    "sweep": "pipeline.sweep.document:SweepDocument",
}
"""Name -> the pydantic type that is the file format."""


def bundle_of(path: Path) -> Path:
    """The bundle a person means: the path itself, or a run folder's bundle.

    Raises:
        InputError: nothing there, or a run folder whose last run did not get as far as a bundle.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder", "give a bundle folder, an .edge file, or a run folder")
    if not (path / "run.json").is_file():
        return path
    from pipeline.workspace import read_run

    record = read_run(path).stage("bundle")
    if record is None or record.status == "failed":
        raise InputError(f"{path}: its last run has no bundle", f"type: pipeline bundle --run {path}")
    return path / "bundle"


def bench_config(
    runtimes: Sequence[str] | None,
    precisions: Sequence[str] | None,
    threads: str,
    preset: str,
    extra: Mapping[str, Any],
) -> BenchConfig:
    """The bench section from the command's own options; of `extra` what is not None.

    Raises:
        InputError: a word or number is none of those allowed.
    """
    from pipeline.config import check

    try:
        counts = [int(part) for part in threads.split(",")]
    except ValueError:
        raise InputError(f"--threads {threads}: expected numbers with commas", "type e.g. --threads 1,2") from None
    section: dict[str, Any] = {"threads": counts, "preset": preset}
    section |= {key: value for key, value in extra.items() if value is not None}
    section |= {"runtimes": list(runtimes)} if runtimes else {}
    section |= {"precisions": list(precisions)} if precisions else {}
    return check({"name": "bench", "bench": section}, {"bench": "the command line"}).bench


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of one file format.

    Raises:
        InputError: unknown name.
    """
    if name not in SCHEMAS:
        raise InputError(f"--schema {name}: unknown format", f"known: {', '.join(SCHEMAS)}")
    module, attribute = SCHEMAS[name].split(":")
    return TypeAdapter(getattr(importlib.import_module(module), attribute)).json_schema(by_alias=True)


def _table(*columns: str, rows: Iterable[Sequence[object]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


def info_table(manifest: Manifest) -> Table:
    """A manifest for people."""
    given = manifest.input
    rows: list[tuple[object, object]] = [
        ("bundle", f"{manifest.name} {manifest.version} ({manifest.schema_})"),
        ("task", manifest.task),
        ("labels", f"{len(manifest.labels)}: {', '.join(manifest.labels)}"),
        ("input", f"{given.size_wh[0]} x {given.size_wh[1]}, {given.colour}, resize {given.resize.mode}"),
        ("recommended", f"{manifest.recommended}: {manifest.reason}"),
    ]
    for variant in manifest.variants:
        size = manifest.files[variant.file].size_bytes
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in variant.metrics.items())
        rows.append((variant.precision, f"{variant.file}, {size:,} bytes, opset {variant.opset}; {metrics}"))
    rows += [(key, value) for key, value in manifest.decode.items()]
    rows.append(("eval sample", f"{len(manifest.eval.frames)} of {manifest.eval.of} test items"))
    rows.append(("files", len(manifest.files)))
    return _table("", "", rows=rows)


def verify_table(report: VerifyReport) -> Table:
    """One row per check."""
    return _table(
        "variant",
        "runtime",
        "level",
        "frames",
        "max difference",
        "",
        rows=(
            (
                check.variant or "-",
                check.runtime or "-",
                check.level,
                check.n,
                "-" if check.max_abs is None else f"{check.max_abs:.2e}",
                "ok" if check.passed else "FAILED",
            )
            for check in report.checks
        ),
    )


def sets_table(rows: Sequence[SetRow]) -> Table:
    """One row per known data set."""
    return _table(
        "name", "items", "here", "where", rows=((r.name, r.items, "yes" if r.present else "no", r.where) for r in rows)
    )


def check_table(report: CheckReport) -> Table:
    """What `pipeline data check` found, for people."""
    rows: list[tuple[object, object]] = []
    for split, part in report.splits.items():
        balance = "a class is empty" if part.imbalance is None else f"largest / smallest class {part.imbalance:.2f}"
        rows.append((split, f"{part.items} items, {balance}, {part.duplicates} duplicates"))
    rows += [(pair, f"{count} pictures in both") for pair, count in report.shared.items() if count]
    rows.append(("labels", f"{len(report.labels)}: {', '.join(report.labels)}"))
    rows.append(("two classes", f"{report.conflicts} pictures"))
    rows += [("", " = ".join(ids)) for ids in report.conflict_examples]
    rows.append(("unreadable", report.unreadable))
    rows += [("", file) for file in report.unreadable_files]
    rows += [("left out", f"{count}: {reason}") for reason, count in report.left_out.items()]
    for side, sizes in (("width", report.width), ("height", report.height)):
        if sizes is not None:
            rows.append((side, f"{sizes.smallest} to {sizes.largest} px, median {sizes.median:g}"))
    rows += [("note", note) for note in report.notes]
    rows += [("ok" if finding.fine else "look", finding.sentence) for finding in report.findings]
    return _table("", "", rows=rows)
