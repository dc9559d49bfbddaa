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
    again = document.remeasured_ms
    times = {row.number: again.get(str(row.number), row.values["latency_ms"]) for row in done}
    for row in done:
        if row.number not in document.best:
            # Hollow: its time is of another moment, and its place beside the others not exact.
            fill = "none" if again and str(row.number) not in again else GREY
            axes.plot(times[row.number], row.values["val"], "o", color=GREY, markerfacecolor=fill, markersize=5)
    xs, ys = [times[row.number] for row in front], [row.values["val"] for row in front]
    axes.step(xs, ys, where="post", color=BLUE, linewidth=1.4, zorder=2)
    axes.plot(xs, ys, "o", color=BLUE, markersize=7, zorder=3)
    for row, x, y in zip(front, xs, ys, strict=True):
        axes.annotate(f"{row.number}", (x, y), xytext=(-5, 5), textcoords="offset points", color=BLUE, ha="right")
    axes.set_xscale("log")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter(ScalarFormatter())
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.set_xlabel("latency of one INT8 inference, median, ms (left is better)")
    axes.set_ylabel(f"{metric} of the INT8 file on val, n = {done[0].facts['val_n']} (up is better)")
    how = ", measured again in one benchmark" if len(again) == len(done) else ", the filled ones in one benchmark"
    axes.set_title(f"{document.name}: {len(done)} trials{how if again else ''}", fontsize=10, loc="left")
    axes.grid(visible=True, which="major", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(0.12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file)
