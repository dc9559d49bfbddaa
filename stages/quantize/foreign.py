"""Anyone's ONNX model to INT8: the same search and gates, with the FP32 model's own outputs in place of labels."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader
from pydantic import BaseModel

from edge_demo.errors import Error, InputError
from edge_demo.runtime import Runtime, open_runtime
from stages import onnx_graph
from stages.quantize.calibration import FEWEST
from stages.quantize.comparison import RUNTIMES
from stages.quantize.foreign_compare import inaccurate, measured, objection, references_of
from stages.quantize.foreign_graph import normalized, readable
from stages.quantize.foreign_input import Feed, Pictures, facts, read_feeds
from stages.quantize.recipes import Source, prepared
from stages.quantize.search import Found, Tools, search
from stages.quantize.target import caveat, host_target, reduce_range, resolved
from stages.spec import RESULT, Candidate, LayerRow, OnStep, QuantizeConfig, ignore

HELD_OUT = 64
FEWEST_HELD_OUT = 8
SAME = 1e-3  # of the largest output: the rewritten FP32 graph against the original

__all__ = ["ForeignResult", "Pictures", "quantize_file"]


class ForeignResult(BaseModel):
    """What `pipeline quantize MODEL.onnx` found; `output` is empty when no INT8 file is worth having."""

    model_config = RESULT
    model: str
    output: str
    chosen: str
    reason: str
    search: str
    target: str
    held_out: int
    """How many examples, not used for calibration, the figures are measured on."""
    calibration: dict[str, Any]
    notes: tuple[str, ...]
    """What had to be changed in the graph, and what could not be measured."""
    candidates: tuple[Candidate, ...]
    sensitivity: tuple[LayerRow, ...]


def quantize_file(
    model: Path,
    calib: Path,
    output: Path,
    config: QuantizeConfig,
    *,
    pictures: Pictures | None = None,
    on_step: OnStep = ignore,
) -> ForeignResult:
    """Search an INT8 version of an ONNX file, and write it to `output` if there is one worth having.

    Args:
        model: Any self-contained ONNX file with float32 outputs.
        calib: A folder of `.npy`/`.npz` inputs, or of pictures.
        output: Must not exist.
        config: `images`, `search`, `target` and `seed`; there are no labels, so `max_drop` plays no part.
        pictures: How pictures become the input.
        on_step: Progress.

    Raises:
        InputError: a file that is no model or cannot be fed from `calib`; `output` exists.
        Error: neither runtime takes the model, or no recipe works.
    """
    if output.exists():
        raise InputError(f"{output}: exists", "name another file with --output")
    target = resolved(config.target)
    original = readable(model)
    changed, notes = normalized(original, model.name)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        core = Path(folder) / model.name
        onnx_graph.save(changed, core)
        fp32 = stack.enter_context(closing(open_runtime(RUNTIMES[0], core)))
        feeds, held_out = _split(read_feeds(calib, fp32.inputs, pictures or Pictures(), _wanted(config), config.seed))
        references = references_of(core, fp32, held_out, notes, stack)
        _same(model, fp32, held_out[0])
        source = _source(core, feeds, notes)
        scratch = Path(folder) / "candidate.onnx"
        size = model.stat().st_size
        tools = Tools(
            source=source,
            measure=partial(measured, references, held_out, scratch),
            inaccurate=inaccurate,
            slow=lambda row: objection(row, size, judge_speed=target == host_target()),
            loss=lambda row: -(row.sqnr_db or 0.0),
            calibration=_stacked(feeds, fp32),
            val=_stacked(held_out, fp32),
            fine_tune=None,
            reduce_range=reduce_range(target),
            on_step=on_step,
        )
        found = search(tools, config.search == "thorough")
        if found.chosen is not None and found.chosen.core is not None:
            metadata = {item.key: item.value for item in original.metadata_props}
            onnx_graph.save(onnx_graph.with_metadata(found.chosen.core, metadata), output)
    return _result(model, output, config, target, found, feeds, held_out, notes, size)


def _wanted(config: QuantizeConfig) -> int:
    return config.images + HELD_OUT


def _split(feeds: list[Feed]) -> tuple[list[Feed], list[Feed]]:
    """For calibration, and for measuring: never the same examples."""
    least = FEWEST + FEWEST_HELD_OUT
    if len(feeds) < least:
        raise InputError(f"--calib: {len(feeds)} examples are too few", f"{least} at least, better 100 or more")
    held_out = min(HELD_OUT, max(FEWEST_HELD_OUT, len(feeds) // 4))
    return feeds[held_out:], feeds[:held_out]


def _same(model: Path, rewritten: Runtime, feed: Feed) -> None:
    """The rewritten graph must be the original one."""
    with closing(open_runtime(RUNTIMES[0], model)) as original:
        wanted, got = original.infer(feed), rewritten.infer(feed)
    for name, want in wanted.items():
        if want.dtype.kind != "f":
            continue
        largest = max(float(np.abs(want).max(initial=0.0)), float(np.finfo(np.float32).tiny))
        if not np.abs(got[name] - want).max(initial=0.0) <= SAME * largest:
            raise Error(f"{model.name}: its graph, rewritten for quantization, gives another {name}")


def _source(core: Path, feeds: Sequence[Feed], notes: list[str]) -> Source:
    def readers() -> list[CalibrationDataReader]:
        return [FeedReader(feeds[at : at + 16]) for at in range(0, len(feeds), 16)]

    try:
        return prepared(core, readers)
    except Error as error:
        notes.append(f"ONNX Runtime's preparation failed and was left out: {error.message}")
        return prepared(core, readers, optimize=False)


class FeedReader(CalibrationDataReader):  # type: ignore[misc]  # the interface ONNX Runtime asks for
    """Gives feeds of any number of inputs, once."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next feed, or None at the end."""
        return next(self.feeds, None)


def _stacked(feeds: Sequence[Feed], runtime: Runtime) -> Any:
    """All feeds as one batch where the network has a single float input of one shape; else None."""
    shapes = {feed[runtime.inputs[0].name].shape for feed in feeds}
    if len(runtime.inputs) != 1 or len(shapes) != 1 or runtime.inputs[0].dtype != np.float32:
        return None
    return np.concatenate([feed[runtime.inputs[0].name] for feed in feeds])


def _result(
    model: Path,
    output: Path,
    config: QuantizeConfig,
    target: str,
    found: Found,
    feeds: Sequence[Feed],
    held_out: Sequence[Feed],
    notes: Sequence[str],
    size: int,
) -> ForeignResult:
    kept = found.chosen is None
    reference = Candidate(
        name="FP32",
        size_bytes=size,
        verdict="chosen" if kept else "reference",
        reason=found.reason if kept else "what every recipe is compared with",
    )
    return ForeignResult(
        model=model.name,
        output="" if kept else str(output),
        chosen="FP32" if kept else found.best.row.name,
        reason=f"{found.reason}{caveat(target, host_target())}",
        search=config.search,
        target=target,
        held_out=len(held_out),
        calibration={"method": found.best.recipe.method, **facts(feeds, next(iter(feeds[0])))},
        notes=tuple(notes),
        candidates=(reference, *found.rows),
        sensitivity=found.sensitivity,
    )
