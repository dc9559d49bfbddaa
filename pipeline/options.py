"""The options that several commands share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG.toml]", help="The run's config.", show_default=False)
]
Preset = Annotated[str | None, typer.Option(help="A config that comes with the program; default: digits.")]
RunFolder = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Run folder; default: runs/NAME.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value.")]
Devices = Annotated[
    int | None,
    typer.Option("--devices", metavar="N", min=1, help="Train in N processes, each on its GPU or CPU share."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, .edge file, or run folder.")]
Runtimes = Annotated[list[str] | None, typer.Option("--runtime", help="onnxruntime or openvino; repeatable.")]


def echo_json(value: Any) -> None:
    """The result of `--json`: one document on stdout."""
    import json

    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
