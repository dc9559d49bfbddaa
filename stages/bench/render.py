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
    title = f"{document.target}: host {document.status}"
    if document.row(document.baseline).ratio is not None:
        title += f", speed by {by} against {document.baseline}"
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
    # Long ids break before the scenario, so that the table stays as wide as a small terminal.
    name = row.id.removesuffix(f"-{row.scenario}") + ("" if row.scenario == "single" else f"\n{row.scenario}")
    if row.status == "failed" or row.cold is None:
        return (name, "failed", *["-"] * (len(COLUMNS) - 2))
    latency = row.latency_us
    percentiles = (latency.p50, latency.p90, latency.p99) if latency else (None,)
    peak = None if row.memory is None or row.memory.vmhwm is None else row.memory.vmhwm / 1e6
    return (
        name,
        speed(row, metric),
        fps(row),
        "\n".join(number(None if us is None else us / 1e3) for us in percentiles),
        accuracy(row),
        f"{number(row.cold.load_ms)}\n{number(row.cold.first_ms)}",
        f"{number(peak)}\n{number(size_bytes / 1e6)}",
    )


def speed(row: VariantRow, metric: str) -> str:
    """The ratio to the baseline with its interval and verdict; of `sustain` the end against the beginning."""
    if row.sustain is not None:
        point, low, high = row.sustain.cpu
        return f"{point:.2f}x\n[{low:.2f}, {high:.2f}]\nend/start cpu"
    if row.ratio is None:
        return "-"
    if row.ratio.baseline == row.id:
        return "baseline"
    point, low, high = row.ratio.headline
    by = "" if row.ratio.metric == metric else f" {row.ratio.metric}"
    return f"{point:.2f}x{by}\n[{low:.2f}, {high:.2f}]\n{row.ratio.verdict}"


def fps(row: VariantRow) -> str:
    """Frames per second; on a busy host the estimate from CPU time, marked as one; of a camera what was missed."""
    if row.camera is not None:
        return f"{100 * row.camera.miss_rate:.1f} %\nmissed at\n{row.camera.fps_target:g}"
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
    """What was executed and found per scenario, warnings, gates, failures, and the recommendation last."""
    warnings = [f"note: {warning}" for warning in document.warnings]
    found = document.comparison
    compared = [f"{gate.outcome}: {gate.variant}: {gate.reason}" for gate in found.gates] if found else []
    return [*details(document), *warnings, *(found.notes if found else ()), *compared, document.recommended.reason]


def details(document: BenchDocument) -> list[str]:
    """What the table has no column for, in sentences."""
    said: list[str] = []
    known: set[tuple[str, ...]] = set()
    for row in document.variants:
        runs = (row.runtime, row.precision, row.target, summary(row.executed))
        if row.executed and runs not in known:
            said.append(f"{row.id} runs {runs[-1]}")
        known.add(runs)
    judged: set[tuple[str, ...]] = set()
    for row in document.variants:
        answers = (row.runtime, row.precision, row.target)
        said += _answers(row) if answers not in judged else []
        judged.add(answers)
    for row in document.variants:
        said += _of_scenario(row)
    return said + [f"{row.id} failed: {row.reason}" for row in document.variants if row.status == "failed"]


def _answers(row: VariantRow) -> list[str]:
    """How a row's answers differ from those of FP32 and of the baseline; nothing of the baseline itself."""
    said = []
    if row.accuracy is not None and row.accuracy.vs_fp32 is not None and row.precision != "fp32":
        paired = row.accuracy.paired
        told = f" ({paired.better} items better, {paired.worse} worse, p = {paired.p:.2g})" if paired else ""
        said.append(f"{row.accuracy.metric} {100 * row.accuracy.vs_fp32:+.2f} points against FP32{told}")
    if row.difference is not None and row.difference.agreement is not None and row.difference.baseline != row.id:
        agreement = f"{100 * row.difference.agreement:.4g} % of {row.difference.n}"
        said.append(f"same answer as {row.difference.baseline} on {agreement}")
    return [f"{row.id}: {', '.join(said)}"] if said else []


def _of_scenario(row: VariantRow) -> list[str]:
    said = []
    if sweep := row.config_effective.get("jobs_sweep"):
        rates = ", ".join(f"{jobs}: {rate:,.0f}/s" for jobs, rate in sweep.items())
        said.append(f"{row.id} runs {row.config_effective['jobs']} at a time; tried {rates}")
    if row.camera is not None:
        low, high = row.camera.ci95
        said.append(
            f"{row.id}: {row.camera.missed} of {row.camera.frames} frames missed at {row.camera.fps_target:g} FPS "
            f"[{100 * low:.1f}, {100 * high:.1f}] %, {row.camera.cpu_percent:.1f} % of one CPU"
        )
    if row.stage_us is not None:
        said.append(f"{row.id}: " + ", ".join(f"{name} {number(us / 1e3)} ms" for name, us in row.stage_us.items()))
    if row.sustain is not None:
        point, low, high = row.sustain.cpu
        before, after = row.sustain.temp_c
        heat = "" if before is None or after is None else f", {before:.0f} -> {after:.0f} C"
        said.append(
            f"{row.id}: after {row.sustain.minutes:.2g} minutes {point:.2f}x [{low:.2f}, {high:.2f}] the speed of the "
            f"start by CPU time{heat}"
        )
    return said
