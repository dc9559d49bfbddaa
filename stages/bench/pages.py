"""A benchmark as files for people: `bench.md` for a CI summary, `bench.html` with charts. Standard library only."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from string import Template

from stages.bench import charts
from stages.bench.document import BenchDocument, GateRow, VariantRow
from stages.bench.render import COLUMNS, cells, details

HOW_TO_READ = (
    "Speed is the median of the ratios within each round; the interval is a 95 % hierarchical bootstrap over launches "
    "and rounds. Variants whose difference lies within the noise floor are called the same. Times and frames per "
    "second are given only where the host was quiet, percentiles only where there are enough inferences for them."
)


def headline(document: BenchDocument) -> str:
    """The verdict in one line."""
    return f"Host {document.status}. {document.recommended.reason}"


def host_line(document: BenchDocument) -> str:
    """What it was measured on."""
    system = document.system
    quota = f", quota {system.cgroup_quota:g} CPUs" if system.cgroup_quota is not None else ""
    load = f", load {system.loadavg[0]:.2f}" if system.loadavg else ""
    versions = ", ".join(f"{name} {number}" for name, number in document.software.items())
    return (
        f"{system.cpu_model or system.arch}, {system.cores_effective} of {system.cores_logical} CPUs usable{quota}, "
        f"{system.os} {system.kernel}{load}; {versions}"
    )


def method_line(document: BenchDocument) -> str:
    """How long and how often."""
    method, same = document.method, document.aa
    aa = "not measured" if same.ci95 is None else f"{same.median:.3f} [{same.ci95[0]:.3f}, {same.ci95[1]:.3f}]"
    return (
        f"{method['launches']:.0f} launches x {method['rounds']:.0f} rounds, slices of {method['slice_s']:g} s, "
        f"seed {document.seed}; the baseline against itself (A/A): {aa}, noise floor {100 * same.noise_floor:.1f} %; "
        f"{document.seconds:.0f} s in all"
    )


def rows_as_text(document: BenchDocument) -> list[list[str]]:
    """The table's cells, one line each."""
    size = {model.id: model.bytes for model in document.models}
    return [
        [*_one_line(cells(row, size.get(row.model, 0), document.aa.metric)), row.status] for row in document.variants
    ]


def heads() -> list[str]:
    """The table's columns, one line each."""
    return [*_one_line(COLUMNS), "host"]


def _one_line(row: Sequence[str]) -> list[str]:
    """Several numbers in a cell are kept apart by a slash, words and intervals by a space."""
    return [cell.replace("\n", " / " if "\n" in column and "[" not in column else " ").replace(" / ms", " ms").replace(
            " / MB", " MB") for cell, column in zip(row, COLUMNS, strict=True)]  # fmt: skip


def markdown(document: BenchDocument) -> str:
    """The benchmark as Markdown."""
    lines = [f"# Benchmark of {document.target}", "", headline(document), ""]
    lines += [f"- {note}" for note in document.warnings]
    lines += [""] if document.warnings else []
    lines += [*_table(heads(), rows_as_text(document)), ""]
    lines += [f"- {sentence}" for sentence in details(document)]
    if document.comparison is not None:
        lines += ["", f"## Against {document.comparison.base}: {document.comparison.outcome}", ""]
        lines += [*(f"- {note}" for note in document.comparison.notes), *([""] if document.comparison.notes else [])]
        lines += _table(GATE_HEADS, [gate_cells(gate) for gate in document.comparison.gates], align="---")
    lines += ["", host_line(document), "", method_line(document), "", f"`{shlex.join(document.command)}`", ""]
    return "\n".join(lines)


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]], align: str = "---:") -> list[str]:
    rule = ["---", *[align] * (len(columns) - 1)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (columns, rule, *lines)]


GATE_HEADS = ("gate", "variant", "outcome", "why")


def gate_cells(gate: GateRow) -> list[str]:
    """One gate as text."""
    return [gate.expression, gate.variant, gate.outcome, gate.reason]


# --- HTML ------------------------------------------------------------------------------------------------------------

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Benchmark of $target</title><style>
:root { color-scheme: light dark; --line: #8885; --soft: #8882; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: .5rem 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { font-size: 1.05rem; border-left: 4px solid #0072b2; background: var(--soft); padding: .6rem .8rem; }
.warn { border-left: 4px solid #d55e00; padding: .2rem .8rem .2rem 1.8rem; margin: 1rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: pre;
  vertical-align: top; } th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.text, th.text { text-align: left; white-space: normal; }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption b { display: block; } figcaption { margin-bottom: .4rem; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.grid { stroke: var(--line); stroke-width: .6; } .axis { stroke: currentColor; } .band { fill: #8883; }
.one { stroke: currentColor; stroke-dasharray: 4 3; } .interval { stroke-width: 3; }
@media (max-width: 600px) { svg { font-size: 16px; } table { font-size: 13px; } th, td { padding: .3rem .4rem; } }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: 13px; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
code { background: var(--soft); padding: .1rem .3rem; overflow-wrap: anywhere; } li { overflow-wrap: anywhere; }
.failed { color: #d55e00; font-weight: 600; } .passed { color: #009e73; } small { color: #777; }
</style></head><body>
<h1>Benchmark of $target</h1>
<p class="verdict">$headline</p>
$warnings
<div class="wide"><table><thead>$heads</thead><tbody>$rows</tbody></table></div>
$comparison
<h2>Charts</h2><div class="charts">$charts</div>
<h2>Details</h2><ul>$details</ul>
<h2>How to read this</h2><p>$how</p>
<h2>Host and method</h2><p>$host</p><p>$method</p><p><code>$command</code></p>
<p><small>$created UTC</small></p>
</body></html>
""")


def html(document: BenchDocument) -> str:
    """The benchmark as one HTML file: no script, nothing loaded from elsewhere."""
    size = {model.id: model.bytes for model in document.models}
    rows = "".join(_row_html(row, size.get(row.model, 0), document) for row in document.variants)
    drawn = "".join(
        f"<figure><figcaption><b>{escape(title)}</b>{escape(about)}</figcaption>{drawing}</figure>"
        for title, about, drawing in charts.charts(document)
    )
    said = _items(document.warnings)
    return PAGE.substitute(
        target=escape(document.target),
        headline=escape(headline(document)),
        warnings=f'<ul class="warn">{said}</ul>' if said else "",
        heads="<tr>" + "".join(f"<th>{escape(head)}</th>" for head in (*COLUMNS, "host")) + "</tr>",
        rows=rows,
        comparison=_comparison_html(document),
        charts=drawn,
        details=_items(details(document)),
        how=escape(HOW_TO_READ),
        host=escape(host_line(document)),
        method=escape(method_line(document)),
        command=escape(shlex.join(document.command)),
        created=escape(document.created.removesuffix("+00:00")),
    )


def _items(sentences: Sequence[str]) -> str:
    return "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)


def _row_html(row: VariantRow, size_bytes: int, document: BenchDocument) -> str:
    shown = (*cells(row, size_bytes, document.aa.metric), row.status)
    kind = ' class="failed"' if row.status == "failed" else ""
    return f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in shown) + "</tr>"


def _comparison_html(document: BenchDocument) -> str:
    found = document.comparison
    if found is None:
        return ""
    head = "".join(f'<th class="text">{escape(name)}</th>' for name in GATE_HEADS)
    body = "".join(
        "<tr>" + "".join(f'<td class="text {gate.outcome if i == 2 else ""}">{escape(cell)}</td>'
                         for i, cell in enumerate(gate_cells(gate))) + "</tr>"
        for gate in found.gates
    )  # fmt: skip
    return (
        f"<h2>Against {escape(found.base)}: {found.outcome}</h2><ul>{_items(found.notes)}</ul>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
