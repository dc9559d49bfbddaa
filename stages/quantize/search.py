"""The search for an INT8 file that holds its accuracy and is faster, from the cheapest recipe to fine-tuning.

Every recipe tried leaves a row with what was measured and why it was taken or not; the last rung is to keep FP32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edge_demo.errors import Error
from stages.quantize.bias import corrected
from stages.quantize.recipes import Coverage, Method, Recipe, Source, quantized, reworded
from stages.quantize.regions import tail
from stages.quantize.sensitivity import sensitivity
from stages.quantize.verdict import speeds
from stages.spec import Candidate, LayerRow, OnStep, Step

METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy")
# How many of the most sensitive nodes stay in float, one after the other; at most half of all.
EXCLUDED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
NOT_NEEDED = "not tried: a simpler recipe already holds"


@dataclass(frozen=True, slots=True)
class Tools:
    """What the search works with."""

    source: Source
    measure: Callable[[str, ModelProto], Candidate]
    """(name, bare INT8 network) -> its row, verdict open. Raises Error when a runtime refuses it."""
    inaccurate: Callable[[Candidate], str]
    """What speaks against its accuracy; empty: nothing."""
    slow: Callable[[Candidate], str]
    """What speaks against its speed; empty: nothing."""
    loss: Callable[[Candidate], float]
    """How much accuracy it costs; less is better."""
    calibration: NDArray[np.float32] | None
    """float32 NCHW images for bias correction; None where the network takes something else."""
    val: NDArray[np.float32] | None
    """Images for the sensitivity of nodes; None likewise."""
    fine_tune: Callable[[ModelProto, Recipe], ModelProto] | None
    """INT8 network -> the same, fine-tuned; None where there is nothing to learn from."""
    reduce_range: bool
    on_step: OnStep
    pointless: str = ""
    """Why no candidate can be judged: one is made all the same, and FP32 kept; empty: they can."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One recipe, with its network unless making or measuring it failed."""

    recipe: Recipe
    row: Candidate
    core: ModelProto | None
    inaccurate: str = ""
    slow: str = ""

    @property
    def holds(self) -> bool:
        """Whether it could ship."""
        return self.core is not None and not self.inaccurate and not self.slow


@dataclass(frozen=True, slots=True)
class Found:
    """How the search ended. `best` is the chosen recipe, or the least bad one when FP32 is kept."""

    chosen: Tried | None
    best: Tried
    reason: str
    rows: tuple[Candidate, ...]
    sensitivity: tuple[LayerRow, ...]


def search(tools: Tools, thorough: bool) -> Found:
    """Climb the ladder; quick stops at the first recipe that holds, thorough takes the fastest of all that do.

    Raises:
        Error: not one recipe gave a file both runtimes run.
    """
    ladder = _Ladder(tools)
    if tools.pointless:
        return _unjudged(ladder)
    if thorough:
        ladder.everything()
    else:
        ladder.cheapest_first()
    if not any(tried.holds for tried in ladder.tried) and ladder.fast():
        ladder.keep_sensitive_nodes_float()
        if not any(tried.holds for tried in ladder.tried):
            ladder.fine_tuned()
    working = [tried for tried in ladder.tried if tried.core is not None]
    if not working:
        raise Error(f"no INT8 recipe works: {ladder.tried[0].row.reason}")
    holding = [tried for tried in working if tried.holds]
    if not holding:
        best = min(working, key=lambda tried: (bool(tried.inaccurate), tools.loss(tried.row)))
        return Found(None, best, _why_fp32(working, best), tuple(_rows(ladder, None)), ladder.sensitivity())
    chosen = _fastest(holding) if thorough else max(holding, key=lambda tried: tried.row.sqnr_db or 0.0)
    rest = "the fastest of those that hold" if thorough and len(holding) > 1 else "the simplest that holds"
    reason = f"{chosen.row.name}: {rest}{_times(chosen.row)}"
    return Found(chosen, chosen, reason, tuple(_rows(ladder, chosen)), ladder.sensitivity())


def _unjudged(ladder: _Ladder) -> Found:
    """The first recipe that works, for the record."""
    why = ladder.tools.pointless
    for coverage in ladder.coverages():
        tried = ladder.attempt(Recipe(coverage, reduce_range=ladder.tools.reduce_range))
        if tried.core is not None:
            rows = [one.row.model_copy(update={"reason": one.row.reason or why}) for one in ladder.tried]
            return Found(None, tried, why, tuple(rows), ())
    raise Error(f"no INT8 recipe works: {ladder.tried[0].row.reason}")


class _Ladder:
    """What was tried so far, and the rungs."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self.tried: list[Tried] = []
        self.files: dict[bytes, str] = {}
        self.ranking: tuple[LayerRow, ...] | None = None

    def cheapest_first(self) -> None:
        """Coverages with plain ranges, the first that holds with bias correction, too; else more for the best one."""
        for coverage in self.coverages():
            tried = self.attempt(Recipe(coverage, reduce_range=self.tools.reduce_range))
            if tried.holds:
                # The same nodes, so as fast. Measured on Fashion-MNIST, a residual network: 37.5 dB in place of 36.0.
                if self.tools.calibration is not None:
                    self.attempt(replace(tried.recipe, bias_corrected=True))
                return
        if not self.fast():
            return
        base = self.most_accurate().recipe
        rest: tuple[tuple[Method, bool], ...] = ("minmax", True), ("percentile", False), ("percentile", True)
        for method, bias in rest:
            if self.attempt(replace(base, method=method, bias_corrected=bias)).holds:
                return

    def everything(self) -> None:
        """Every coverage with every method, with and without bias correction; not again what gives a known file."""
        for coverage in self.coverages():
            for method in METHODS:
                plain = Recipe(coverage, method, reduce_range=self.tools.reduce_range)
                if self.attempt(plain).core is None:
                    break
                self.attempt(replace(plain, bias_corrected=True))

    def keep_sensitive_nodes_float(self) -> None:
        """One sensitive node after the other back to float, from the best recipe that is fast."""
        base, ranking = self.most_accurate().recipe, self.sensitivity()
        for count in (number for number in EXCLUDED if number <= len(ranking) // 2):
            tried = self.attempt(replace(base, float_nodes=frozenset(row.node for row in ranking[:count])))
            if tried.holds or tried.slow:
                return

    def fine_tuned(self) -> None:
        """Quantization-aware training of the best recipe that is fast."""
        base, tune = self.most_accurate(), self.tools.fine_tune
        if tune is None or base.core is None:
            return
        core, recipe = base.core, base.recipe
        self.run(recipe, f"{recipe.name}, fine-tuned", lambda: tune(core, recipe))

    def coverages(self) -> Iterator[Coverage]:
        """Which operators to quantize, the likeliest first: decoding after the last layers does not survive INT8."""
        if tail(self.tools.source.model):
            yield "tail-float"
        yield "all"
        yield "conv-only"
        yield "head-float"

    def attempt(self, recipe: Recipe) -> Tried:
        """Make and measure one recipe."""

        def build() -> ModelProto:
            plain = quantized(self.tools.source, recipe)
            if not recipe.bias_corrected:
                return plain
            if self.tools.calibration is None:
                raise Error("bias correction needs image calibration data")
            return corrected(plain, self.tools.source.model, self.tools.calibration)

        return self.run(recipe, recipe.name, build)

    def run(self, recipe: Recipe, name: str, build: Callable[[], ModelProto]) -> Tried:
        """Measure what `build` makes; an error becomes the row's reason, a file seen before is not measured again."""
        self.tools.on_step(Step(f"INT8: {name}", len(self.tried)))
        try:
            with reworded(self.tools.source.file):
                core = build()
            content = core.SerializeToString(deterministic=True)
            if content in self.files:
                reason = f"the same file as: {self.files[content]}"
                tried = Tried(recipe, Candidate(name=name, verdict="not needed", reason=reason), None)
            else:
                row = self.tools.measure(name, core)
                tried = Tried(recipe, row, core, self.tools.inaccurate(row), self.tools.slow(row))
                self.files[content] = name
        except Error as error:
            tried = Tried(recipe, Candidate(name=name, verdict="rejected", reason=error.message), None)
        self.tried.append(tried)
        return tried

    def fast(self) -> list[Tried]:
        """What speed does not speak against; keeping more nodes in float makes nothing faster."""
        return [tried for tried in self.tried if tried.core is not None and not tried.slow]

    def most_accurate(self) -> Tried:
        """Of those that are fast."""
        return min(self.fast(), key=lambda tried: self.tools.loss(tried.row))

    def sensitivity(self) -> tuple[LayerRow, ...]:
        """Per node, for every operator with plain ranges; measured at the first call."""
        if self.ranking is None:
            plain = Recipe(reduce_range=self.tools.reduce_range)
            val = self.tools.val
            self.tools.on_step(Step("INT8: one node at a time"))
            self.ranking = () if val is None else sensitivity(self.tools.source, plain, val)
        return self.ranking


def _fastest(holding: list[Tried]) -> Tried:
    """Highest speed over both runtimes; among those whose intervals reach it the least noise."""
    top = max(holding, key=lambda tried: _mean_speed(tried.row))
    near = [tried for tried in holding if _mean_speed(tried.row, 2) >= _mean_speed(top.row, 1)]
    return max(near, key=lambda tried: tried.row.sqnr_db or 0.0)


def _mean_speed(row: Candidate, bound: int = 0) -> float:
    """Geometric mean over the runtimes of the median (0), or of the lower (1) or upper (2) end of its interval."""
    speeds = [estimate[bound] for estimate in row.speed.values()]
    return math.prod(speeds) ** (1 / len(speeds)) if speeds else 1.0


def _times(row: Candidate) -> str:
    return f"; {speeds(row)}" if row.speed else ""


def _why_fp32(working: list[Tried], best: Tried) -> str:
    if all(tried.slow for tried in working):
        fastest = max(working, key=lambda tried: _mean_speed(tried.row))
        return f"INT8 {fastest.slow}"
    if best.inaccurate:
        return f"no INT8 recipe that is fast keeps the accuracy: the best {best.inaccurate}"
    return f"no INT8 recipe is both accurate and fast: the most accurate is {best.slow}"


def _rows(ladder: _Ladder, chosen: Tried | None) -> Iterator[Candidate]:
    """The rows with their verdicts, and a row for each rung that was not needed."""
    for tried in ladder.tried:
        if tried.core is None:
            yield tried.row
        elif tried is chosen:
            yield tried.row.model_copy(update={"verdict": "chosen", "reason": f"holds its accuracy{_times(tried.row)}"})
        elif tried.holds:
            yield tried.row.model_copy(
                update={
                    "verdict": "not needed",
                    "reason": "holds too; the chosen one is faster, or as fast with less noise",
                }
            )
        else:
            objections = "; ".join(part for part in (tried.inaccurate, tried.slow) if part)
            yield tried.row.model_copy(update={"verdict": "rejected", "reason": objections})
    if chosen is not None and not chosen.recipe.float_nodes:
        yield Candidate(name="sensitive nodes float", verdict="not needed", reason=NOT_NEEDED)
    if chosen is not None and ladder.tools.fine_tune is not None and not chosen.row.name.endswith("fine-tuned"):
        yield Candidate(name="fine-tuned (QAT)", verdict="not needed", reason=NOT_NEEDED)
