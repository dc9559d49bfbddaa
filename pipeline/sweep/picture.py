"""The Pareto front as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.sweep.document import SweepDocument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REACH = 1.5  # height shown below the good trials, over the height of those (our judgement)
GREY, BLUE = "#8a8f98", "#1f5fa8"


def lowest_shown(values: Sequence[float], front: Sequence[float]) -> float:
    """Where the picture ends below: at the lowest value, unless failed trials would press the front into a line.

    Never above the front's own lowest, nor above the lower quartile of all.
    """
    ordered = sorted(values)
    quartile = ordered[len(ordered) // 4]
    top, base = max(front), min(*front, quartile)
    return max(ordered[0], base - REACH * max(top - base, 0.005))


def write_pareto(file: Path, document: SweepDocument) -> None:
    """Every complete trial as a point, val against the latency of its INT8 file, and the front as steps."""
    from matplotlib.figure import Figure

    done = [row for row in document.trials if row.state == "complete"]
    front = [document.row(number) for number in document.best]
    metric = str(done[0].facts["metric"])
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    again = document.remeasured_ms
    times = {row.number: again.get(str(row.number), row.values["latency_ms"]) for row in done}
    floor = lowest_shown([row.values["val"] for row in done], [row.values["val"] for row in front])
    for row in done:
        if row.number not in document.best:
            # Hollow: its time is of another moment, and its place beside the others not exact.
            fill = "none" if again and str(row.number) not in again else GREY
            value, shape = max(row.values["val"], floor), "o" if row.values["val"] >= floor else "v"
            axes.plot(times[row.number], value, shape, color=GREY, markerfacecolor=fill, markersize=5)
    left_out = sum(row.values["val"] < floor for row in done)
    xs, ys = [times[row.number] for row in front], [row.values["val"] for row in front]
    axes.step(xs, ys, where="post", color=BLUE, linewidth=1.4, zorder=2)
    axes.plot(xs, ys, "o", color=BLUE, markersize=7, zorder=3)
    for row, x, y in zip(front, xs, ys, strict=True):
        axes.annotate(f"{row.number}", (x, y), xytext=(-5, 5), textcoords="offset points", color=BLUE, ha="right")
    axes.set_xlabel("latency of one INT8 inference, median, ms (left is better)")
    axes.set_ylabel(f"{metric} of the INT8 file on val, n = {done[0].facts['val_n']} (up is better)")
    how = ", measured again in one benchmark" if len(again) == len(done) else ", the filled ones in one benchmark"
    below = f"; {left_out} far below, as triangles" if left_out else ""
    axes.set_title(f"{document.name}: {len(done)} trials{how if again else ''}{below}", fontsize=10, loc="left")
    ruled(axes)
    figure.savefig(file)


def ruled(axes: Axes) -> None:
    """Cost along a logarithmic axis, a share up the other, and no more lines than help to read them."""
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, ScalarFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(visible=True, which="major", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(0.12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
