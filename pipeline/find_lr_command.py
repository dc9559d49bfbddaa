"""`pipeline find-lr`: which learning rate suits a config, by a test of a few hundred steps; touches no run folder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from edge_demo.errors import InputError, missing_extra
from pipeline.options import ConfigFile, Debug, Json, Preset, Sets, echo_json


def find_lr(
    config: ConfigFile = None,
    preset: Preset = None,
    sets: Sets = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw the loss over the learning rate.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Suggest a learning rate for this config's model, data and optimizer; takes a few hundred training steps."""
    if picture is not None and picture.suffix != ".png":
        raise InputError(f"--picture {picture}: its name ends in .png", f"type: --picture {picture.stem}.png")
    from pipeline.config import load_config
    from pipeline.console import watching
    from pipeline.run import Event, run_pipeline
    from stages.spec import DataResult

    loaded = load_config(config, preset, sets or ())
    try:
        from stages.train import find_lr as finder
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library in ("pipeline", "stages", "edge_demo", ""):
            raise
        raise missing_extra("find-lr", library, "train") from error
    with TemporaryDirectory() as folder, watching() as watch:
        document = run_pipeline(loaded, Path(folder), until="data", watch=watch)
        data = DataResult.model_validate(document.stages[0].result, strict=False)
        data = data.model_copy(update={"folder": Path(folder) / "data"})
        found = finder.run(loaded.train, data, on_step=lambda step: watch(Event("step", "find-lr", step=step)))
    if picture is not None:
        finder.write_png(picture, found)
    if json:
        echo_json(found.model_dump(mode="json"))
        return
    burst = f"the loss burst at {found.diverged:.2g}" if found.diverged else "the loss never burst"
    typer.echo(f"suggested  train.lr = {found.suggested:.2g}")
    typer.echo(f"seen       lowest loss at {found.lowest:.2g}, steepest fall at {found.steepest:.2g}, {burst}")
    if picture is not None:
        typer.echo(f"picture    {picture}")
    typer.echo(f"next       pipeline train --set train.lr={found.suggested:.2g}")
