"""Anyone's ONNX model to INT8: the same search and gates, with the FP32 model's own outputs in place of labels."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader
from pydantic import BaseModel

from edge_demo.errors import Error, InputError
from edge_demo.runtime import Array, Runtime, open_runtime
from stages import onnx_graph
from stages.quantize import verdict
from stages.quantize.calibration import FEWEST
from stages.quantize.census import fused
from stages.quantize.comparison import RUNTIMES, sqnr_db
from stages.quantize.foreign_graph import normalized, readable
from stages.quantize.foreign_input import Feed, Pictures, facts, read_feeds
from stages.quantize.recipes import Source, prepared
from stages.quantize.search import Found, Tools, search
from stages.quantize.speed import ROUNDS, paired_speed
from stages.quantize.target import host_target, reduce_range, resolved
from stages.spec import RESULT, Candidate, LayerRow, OnStep, QuantizeConfig, Step, ignore

HELD_OUT = 64
FEWEST_HELD_OUT = 8
# Noise of 1 % of the signal; INT8 networks that keep their accuracy have 30 dB and more (reference runs on two CNNs).
MIN_SQNR_DB = 20.0
MIN_AGREEMENT = 0.98
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


@dataclass(frozen=True, slots=True)
class Reference:
    """FP32 in one runtime: its outputs per held-out feed, and one inference."""

    outputs: list[Mapping[str, Array]]
    run: Callable[[], object]


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
        _same(model, fp32, held_out[0])
        references = _references(core, fp32, held_out, notes, stack)
        source = _source(core, feeds, notes)
        scratch = Path(folder) / "candidate.onnx"
        size = model.stat().st_size
        tools = Tools(
            source=source,
            measure=partial(_measured, references, held_out, scratch),
            inaccurate=inaccurate,
            slow=lambda row: _objection(row, size, judge_speed=target == host_target()),
            loss=lambda row: -(row.sqnr_db or 0.0),
            calibration=_stacked(feeds, fp32),
            val=_stacked(held_out, fp32),
            fine_tune=None,
            reduce_range=reduce_range(target),
            on_step=on_step,
        )
        found = search(tools, config.search == "thorough")
        if found.chosen is not None and found.chosen.core is not None:
            onnx_graph.save(found.chosen.core, output)
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


def _references(
    core: Path, fp32: Runtime, held_out: Sequence[Feed], notes: list[str], stack: ExitStack
) -> dict[str, Reference]:
    """FP32's outputs in every runtime that runs it; ONNX Runtime has to."""
    references = {}
    for name in RUNTIMES:
        try:
            runtime = fp32 if name == RUNTIMES[0] else stack.enter_context(closing(open_runtime(name, core)))
            outputs = [runtime.infer(feed) for feed in held_out]
        except Exception as error:  # ONNX Runtime's own exceptions share no base but this
            if name == RUNTIMES[0]:
                raise InputError(f"{core.name}: {name} cannot run it on these examples: {_line(error)}") from error
            notes.append(f"not measured in {name}: {_line(error)}")
            continue
        references[name] = Reference(outputs, partial(runtime.infer, held_out[0]))
    return references


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


def _measured(
    references: Mapping[str, Reference], held_out: Sequence[Feed], scratch: Path, name: str, core: ModelProto
) -> Candidate:
    """Save the candidate, and compare the saved file's outputs and speed with FP32's."""
    size_bytes = onnx_graph.save(core, scratch)
    same, sqnr, speed = {}, [], {}
    for runtime_name, fp32 in references.items():
        with closing(open_runtime(runtime_name, scratch)) as runtime:
            try:
                outputs = [runtime.infer(feed) for feed in held_out]
            except Exception as error:  # likewise
                raise Error(f"{runtime_name} cannot run it: {_line(error)}") from error
            speed[runtime_name] = paired_speed(fp32.run, partial(runtime.infer, held_out[0]))
        sqnr.append(worst_sqnr_db(fp32.outputs, outputs))
        share = top_agreement(fp32.outputs, outputs)
        if share is not None:
            same[runtime_name] = share
    return Candidate(
        name=name,
        agreement=same,
        sqnr_db=min(sqnr),
        fused={key: sentence for key, sentence in fused(scratch).items() if key in references},
        size_bytes=size_bytes,
        speed=speed,
        rounds=ROUNDS,
        verdict="rejected",
        reason="",
    )


def worst_sqnr_db(want: Sequence[Mapping[str, Array]], got: Sequence[Mapping[str, Array]]) -> float:
    """Over all float outputs, the one with the most noise; -200 where a shape differs."""
    worst = 200.0
    for name, first in want[0].items():
        if first.dtype.kind != "f":
            continue
        if any(a[name].shape != b[name].shape for a, b in zip(want, got, strict=True)):
            return -200.0
        wanted, found = (np.concatenate([one[name].ravel() for one in side]).astype(float) for side in (want, got))
        worst = min(worst, sqnr_db(wanted, found))
    return worst


def top_agreement(want: Sequence[Mapping[str, Array]], got: Sequence[Mapping[str, Array]]) -> float | None:
    """Share of items whose largest value stands in the same place, where the first output is one row per item."""
    name = next(iter(want[0]))
    if want[0][name].ndim != 2 or want[0][name].shape[1] < 2:
        return None
    same = [a[name].argmax(axis=1) == b[name].argmax(axis=1) for a, b in zip(want, got, strict=True)]
    return float(np.concatenate(same).mean())


def inaccurate(row: Candidate) -> str:
    """What speaks against the outputs; empty: nothing."""
    if row.sqnr_db is None or not math.isfinite(row.sqnr_db) or row.sqnr_db < MIN_SQNR_DB:
        return f"changes the outputs too much (SQNR {row.sqnr_db:.1f} dB, at least {MIN_SQNR_DB:.0f} wanted)"
    low = {name: share for name, share in row.agreement.items() if share < MIN_AGREEMENT}
    if low:
        name, share = min(low.items(), key=lambda item: item[1])
        return f"gives another answer for {1 - share:.1%} of the examples in {name} ({1 - MIN_AGREEMENT:.0%} allowed)"
    return ""


def _objection(row: Candidate, fp32_bytes: int, *, judge_speed: bool) -> str:
    if row.size_bytes >= fp32_bytes:
        return f"makes the file larger ({fp32_bytes:,} to {row.size_bytes:,} bytes)"
    return verdict.slow(row) if judge_speed else ""


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


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
        reason=found.reason,
        search=config.search,
        target=target,
        held_out=len(held_out),
        calibration={"method": found.best.recipe.method, **facts(feeds, next(iter(feeds[0])))},
        notes=tuple(notes),
        candidates=(reference, *found.rows),
        sensitivity=found.sensitivity,
    )
