"""The report's charts: SVG text to be put inline, coloured by the page's CSS variables, so light and dark both work."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from edge_demo.errors import missing_extra
from stages.reliability import Reliability

if TYPE_CHECKING:
    from collections.abc import Iterator

# matplotlib needs colours while drawing; each stands for a CSS variable and is replaced by it in the SVG.
INK, MUTED, LINE, FIRST, SECOND, SURFACE = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", FIRST: "--first", SECOND: "--second", SURFACE: "--surface"}
SIZE_IN = (4.8, 3.0)  # 346 x 216 CSS points: text keeps its size on a phone
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: selectable, and set in the page's font
    "font.family": "DejaVu Sans",  # bundled with matplotlib, so measuring text needs no system font
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


PR_DASHES: Any = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (2, 2)))
MARKERS = {"fp32": "o", "int8": "D", "bf16": "s", "f16": "^"}
COLOURS = {"onnxruntime": FIRST, "openvino": SECOND}


@dataclass(frozen=True, slots=True)
class Variant:
    """One bench row, as far as a chart needs it: colour says the runtime, shape the precision, a ring the advice."""

    name: str
    runtime: str
    precision: str
    label: str
    """For the legend, e.g. `OpenVINO INT8`; equal labels share an entry."""
    recommended: bool


@dataclass(frozen=True, slots=True)
class Point:
    """Median latency in ms against the share right, with its 95 % interval."""

    variant: Variant
    latency_ms: float
    accuracy: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Ratio:
    """Speed against the baseline: median and 95 % interval."""

    variant: Variant
    ratio: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a curve chart; gaps are None."""

    label: str
    values: Sequence[float | None]


@contextmanager
def _axes(size_in: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """A figure and its one axes, in the report's style."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("the report", "matplotlib", "train") from error
    with rc_context(STYLE):
        figure = Figure(figsize=size_in, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def _svg(figure: Any, name: str, description: str) -> str:
    """The figure as an `<svg>` element without prolog, metadata or outside names; ids start with `name`."""
    from matplotlib import rc_context

    file = io.StringIO()
    # The salt makes the ids, and so the report, the same on every run.
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1))
    text = re.sub(r"(font: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--font)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(description, quote=True)}"', 1).strip()


def curves(name: str, what: str, series: Sequence[Series], best_epoch: int, *, as_percent: bool) -> str:
    """Values per epoch (1, 2, ...), one line per series, and a mark at the epoch that was kept."""
    with _axes(SIZE_IN) as (figure, axes):
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        for line, colour, dashes in zip(series, (FIRST, SECOND), ("-", (0, (4, 2))), strict=False):
            values = [float("nan") if value is None else value for value in line.values]
            epochs = range(1, len(values) + 1)
            marker = "o" if len(values) < 3 else None  # one or two epochs make no visible line
            axes.plot(epochs, values, color=colour, linestyle=dashes, marker=marker, label=line.label)
        axes.axvline(best_epoch, color=MUTED, linewidth=0.9, linestyle=":", label=f"kept: epoch {best_epoch}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if as_percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.grid(axis="x", visible=False)
        axes.legend(labelcolor=INK, handlelength=1.8)
        return _svg(figure, name, f"{what} per epoch: {', '.join(line.label for line in series)}")


def diagram(found: Reliability) -> str:
    """Share right over the score, per bin; on the dashed line a score means what it says."""
    with _axes((4.8, 3.5)) as (figure, axes):
        from matplotlib.ticker import PercentFormatter

        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)), label="as it should be")
        for part in found.bins:
            axes.bar(part.low, part.right, width=part.high - part.low, align="edge", color=FIRST, alpha=0.25)
        scores, shares = [part.score for part in found.bins], [part.right for part in found.bins]
        areas = [12 + 120 * part.n / found.n for part in found.bins]
        axes.scatter(scores, shares, s=areas, color=FIRST, label="answers (area: how many)", zorder=3, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score of the answer", ylabel="share right")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9)
        return _svg(figure, "reliability", f"share right over the score, {found.n} answers in {len(found.bins)} bins")


def precision(series: Sequence[Series]) -> str:
    """Precision over recall at IoU 0.5: the mean of the classes, and each of them where they are few."""
    with _axes((4.8, 3.5)) as (figure, axes):
        from matplotlib.ticker import PercentFormatter

        recalls = [index / (len(series[0].values) - 1) for index in range(len(series[0].values))]
        columns = zip(*(line.values for line in series), strict=True)
        means = [sum(value or 0.0 for value in column) / len(series) for column in columns]
        for line, dashes in zip(series, PR_DASHES if len(series) <= len(PR_DASHES) else (), strict=False):
            axes.plot(recalls, line.values, color=SECOND, linewidth=1.3, linestyle=dashes, label=line.label)
        axes.plot(recalls, means, color=FIRST, label=f"mean of {len(series)} classes")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision, IoU 0.5")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9)
        return _svg(figure, "precision", f"precision over recall of {len(series)} classes")


def tradeoff(points: Sequence[Point], metric: str) -> str:
    """Accuracy over latency, one mark per variant; better is up and to the left."""
    with _axes((4.8, 3.5)) as (figure, axes):
        from matplotlib.ticker import PercentFormatter

        for point in points:
            low, high = point.ci95 or (point.accuracy, point.accuracy)
            colour = COLOURS.get(point.variant.runtime, MUTED)
            axes.plot([point.latency_ms] * 2, [low, high], color=colour, linewidth=1.3, alpha=0.45)
            _mark(axes, point.variant, point.latency_ms, point.accuracy)
        axes.margins(0.1, 0.08)
        axes.set_xlim(left=0.0)  # latency has a true zero: distances on the page are ratios
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.0 + 0.1 * (1.0 - axes.get_ylim()[0])))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_xlabel("median latency, ms (left is faster)")
        axes.set_ylabel(f"{metric}, evaluation sample")
        _legend(figure, axes)
        return _svg(figure, "tradeoff", f"{metric} over median latency of {len(points)} variants")


def speed(ratios: Sequence[Ratio], baseline: str) -> str:
    """Speed against the baseline with 95 % intervals, one row per variant; right of the line is faster."""
    with _axes((4.8, 1.0 + 0.36 * len(ratios))) as (figure, axes):
        axes.axvline(1.0, color=MUTED, linewidth=1.0)
        for row, item in enumerate(ratios):
            median, low, high = item.ratio
            colour = COLOURS.get(item.variant.runtime, MUTED)
            axes.plot([low, high], [row, row], color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="butt")
            _mark(axes, item.variant, median, row)
        axes.set_yticks(range(len(ratios)), [item.variant.name for item in ratios])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(ratios) - 0.5, -0.5)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.9), max(high, 1.1))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"speed against {baseline} (right is faster)")
        return _svg(figure, "speed", f"speed of {len(ratios)} variants against {baseline}, with 95 % intervals")


def _mark(axes: Any, variant: Variant, x: float, y: float) -> None:
    if variant.recommended:
        axes.plot([x], [y], "o", color="none", markeredgecolor=INK, markersize=13, label="recommended")
    marker, colour = MARKERS.get(variant.precision, "v"), COLOURS.get(variant.runtime, MUTED)
    axes.plot([x], [y], marker, color=colour, markersize=6.5, label=variant.label)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9)
