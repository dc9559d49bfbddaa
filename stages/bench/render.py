"""The benchmark for people: one table, then what to know about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.bench.census import summary
from stages.bench.document import BenchDocument, VariantRow

if TYPE_CHECKING:
    from rich.table import Table

# Two or three lines per cell, so that a row fits 80 columns: the width of a pipe and of a small terminal.
COLUMNS = (
    "variant", "speed\n[95 %]", "FPS", "p50\np90\np99 ms", "accuracy\n[95 %]", "load\nfirst\nms", "RSS\nfile\nMB"
)  # fmt: skip


def table(document: BenchDocument) -> Table:
    """A rich table: the host's state above, one row per variant, then what was executed, warnings, recommendation."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    by = "CPU time" if document.aa.metric == "cpu" else "wall time"
    title = f"{document.target}: host {document.status}, speed by {by} against {document.baseline}"
    caption = escape("\n".join(notes(document)))
    out = Table(
        title=escape(title),
        caption=caption,
        caption_justify="left",
        box=SIMPLE,
        show_lines=True,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in COLUMNS:
        out.add_column(escape(column), justify="left" if column == "variant" else "right", no_wrap=True)
    size = {model.id: model.bytes for model in document.models}
    for row in document.variants:
        out.add_row(*(escape(cell) for cell in cells(row, size[row.model], document.aa.metric)))
    return out


def cells(row: VariantRow, size_bytes: int, metric: str) -> tuple[str, ...]:
    """The row as text, in the order of `COLUMNS`; what was not measured is a dash, never a nicer number.

    `metric` is what the table's speeds are by; a row of several threads on a busy host says so when its own differs.
    """
    if row.ratio is None or row.latency_us is None or row.cold is None:
        return (row.id, "failed", *["-"] * (len(COLUMNS) - 2))
    point, low, high = row.ratio.headline
    by = "" if row.ratio.metric == metric else f" {row.ratio.metric}"
    speed = f"{point:.2f}x{by}\n[{low:.2f}, {high:.2f}]\n{row.ratio.verdict}"
    percentiles = (row.latency_us.p50, row.latency_us.p90, row.latency_us.p99)
    peak = None if row.memory is None or row.memory.vmhwm is None else row.memory.vmhwm / 1e6
    return (
        row.id,
        "baseline" if row.ratio.baseline == row.id else speed,
        fps(row),
        "\n".join(number(None if us is None else us / 1e3) for us in percentiles),
        accuracy(row),
        f"{number(row.cold.load_ms)}\n{number(row.cold.first_ms)}",
        f"{number(peak)}\n{number(size_bytes / 1e6)}",
    )


def fps(row: VariantRow) -> str:
    """Frames per second; on a busy host the estimate from CPU time, marked as one."""
    if row.fps is None:
        return "-"
    if row.fps.median is not None:
        return f"{row.fps.median:,.0f}"
    return "-" if row.fps.uncontended_est is None else f"~{row.fps.uncontended_est:,.0f}\n(CPU time)"


def accuracy(row: VariantRow) -> str:
    """The metric with its interval."""
    if row.accuracy is None:
        return "-"
    low, high = row.accuracy.ci95
    return f"{100 * row.accuracy.value:.2f} %\n[{100 * low:.1f}, {100 * high:.1f}]"


def number(value: float | None) -> str:
    """Three significant digits, at most four decimals below 0.001; a dash for what is not known."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.4f}"


def notes(document: BenchDocument) -> list[str]:
    """What was executed, warnings, failures, and the recommendation last."""
    executed = [f"{row.id} runs {summary(row.executed)}" for row in document.variants if row.executed]
    warnings = [f"note: {warning}" for warning in document.warnings]
    failed = [f"{row.id} failed: {row.reason}" for row in document.variants if row.status == "failed"]
    return [*executed, *warnings, *failed, document.recommended.reason]
