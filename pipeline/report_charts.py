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


@dataclass(frozen=True, slots=True)
class Point:
    """One variant in the trade-off chart: median latency in ms, share right with its 95 % interval."""

    label: str
    latency_ms: float
    accuracy: float
    ci95: tuple[float, float] | None
    recommended: bool


@dataclass(frozen=True, slots=True)
class Ratio:
    """One variant in the speed chart: speed against the baseline, median and 95 % interval."""

    label: str
    ratio: tuple[float, float, float]
    recommended: bool


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
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with _axes(SIZE_IN) as (figure, axes):
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


def tradeoff(points: Sequence[Point], metric: str) -> str:
    """Accuracy over latency, one labelled point per variant; better is up and to the left."""
    from matplotlib.ticker import PercentFormatter

    with _axes((4.8, 3.3)) as (figure, axes):
        for point in points:
            colour = SECOND if point.recommended else FIRST
            low, high = point.ci95 or (point.accuracy, point.accuracy)
            axes.plot([point.latency_ms] * 2, [low, high], color=colour, linewidth=1.1, alpha=0.6)
            axes.plot(
                [point.latency_ms], [point.accuracy], "D" if point.recommended else "o", color=colour, markersize=7
            )
        axes.margins(0.16, 0.22)
        left, right = axes.get_xlim()
        axes.set_xlim(max(left, 0.0), right)
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.0 + 0.15 * (1.0 - axes.get_ylim()[0])))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_xlabel("median latency, ms (left is faster)")
        axes.set_ylabel(f"{metric} on the evaluation sample")
        _place_labels(figure, axes, points)
        return _svg(figure, "tradeoff", f"{metric} over median latency of {len(points)} variants")


def _place_labels(figure: Any, axes: Any, points: Sequence[Point]) -> None:
    """Write each label beside its point, at the first of a few places that hits no other label or point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.draw_without_rendering()
    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    spots = axes.transData.transform([(point.latency_ms, point.accuracy) for point in points])
    frame = axes.get_window_extent(renderer)
    taken: list[Any] = []
    places = [(9, 5, "left"), (-9, 5, "right"), (9, -13, "left"), (-9, -13, "right"), (9, 18, "left"), (9, -26, "left")]
    places += [(-9, 18, "right"), (-9, -26, "right")]
    for point in points:
        for place in places:
            box = _annotate(axes, point, place).get_window_extent(renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            hits = any(box.overlaps(other) for other in taken) or any(box.contains(*spot) for spot in spots)
            if inside and not hits:
                break
            axes.texts[-1].remove()
        else:
            box = _annotate(axes, point, places[0]).get_window_extent(renderer)
        taken.append(box)


def _annotate(axes: Any, point: Point, place: tuple[int, int, str]) -> Any:
    x, y, align = place
    at = (point.latency_ms, point.accuracy)
    return axes.annotate(point.label, at, (x, y), textcoords="offset points", ha=align, fontsize=9)


def speed(ratios: Sequence[Ratio], baseline: str) -> str:
    """Speed against the baseline with 95 % intervals, one row per variant; right of the line is faster."""
    with _axes((4.8, 1.0 + 0.34 * len(ratios))) as (figure, axes):
        axes.axvline(1.0, color=MUTED, linewidth=1.0)
        for row, item in enumerate(ratios):
            colour = SECOND if item.recommended else FIRST
            median, low, high = item.ratio
            axes.plot([low, high], [row, row], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
            axes.plot([median], [row], "D" if item.recommended else "o", color=colour, markersize=6.5)
        axes.set_yticks(range(len(ratios)), [item.label for item in ratios], color=INK)
        axes.set_ylim(len(ratios) - 0.5, -0.5)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.9), max(high, 1.1))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"speed against {baseline} (right is faster)")
        return _svg(figure, "speed", f"speed of {len(ratios)} variants against {baseline}, with 95 % intervals")
