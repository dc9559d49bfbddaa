"""`pipeline data ...`: look at data sets before training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edge_demo.errors import Error
from pipeline.options import ConfigFile, Debug, Json, Preset, Sets, echo_json

data_app = typer.Typer(help="Look at data sets before training on them.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command("list")
def data_list(
    root: Annotated[
        str, typer.Option(help="Where standard sets live; default: PIPELINE_DATA, or the user cache.")
    ] = "",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the data sets that are known by name, and which are here."""
    from dataclasses import asdict

    from pipeline.bundles import sets_table
    from pipeline.console import show
    from stages.data.sets import list_sets

    rows = list_sets(root)
    if json:
        echo_json([asdict(row) for row in rows])
    else:
        show(sets_table(rows), stdout=True)


@data_app.command("show")
def data_show(
    config: ConfigFile = None,
    preset: Preset = None,
    sets: Sets = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which split.")] = "train",
    n: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 36,
    augmented: Annotated[bool, typer.Option("--augmented", help="With training's random changes.")] = False,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="The file to write.")] = Path("data.png"),
    debug: Debug = False,
) -> None:
    """Write a contact sheet of labelled pictures, as the network gets them."""
    from pipeline.config import load_config
    from stages.data.show import show as show_data

    loaded = load_config(config, preset, sets or ())
    augment = loaded.train.augment if augmented else None
    count = show_data(loaded.data, out, split=split, n=n, augment=augment, task=loaded.train.task)
    typer.echo(f"{out}: {count} pictures of {split}")


@data_app.command("check")
def data_check(
    config: ConfigFile = None, preset: Preset = None, sets: Sets = None, json: Json = False, debug: Debug = False
) -> None:
    """Decode every picture once; report counts, balance, duplicates, unreadable files and sizes."""
    from pipeline.bundles import check_table
    from pipeline.config import load_config
    from pipeline.console import show, steps
    from stages.data.check import check

    loaded = load_config(config, preset, sets or ())
    with steps("check") as on_step:
        found = check(loaded.data, on_step)
    if json:
        echo_json(found.to_json())
    else:
        show(check_table(found), stdout=True)
    if loaded.data.strict and found.annotations:
        raise Error(f"data.strict: {sum(found.left_out.values()):,} troubles in the annotations", "repair them")
    if found.unreadable:
        raise Error(f"{found.unreadable} unreadable picture(s): {found.unreadable_files[0]}", "repair or remove them")
