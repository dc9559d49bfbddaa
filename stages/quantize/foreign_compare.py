"""A candidate against FP32 without labels: the outputs themselves, on examples the calibration never saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from onnx import ModelProto

from edge_demo.errors import Error, InputError
from edge_demo.runtime import Array, Runtime, open_runtime
from stages import onnx_graph
from stages.quantize import verdict
from stages.quantize.census import fused
from stages.quantize.comparison import RUNTIMES, sqnr_db
from stages.quantize.foreign_input import Feed
from stages.quantize.speed import ROUNDS, paired_speed
from stages.spec import Candidate

# Noise of 1 % of the signal; INT8 networks that keep their accuracy have 30 dB and more (reference runs on two CNNs).
MIN_SQNR_DB = 20.0
MIN_AGREEMENT = 0.98


@dataclass(frozen=True, slots=True)
class Reference:
    """FP32 in one runtime: its outputs per held-out feed, and one inference."""

    outputs: Sequence[Mapping[str, Array]]
    run: Callable[[], object]


def references_of(
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


def measured(
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
        fused=fused(scratch, tuple(references)),
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


def objection(row: Candidate, fp32_bytes: int, *, judge_speed: bool) -> str:
    """What speaks against its speed, or its size: many graphs of others grow in INT8."""
    if row.size_bytes >= fp32_bytes:
        return f"makes the file larger ({fp32_bytes:,} to {row.size_bytes:,} bytes)"
    return verdict.slow(row) if judge_speed else ""


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
