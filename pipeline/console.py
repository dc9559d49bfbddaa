"""The one Console for people, on stderr: progress bars on a terminal, plain lines elsewhere. stdout is for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.run import Event, Watch
    from pipeline.workspace import RunDocument, StageRecord
    from stages.spec import OnStep, Step

BARS_PER_S = 2.0
"""How often bars are drawn anew: each time costs a few milliseconds of the core that does the work."""
PLAIN_EVERY_S = 10.0
"""Between two plain progress lines of one stage."""
PIPE_WIDTH = 160
"""Columns of a table that goes to a file or pipe, where there is no terminal to ask."""


def _console(*, stderr: bool) -> Console:
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, width=None if terminal else PIPE_WIDTH)


console = _console(stderr=True)


def say(text: str) -> None:
    """One line for people, as it is."""
    console.print(text, markup=False, soft_wrap=True)


def show(table: Table, *, stdout: bool = False) -> None:
    """A table: to stdout when it is the command's result, else to stderr."""
    target = _console(stderr=False) if stdout else console
    target.print(table)


@contextmanager
def watching() -> Iterator[Watch]:
    """Shows a run's events while it lasts."""
    with progress() as show_step:

        def watch(event: Event) -> None:
            if event.step is not None:
                show_step(event.stage, event.step)
            elif event.record is not None:
                show_step(event.stage, None)
                say(_line(event.record))

        yield watch


@contextmanager
def steps(name: str) -> Iterator[OnStep]:
    """Shows the steps of one command that is no run, e.g. a benchmark."""
    with progress() as show_step:
        yield lambda step: show_step(name, step)
        show_step(name, None)


ShowStep = Callable[[str, "Step | None"], None]
"""(stage, step); None: the stage is over."""


@contextmanager
def progress() -> Iterator[ShowStep]:
    """Bars on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield _plain()
        return
    # Imported here: `--help` and pipes need no bars.
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.fields[stage]:<9} {task.description}"),
        bars.BarColumn(bar_width=24),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[values]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True, refresh_per_second=BARS_PER_S) as live:
        yield _bars(live)


def _bars(live: Any) -> ShowStep:
    tasks: dict[tuple[str, str], Any] = {}

    def show_step(stage: str, step: Step | None) -> None:
        if step is None or (stage, step.what) not in tasks:
            for task in tasks.values():
                live.remove_task(task)
            tasks.clear()
        if step is None:
            return
        if step.note:
            say(f"{stage:<9} {step.note}")
        if step.note and not step.total:
            return
        if (stage, step.what) not in tasks:
            tasks[stage, step.what] = live.add_task(escape(step.what), total=step.total or None, stage=stage, values="")
        live.update(tasks[stage, step.what], completed=step.done, total=step.total or None, values=values(step.values))

    return show_step


def _plain() -> ShowStep:
    last: dict[str, float] = {}

    def show_step(stage: str, step: Step | None) -> None:
        now = time.monotonic()
        if step is None:
            last.pop(stage, None)
        elif step.note:
            say(f"{stage:<9} {step.note}")
        elif step.total and now - last.setdefault(stage, now) >= PLAIN_EVERY_S:
            last[stage] = now
            say(f"{stage:<9} {step.what} {step.done}/{step.total}  {values(step.values)}".rstrip())

    return show_step


def values(named: Mapping[str, float]) -> str:
    """`loss 0.123  accuracy 0.981  images_per_s 5120`: three digits where they say something."""
    return "  ".join(
        f"{name} {value:.0f}" if abs(value) >= 100 else f"{name} {value:.4g}" for name, value in named.items()
    )


def _line(record: StageRecord) -> str:
    if record.status == "failed":
        how = "interrupted" if record.error == "interrupted" else "failed"
        return f"{record.name:<9} {how} after {record.seconds:.1f} s"
    took = "cached" if record.status == "cached" else f"{record.seconds:.1f} s"
    return f"{record.name:<9} {took:>8}  {headline(record)}".rstrip()


def headline(record: StageRecord) -> str:
    """What a stage found, in a few words."""
    write = HEADLINES.get(record.name)
    return write(record.result) if write and record.result else ""


def _data(result: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{split} {count}" for split, count in result["counts"].items())
    return f"{result['name']}{' (composed)' if result['composed'] else ''}: {counts}"


def _train(result: Mapping[str, Any]) -> str:
    return f"val {result['metric']} {result['val']:.4f}, epoch {result['best_epoch']} of {result['epochs']}"


def _export(result: Mapping[str, Any]) -> str:
    passed = sum(row["passed"] for row in result["parity"])
    return f"opset {result['opset']}, parity {passed} of {len(result['parity'])}"


def _quantize(result: Mapping[str, Any]) -> str:
    drop = f"val {result['metric']} drop {result['drop']:+.4f} (limit {result['max_drop']:.4f})"
    return f"{drop}, {result['chosen']}" if result.get("chosen") else drop


def _evaluate(result: Mapping[str, Any]) -> str:
    row = next(row for row in result["rows"] if row["precision"] == result["recommended"])
    return (
        f"test {result['metric']} {row['metrics'][result['metric']]:.4f} (n={row['n']}), ship {result['recommended']}"
    )


def _bundle(result: Mapping[str, Any]) -> str:
    return f"{result['name']}, {result['size_bytes'] / 1e6:.2f} MB"


def _bench(result: Mapping[str, Any]) -> str:
    return f"{result['recommended']} recommended here, host {result['status']}"


HEADLINES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "data": _data,
    "train": _train,
    "export": _export,
    "quantize": _quantize,
    "evaluate": _evaluate,
    "bundle": _bundle,
    "bench": _bench,
}


def summary(document: RunDocument) -> Table:
    """Stage, what was done, how long it took, what it found."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "status"):
        table.add_column(name)
    table.add_column("seconds", justify="right")
    table.add_column("found")
    for record in document.stages:
        table.add_row(record.name, record.status, f"{record.seconds:.1f}", escape(headline(record)))
    spent = sum(record.seconds for record in document.stages if record.status == "ran")
    table.add_row("total", "", f"{spent:.1f}", "" if spent else "nothing to do: every stage is cached")
    return table
