"""`pipeline sweep`: try values of config keys, and write the best as a TOML that `pipeline all` takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_demo.errors import missing_extra
from pipeline.options import Debug, Json, Preset, RunFolder, Sets

if TYPE_CHECKING:
    from pipeline.run import Event, Watch
    from pipeline.sweep.document import SweepDocument
    from pipeline.sweep.run import Told, Watcher
    from pipeline.sweep.study import Claim
    from pipeline.sweep.trial import Outcome


def sweep(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="A run's config with a [sweep] section.")],
    preset: Preset = None,
    run: RunFolder = None,
    sets: Sets = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Share the work of many machines: postgresql://USER@HOST/DATABASE."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Try values of config keys, chosen by what val says; type it again to go on, or elsewhere to help.

    The section: [sweep] trials, timeout_s, objectives = ["val"] or ["val", "latency_ms"], seed; and [sweep.space] with
    "train.lr" = {low = 1e-4, high = 3e-2, log = true}, "train.model.width" = [8, 16, 24], ... Default of --run:
    runs/NAME-sweep.
    """
    from pipeline.console import say, show
    from pipeline.sweep.plan import load_plan

    plan = load_plan(config, preset, sets or ())
    folder = run or Path("runs") / f"{plan.base.name}-sweep"
    try:
        from pipeline.sweep import run as engine
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library not in ("optuna", "sqlalchemy"):
            raise
        raise missing_extra("sweep", library, "sweep") from error
    from pipeline.sweep.results import counted, table_of

    with _watching() as (watch, told):
        document = engine.sweep(plan, folder, storage=storage, watch=watch, told=told)
    say(counted(document.trials))
    for note in document.notes:
        say(note)
    if json:
        typer.echo(document.to_json(), nl=False)
        return
    show(table_of(document), stdout=True)
    _name_results(document, folder)


@contextmanager
def _watching() -> Iterator[tuple[Watcher, Told]]:
    """Progress of the trial at work, and a line for each that ended."""
    from pipeline.console import progress, say, values

    with progress() as show_step:

        def watch(number: int) -> Watch:
            def watched(event: Event) -> None:
                if event.step is not None and event.step.total:
                    show_step(f"trial {number}", event.step)
                elif event.record is not None:
                    show_step(f"trial {number}", None)

            return watched

        def told(claimed: Claim, outcome: Outcome, seconds: float) -> None:
            tried = "  ".join(f"{key} {_short(value)}" for key, value in claimed.params.items())
            found = values(outcome.values) if outcome.state == "complete" else f"{outcome.state}: {outcome.reason}"
            say(f"trial {claimed.trial.number:<3} {seconds:6.1f} s  {found}  ({tried})")

        yield watch, told


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _name_results(document: SweepDocument, folder: Path) -> None:
    """What was made, and what to type next."""
    if "picture" in document.files:
        typer.echo(f"picture  {folder / document.files['picture']}")
    for number in document.best:
        key = "best" if "best" in document.files else f"best-{number}"
        file, trained = folder / document.files[key], folder / "trials" / str(number)
        # In the trial's own folder its training, and whatever else is done, need not be done again.
        where = f" --run {trained}" if trained.is_dir() else ""
        typer.echo(f"next     pipeline all {file}{where}")
