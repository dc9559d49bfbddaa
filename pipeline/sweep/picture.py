"""The Pareto front as a picture."""

from __future__ import annotations

from pathlib import Path

from pipeline.sweep.document import SweepDocument

GREY, BLUE = "#8a8f98", "#1f5fa8"


def write_pareto(file: Path, document: SweepDocument) -> None:
    """Every complete trial as a point, val against the latency of its INT8 file, and the front as steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    done = [row for row in document.trials if row.state == "complete"]
    front = [document.row(number) for number in document.best]
    metric = str(done[0].facts["metric"])
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row in done:
        if row.number not in document.best:
            axes.plot(row.values["latency_ms"], row.values["val"], "o", color=GREY, markersize=5)
    times = [document.remeasured_ms.get(str(row.number), row.values["latency_ms"]) for row in front]
    values = [row.values["val"] for row in front]
    axes.step(times, values, where="post", color=BLUE, linewidth=1.4, zorder=2)
    axes.plot(times, values, "o", color=BLUE, markersize=7, zorder=3)
    for row, x, y in zip(front, times, values, strict=True):
        axes.annotate(f"{row.number}", (x, y), xytext=(-5, 5), textcoords="offset points", color=BLUE, ha="right")
    axes.set_xscale("log")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter(ScalarFormatter())
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.set_xlabel("latency of one INT8 inference, median, ms (left is better)")
    axes.set_ylabel(f"{metric} of the INT8 file on val, n = {done[0].facts['val_n']} (up is better)")
    again = ", the front measured again in one benchmark" if document.remeasured_ms else ""
    axes.set_title(f"{document.name}: {len(done)} trials{again}", fontsize=10, loc="left")
    axes.grid(visible=True, which="major", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(0.12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file)
