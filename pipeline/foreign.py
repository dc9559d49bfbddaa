"""`pipeline quantize MODEL.onnx`: anyone's model, its options, and the table of what was tried."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from edge_demo.errors import InputError, missing_extra
from pipeline.config import load_config
from pipeline.console import steps

if TYPE_CHECKING:
    from stages.quantize.foreign import ForeignResult
    from stages.spec import QuantizeConfig

KEYS = ("images", "search", "target", "seed")
"""What of the section `quantize` has an effect without labels."""


def quantize_model(
    model: Path,
    calib: Path | None,
    output: Path | None,
    sets: Sequence[str],
    mean: str | None,
    std: str | None,
    size: str | None,
) -> ForeignResult:
    """Parse the options and run the search.

    Raises:
        InputError: an option is missing, malformed, or without effect.
    """
    if calib is None:
        raise InputError(f"{model.name}: calibration needs examples of its input", "give --calib DIR")
    config = _section(sets)
    try:
        from stages.quantize.foreign import Pictures, quantize_file
    except ModuleNotFoundError as error:
        raise missing_extra("quantizing a model", error.name or "onnx", "train") from error
    pictures = Pictures(_numbers("--mean", mean), _numbers("--std", std), _size(size))
    target = output or model.with_suffix(".int8.onnx")
    with steps("quantize") as on_step:
        return quantize_file(model, calib, target, config, pictures=pictures, on_step=on_step)


def table(result: ForeignResult) -> Table:
    """One row per candidate."""
    made = Table(box=None, pad_edge=False)
    for name in ("recipe", "verdict"):
        made.add_column(name)
    for name in ("SQNR dB", "same answer", "speed", "kB"):
        made.add_column(name, justify="right")
    made.add_column("why", overflow="fold")
    for row in result.candidates:
        made.add_row(
            escape(row.name),
            row.verdict,
            "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
            " / ".join(f"{share:.1%}" for share in row.agreement.values()),
            " / ".join(f"{median:.2f}x" for median, _, _ in row.speed.values()),
            f"{row.size_bytes / 1e3:.0f}" if row.size_bytes else "",
            escape(row.reason),
        )
    return made


def _section(sets: Sequence[str]) -> QuantizeConfig:
    for item in sets:
        key = item.partition("=")[0]
        if key not in {f"quantize.{name}" for name in KEYS}:
            raise InputError(
                f"--set {key}: has no effect on a model file", f"known: quantize.{', quantize.'.join(KEYS)}"
            )
    return load_config(None, None, sets).quantize


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InputError(f"{option} {text}: not numbers", f"type: {option} 0.485,0.456,0.406") from error


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise InputError(f"--size {text}: not a width and a height", "type: --size 224x224")
    return int(found[1]), int(found[2])
