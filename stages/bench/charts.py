"""The charts of bench.html as inline SVG, written by hand: the device has no plotting library.

Every chart is a function of the document to SVG text; empty when the document has nothing to draw. Colours are those of
Okabe and Ito, which colour-blind people can tell apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import accumulate
from math import ceil, floor, log10

from stages.bench.document import BenchDocument, VariantRow

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 132, 16, 12, 40
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a6a00", "#666666")
STAGE_COLOURS = {"decode": "#56b4e9", "resize": "#009e73", "infer": "#0072b2", "result": "#e69f00"}

Scale = Callable[[float], float]


def charts(document: BenchDocument) -> list[tuple[str, str, str]]:
    """(title, what it shows, SVG) of every chart there is data for."""
    made = [
        ("Accuracy against latency", "Up and to the left is better. Bars: 95 % intervals.", pareto(document)),
        (
            "Speed against the baseline, round by round",
            "Each dot is one round; the bar is the median with its 95 % interval; the grey band is the noise floor.",
            ratio_strips(document),
        ),
        ("Latency distribution", "Share of inferences that took at most so long.", ecdf(document)),
        ("From picture to answer", "Mean time per frame in each stage.", stage_bars(document)),
        ("Minutes under load", "Frames per second of every slice.", timeline(document)),
    ]
    return [chart for chart in made if chart[2]]


def pareto(document: BenchDocument) -> str:
    """Accuracy over median latency of the first scenario's rows."""
    points = [
        (row, row.latency_us.p50 / 1e3, row.accuracy)
        for row in first_rows(document)
        if row.latency_us is not None and row.accuracy is not None
    ]
    if not points:
        return ""
    height = 300
    x, ticks = log_axis([value for _, value, _ in points])
    low = min(accuracy.ci95[0] for _, _, accuracy in points)
    high = max(accuracy.ci95[1] for _, _, accuracy in points)
    y = linear(low, high, height - BOTTOM, TOP)
    parts = [x_axis(x, ticks, height, "median latency, ms")]
    for value in steps(low, high):
        parts.append(line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid"))
        parts.append(text(LEFT - 6, y(value) + 4, f"{100 * value:.4g} %", "end"))
    spots: list[tuple[float, float]] = []
    colours = palette(document)
    for row, latency, accuracy in points:
        colour, px, py = colours[row.id], x(latency), y(accuracy.value)
        parts.append(line(px, y(accuracy.ci95[0]), px, y(accuracy.ci95[1]), "", colour))
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{colour}"/>')
        at = free_height(px, py, spots)
        right = px < WIDTH - 170
        parts.append(text(px + (9 if right else -9), at + 4, row.id, "start" if right else "end", colour))
    return svg(height, "Accuracy over median latency", parts)


def free_height(px: float, py: float, taken: list[tuple[float, float]]) -> float:
    """A height for a label near (px, py) that no earlier one has; added to `taken`."""
    while any(abs(px - x) < 170 and abs(py - y) < 15 for x, y in taken):
        py += 15
    taken.append((px, py))
    return py


def ratio_strips(document: BenchDocument) -> str:
    """Per-round speed ratios of every row that has a baseline other than itself."""
    rows = [row for row in document.variants if row.ratio is not None and row.ratio.baseline != row.id]
    series = [(row, round_ratios(row, document)) for row in rows]
    ends = [value for row, dots in series if row.ratio for value in (*dots, *row.ratio.headline)]
    if not ends:
        return ""
    height = TOP + BOTTOM + 34 * len(series)
    x, ticks = log_axis([*ends, 1.0])
    parts = [x_axis(x, ticks, height, "times the baseline's speed; right is faster")]
    parts.append(line(x(1.0), TOP, x(1.0), height - BOTTOM, "one"))
    colours = palette(document)
    for number, (row, dots) in enumerate(series):
        assert row.ratio is not None
        py, colour = TOP + 34 * number + 17, colours[row.id]
        noise = floor_of(row, document)
        left, right = x(max(1 / (1 + noise), 1e-9)), x(1 + noise)
        parts.append(f'<rect x="{left:.1f}" y="{py - 13}" width="{right - left:.1f}" height="26" class="band"/>')
        parts += [
            f'<circle cx="{x(value):.1f}" cy="{py + (i % 5 - 2) * 3.5:.1f}" r="2.2" fill="{colour}" opacity="0.35"/>'
            for i, value in enumerate(dots)
        ]
        point, low, high = row.ratio.headline
        parts.append(line(x(low), py, x(high), py, "interval", colour))
        parts.append(line(x(point), py - 9, x(point), py + 9, "interval", colour))
        parts += label(row, py, colour)
    return svg(height, "Speed against the baseline in every round", parts)


def floor_of(row: VariantRow, document: BenchDocument) -> float:
    """The noise floor of the row's scenario."""
    facts = document.scenarios.get(row.scenario)
    return (facts.aa if facts else document.aa).noise_floor


def round_ratios(row: VariantRow, document: BenchDocument) -> list[float]:
    """The baseline's cost over the row's, in every round both were measured in, by the row's headline metric."""
    assert row.ratio is not None
    base = {(entry.launch, entry.round): entry for entry in document.row(row.ratio.baseline).rounds}

    def cost(entry: object) -> float:
        values = vars(entry)
        if row.ratio is not None and row.ratio.metric == "cpu":
            return float(values["cpu_s"] / values["n"])
        return float(values["mean_us"] or values["wall_s"] * 1e6 / values["n"])

    pairs = [(entry, base[key]) for entry in row.rounds if (key := (entry.launch, entry.round)) in base]
    return [cost(theirs) / cost(mine) for mine, theirs in pairs if cost(mine) > 0]


def ecdf(document: BenchDocument) -> str:
    """Cumulative distribution of latencies, from the histograms of the first scenario's rows."""
    rows = [row for row in first_rows(document) if row.latency_us is not None and row.latency_us.hist]
    if not rows:
        return ""
    height = 320
    # The slowest thousandth would squeeze the rest; the maximum is in the table of the document.
    edges = [quantile_edges(row) for row in rows]
    x, ticks = log_axis([value / 1e3 for pair in edges for value in pair])
    y = linear(0.0, 1.0, height - BOTTOM, TOP)
    parts = [x_axis(x, ticks, height, "latency, ms (log; up to the 99.9 % point)")]
    for share in (0.0, 0.25, 0.5, 0.75, 0.9, 0.99):
        parts.append(line(LEFT, y(share), WIDTH - RIGHT, y(share), "grid"))
        parts.append(text(LEFT - 6, y(share) + 4, f"{100 * share:g} %", "end"))
    colours = palette(document)
    for row, (first, last) in zip(rows, edges, strict=True):
        assert row.latency_us is not None
        shares = accumulate(count / row.latency_us.n for _, count in row.latency_us.hist)
        points = [(x(edge / 1e3), y(min(1.0, share))) for (edge, _), share in
                  zip(row.latency_us.hist, shares, strict=True) if edge <= last]  # fmt: skip
        points.insert(0, (x(first / 1e3), y(0.0)))
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[row.id]}" stroke-width="2"/>')
    return svg(height, "Latency distribution", parts) + legend({row.id: colours[row.id] for row in rows})


def quantile_edges(row: VariantRow) -> tuple[float, float]:
    """Microseconds between which all but the slowest thousandth of the latencies lie."""
    assert row.latency_us is not None
    seen, last = 0, row.latency_us.hist[-1][0]
    for edge, count in row.latency_us.hist:
        seen += count
        if seen >= 0.999 * row.latency_us.n:
            last = edge
            break
    return row.latency_us.min, max(last, row.latency_us.hist[0][0] * 1.01)


def stage_bars(document: BenchDocument) -> str:
    """Stacked stages of every end-to-end row."""
    rows = [(row, row.stage_us) for row in document.variants if row.stage_us]
    if not rows:
        return ""
    longest = max(sum(stages.values()) for _, stages in rows) / 1e3
    height, x = TOP + BOTTOM + 34 * len(rows), linear(0.0, longest, LEFT, WIDTH - RIGHT)
    parts = [x_axis(x, steps(0.0, longest), height, "ms per frame")]
    for number, (row, stages) in enumerate(rows):
        at, py = 0.0, TOP + 34 * number
        for name, us in stages.items():
            left, right = x(at), x(at + us / 1e3)
            colour = STAGE_COLOURS.get(name, "#666666")
            parts.append(
                f'<rect x="{left:.1f}" y="{py + 5}" width="{max(0.5, right - left):.1f}" height="24" fill="{colour}">'
                f"<title>{escape(name)}: {us / 1e3:.3g} ms</title></rect>"
            )
            at += us / 1e3
        parts += label(row, py + 17, "currentColor")
    return svg(height, "Time in each stage", parts) + legend(
        {name: STAGE_COLOURS.get(name, "#666666") for name in rows[0][1]}
    )


def timeline(document: BenchDocument) -> str:
    """Frames per second over the minutes of `sustain`."""
    rows = [row for row in document.variants if row.sustain is not None]
    if not rows:
        return ""
    series = []
    for row in rows:
        ends = list(accumulate(entry.wall_s / 60 for entry in row.rounds))
        series.append([(at, row.batch * entry.n / entry.wall_s) for at, entry in zip(ends, row.rounds, strict=True)])
    height = 280
    most = max(fps for points in series for _, fps in points)
    longest = max(points[-1][0] for points in series)
    x, y = linear(0.0, longest, LEFT, WIDTH - RIGHT), linear(0.0, most, height - BOTTOM, TOP)
    parts = [x_axis(x, steps(0.0, longest), height, "minutes")]
    for value in steps(0.0, most):
        parts.append(line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid"))
        parts.append(text(LEFT - 6, y(value) + 4, f"{value:,.4g}", "end"))
    colours = palette(document)
    for row, points in zip(rows, series, strict=True):
        path = " ".join(f"{x(at):.1f},{y(fps):.1f}" for at, fps in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[row.id]}" stroke-width="1.5"/>')
    return svg(height, "Frames per second under load", parts) + legend({row.id: colours[row.id] for row in rows})


# --- parts -----------------------------------------------------------------------------------------------------------


def first_rows(document: BenchDocument) -> list[VariantRow]:
    """The working rows of the first scenario."""
    first = document.row(document.baseline).scenario
    return [row for row in document.variants if row.scenario == first and row.status != "failed"]


def palette(document: BenchDocument) -> dict[str, str]:
    """Row id -> colour: one per target, runtime and precision (and number of threads), the same in every scenario."""
    order: dict[tuple[object, ...], int] = {}
    found: dict[str, str] = {}
    alike: Counter[tuple[object, ...]] = Counter()
    for row in document.variants:
        kind = (row.target, row.runtime, row.precision)
        alike[kind, row.scenario] += 1
        number = order.setdefault((*kind, alike[kind, row.scenario]), len(order))
        found[row.id] = COLOURS[number % len(COLOURS)]
    return found


def label(row: VariantRow, y: float, colour: str) -> list[str]:
    """A row's id beside its strip around height `y`, the scenario in a line of its own."""
    name = row.id.removesuffix(f"-{row.scenario}")
    lines = [name if len(name) <= 17 else f"{name[:16]}…", *([] if row.scenario == "single" else [row.scenario])]
    top = y + 4 - 7 * (len(lines) - 1)
    return [text(4, top + 14 * number, words, "start", colour, row.id) for number, words in enumerate(lines)]


def linear(low: float, high: float, at_low: float, at_high: float) -> Scale:
    """A value to its place, with a little room at both ends when `low` is not 0."""
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = (low if low == 0 else low - room), high + room
    return lambda value: at_low + (value - low) / (high - low) * (at_high - at_low)


def steps(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`, about five."""
    span = high - low
    if span <= 0:
        return [low]
    size = 10.0 ** floor(log10(span / 4))
    size *= next(factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 6)
    return [
        round(ceil(low / size) * size + i * size, 10) for i in range(8) if ceil(low / size) * size + i * size <= high
    ]


def log_axis(values: Sequence[float]) -> tuple[Scale, list[float]]:
    """The place of a positive value, left to right, and its ticks at 1, 2 and 5 times powers of ten (or finer)."""
    low, high = min(values) / 1.06, max(values) * 1.06
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) < 3:
        ticks = steps(low, high)
    if len(ticks) > 10:
        ticks = [tick for tick in ticks if abs(log10(tick) - round(log10(tick))) < 1e-9]
    a, b = log10(low), log10(high)
    return lambda value: LEFT + (log10(value) - a) / (b - a) * (WIDTH - RIGHT - LEFT), ticks


def x_axis(x: Scale, ticks: Sequence[float], height: int, label: str) -> str:
    """Ticks with their values, and what they mean."""
    base = height - BOTTOM
    parts = [line(LEFT, base, WIDTH - RIGHT, base, "axis")]
    for tick in ticks:
        parts += [line(x(tick), TOP, x(tick), base, "grid"), text(x(tick), base + 15, f"{tick:.4g}", "middle")]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, height - 6, label, "middle"))
    return "".join(parts)


def line(x1: float, y1: float, x2: float, y2: float, kind: str, colour: str = "") -> str:
    """One line; `kind` is its CSS class."""
    stroke = f' stroke="{colour}" stroke-width="2"' if colour else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{stroke}/>'


def text(x: float, y: float, words: str, anchor: str, colour: str = "currentColor", title: str = "") -> str:
    """One line of text; `title` is its tooltip."""
    tip = f"<title>{escape(title)}</title>" if title else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}{tip}</text>'


def legend(colours: Mapping[str, str]) -> str:
    """Names with their colours, as HTML below a chart."""
    items = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in colours.items()
    )
    return f'<div class="legend">{items}</div>'


def svg(height: int, label: str, parts: Sequence[str]) -> str:
    """The whole drawing; it scales with the page."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
