"""`pipeline init`: looks at a folder of data and writes a commented config for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_demo.errors import InputError
from pipeline.options import Debug

TEXT = """# Written by `pipeline init` for {path}: {found}.
# Look at it with `pipeline data check {out}`, then type `pipeline all {out}`.
name = {name}

[data]
name = {layout}  # {found}
path = {path}
{task}# The network's frame: larger sees smaller things and takes longer, in proportion to its area.
size_wh = [{width}, {height}]
# What the network sees: "rgb", or "gray" when colour says nothing.
colour = {colour}
# Share of the training pictures cut off, where the set brings no such split itself.
val_fraction = 0.1
test_fraction = 0.1
{strict}
[data.resize]
# letterbox keeps the shape of things and pads; stretch uses every pixel.
mode = {mode}

[train]
task = {trained}
{training}"""

DETECT = """# Passes over the training pictures; more pay as long as val gets better.
epochs = {epochs}
batch_size = 16
lr = 0.004
weight_decay = 0.05
clip_norm = 5.0
ema = 0.99

[train.model]
name = "detector"
width = 8
depth = 2
# The longer side of the smallest map, in cells: about a thirty-second of the frame.
last_side = 10

[train.augment]
# Left for right; 0 where that makes another thing of an object, as with letters.
flip = 0.5
# Upside down; 0.5 where nothing says which way is up, as under a microscope.
flip_vertical = 0.0
scale = 0.25
shift = 0.1
mosaic = 0.5
colour = {colour_change}
contrast = 0.2

[export]
parity_images = 32

[quantize]
# Of mAP50-95, as in [evaluate].
max_drop = 0.005

[evaluate]
max_int8_drop = 0.005
"""
SEGMENT = """# Passes over the training pictures; more pay as long as val gets better.
epochs = {epochs}
batch_size = 16
optimizer = "muon"
lr = 0.01
weight_decay = 0.02
clip_norm = 5.0

[train.model]
name = "segmenter"
width = 8
depth = 2
# The longer side of the smallest map, in cells: a sixteenth of the frame.
last_side = 12

[train.augment]
# Left for right; 0 where that makes another thing of an object, as with letters.
flip = 0.5
scale = 0.2
crop = 0.6
rotate_deg = 15.0
colour = {colour_change}
contrast = 0.3

[export]
parity_images = 64

[quantize]
# Of mIoU, as in [evaluate].
max_drop = 0.01

[evaluate]
max_int8_drop = 0.01
"""
MULTILABEL = """# Passes over the training pictures; more pay as long as val gets better.
epochs = {epochs}
batch_size = 32
optimizer = "muon"
weight_decay = 0.02

[train.model]
name = "resnet"

[train.augment]
# Left for right; 0 where that makes another thing of an object, as with letters.
flip = 0.5
shift = 0.1
colour = {colour_change}
contrast = 0.2

[quantize]
# Of the mean average precision, as in [evaluate].
max_drop = 0.01

[evaluate]
max_int8_drop = 0.01
"""
TRAINING = {"detect": DETECT, "segment": SEGMENT, "multilabel": MULTILABEL}
"""What else [train] says, by task; of a task that is not here, nothing."""
PASSES = {"detect": 40_000, "segment": 40_000, "multilabel": 80_000}  # pictures seen in a training
FEWEST_EPOCHS, MOST_EPOCHS = 20, 300


def init(
    data: Annotated[Path, typer.Option("--data", metavar="PATH", help="The folder of your data.")],
    out: Annotated[Path, typer.Option(metavar="FILE.toml", help="The file to write.")] = Path("pipeline.toml"),
    task: Annotated[
        str, typer.Option(help="classify, multilabel, detect or segment; default: what the folder has.")
    ] = "auto",
    debug: Debug = False,
) -> None:
    """Look at a folder of data and write a commented config for it."""
    from stages.data.recognize import recognize

    found = recognize(data, task)
    if out.exists():
        raise InputError(f"{out}: is there already", "type --out with another name, or remove it")
    annotated = found.task != "classify"
    text = TEXT.format(
        path=quoted(str(found.path)),
        out=out,
        name=quoted(found.path.name),
        layout=quoted(found.name),
        found=found.sentence,
        task=f"task = {quoted(found.task)}\n" if annotated else "",
        width=found.size_wh[0],
        height=found.size_wh[1],
        colour=quoted(found.colour),
        strict="# true: stop at any trouble in the annotations, instead of counting it and going on.\nstrict = false\n"
        if annotated
        else "",
        mode=quoted("letterbox"),
        trained=quoted(found.task),
        training=TRAINING.get(found.task, "").format(
            epochs=max(FEWEST_EPOCHS, min(MOST_EPOCHS, PASSES.get(found.task, 0) // found.pictures)),
            colour_change=0.1 if found.colour == "rgb" else 0.0,
        ),
    )
    out.write_text(text, encoding="utf-8")
    typer.echo(f"{out}: {found.sentence}; next: pipeline data check {out}")


def quoted(text: str) -> str:
    """A TOML basic string. JSON's escapes are all TOML's, too, except for the delete character."""
    import json

    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
