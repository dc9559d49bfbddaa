"""The benchmark for people: one table, then what to know about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.bench.census import summary
from stages.bench.document import BenchDocument, VariantRow

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "variant", "speed", "verdict", "FPS", "p50 / p90 / p99 ms", "accuracy", "load + first ms", "RSS MB", "file MB",
    "executed",
)  # fmt: skip
LEFT = ("variant", "verdict", "executed")


def table(document: BenchDocument) -> Table:
    """A rich table: the host's state above, one line per variant, warnings and the recommendation below."""
    from rich.markup import escape
    from rich.table import Table

    title = f"{document.target}: host {document.status}, preset {document.preset}, baseline {document.baseline}"
    out = Table(title=escape(title), caption=escape("\n".join(notes(document))), caption_justify="left")
    for column in COLUMNS:
        out.add_column(column, justify="left" if column in LEFT else "right", overflow="fold")
    size = {model.id: model.bytes for model in document.models}
    for row in document.variants:
        out.add_row(*(escape(cell) for cell in cells(row, size[row.model])))
    return out


def cells(row: VariantRow, size_bytes: int) -> tuple[str, ...]:
    """The row as text, in the order of `COLUMNS`; what was not measured is a dash, never a nicer number."""
    if row.ratio is None or row.latency_us is None or row.cold is None:
        return (row.id, "-", "failed", *["-"] * (len(COLUMNS) - 3))
    baseline = row.ratio.baseline == row.id
    point, low, high = row.ratio.headline
    percentiles = (row.latency_us.p50, row.latency_us.p90, row.latency_us.p99)
    peak = None if row.memory is None or row.memory.vmhwm is None else row.memory.vmhwm / 1e6
    return (
        row.id,
        "1.00x" if baseline else f"{point:.2f}x [{low:.2f}, {high:.2f}]",
        "baseline" if baseline else row.ratio.verdict,
        fps(row),
        " / ".join(number(None if us is None else us / 1e3) for us in percentiles),
        accuracy(row),
        f"{number(row.cold.load_ms)} + {number(row.cold.first_ms)}",
        number(peak),
        number(size_bytes / 1e6),
        summary(row.executed) or "unknown",
    )


def fps(row: VariantRow) -> str:
    """Frames per second; on a busy host the estimate from CPU time, marked as one."""
    if row.fps is None:
        return "-"
    if row.fps.median is not None:
        return f"{row.fps.median:,.0f}"
    return "-" if row.fps.uncontended_est is None else f"~{row.fps.uncontended_est:,.0f} (CPU time)"


def accuracy(row: VariantRow) -> str:
    """The metric with its interval."""
    if row.accuracy is None:
        return "-"
    low, high = row.accuracy.ci95
    return f"{100 * row.accuracy.value:.2f} % [{100 * low:.1f}, {100 * high:.1f}]"


def number(value: float | None) -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def notes(document: BenchDocument) -> list[str]:
    """Warnings, failures, and the recommendation last."""
    failed = [f"{row.id} failed: {row.reason}" for row in document.variants if row.status == "failed"]
    return [*(f"note: {warning}" for warning in document.warnings), *failed, document.recommended.reason]
