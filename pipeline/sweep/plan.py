"""The space of a sweep: which config keys take which values, checked against the config before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from edge_demo.errors import InputError
from pipeline.config import Origins, PipelineConfig, Tree, check, merged, validated, with_value
from stages.spec import SweepConfig

ORIGIN = "[sweep.space]"
EXAMPLE = '"train.lr" = {low = 1e-4, high = 3e-2, log = true}'
BOUNDS = ("low", "high", "step", "log")
OTHER_VAL = frozenset(
    f"data.{name}" for name in ("name", "path", "root", "test_set", "val_fraction", "test_fraction", "seed")
)
"""Keys that may change which items val holds: metrics on different items cannot be compared."""
READ = {"val": ("data", "train"), "latency_ms": ("data", "train", "export", "quantize")}
"""Objective -> the config sections it depends on; bench says how latency is measured and is the same for all trials."""
MOST_COMBINATIONS = 256

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    key: str
    low: float
    high: float
    step: float | None
    log: bool
    whole: bool
    """Integers only."""

    @property
    def corners(self) -> tuple[Value, ...]:
        """Its ends."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Choices:
    """One of these values."""

    key: str
    values: tuple[Value, ...]

    @property
    def corners(self) -> tuple[Value, ...]:
        """All of them."""
        return self.values


Dimension = Range | Choices


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep tries."""

    base: PipelineConfig
    sweep: SweepConfig
    space: tuple[Dimension, ...]
    tree: Tree
    origins: Origins

    def config(self, params: Mapping[str, Value]) -> PipelineConfig:
        """The base with a trial's values.

        Raises:
            InputError: a knob has no effect in this combination.
        """
        return check(*_with(self.tree, self.origins, params))

    @property
    def epochs(self) -> int:
        """The most epochs a trial can have."""
        values = next((dimension.corners for dimension in self.space if dimension.key == "train.epochs"), ())
        return max((int(value) for value in values), default=self.base.train.epochs)


class _SweepSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    sweep: SweepConfig = SweepConfig()


def load_plan(file: Path | None = None, preset: str | None = None, sets: Sequence[str] = ()) -> Plan:
    """Read a config with a `[sweep]` section; sources as in `pipeline.config.load_config`.

    Raises:
        InputError: a key or value is wrong, or a swept key has no influence on the objectives.
    """
    tree, origins = merged(file, preset, sets)
    section = tree.pop("sweep", None)
    if section is None:
        raise InputError(f"{file or 'the config'}: has no [sweep] section", f"write [sweep.space] and {EXAMPLE}")
    sweep = validated(_SweepSection, {"sweep": section}, origins).sweep
    if len(set(sweep.objectives)) < len(sweep.objectives) or "val" not in sweep.objectives:
        asked = ", ".join(sweep.objectives)
        raise InputError(
            f"sweep.objectives: must name val, and nothing twice; got {asked}", 'e.g. ["val", "latency_ms"]'
        )
    base = validated(PipelineConfig, tree, origins)
    flat = dict(_flat(sweep.space))
    if not flat:
        raise InputError("sweep.space: is empty", f"write [sweep.space] and {EXAMPLE}")
    space = tuple(_dimension(key, value, tree, origins, sweep) for key, value in flat.items())
    plan = Plan(base, sweep, space, tree, origins)
    _some_combination(plan)
    return plan


def _flat(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`"train.lr" = {low, high}` and `train.lr = {low, high}` alike: a table without bounds is a section."""
    for key, value in tree.items():
        if isinstance(value, dict) and not set(value) & {"low", "high"}:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with(tree: Tree, origins: Origins, params: Mapping[str, Value]) -> tuple[Tree, Origins]:
    for key, value in params.items():
        tree, origins = with_value(tree, origins, key, value, ORIGIN)
    return tree, origins


def _dimension(key: str, value: Any, tree: Tree, origins: Origins, sweep: SweepConfig) -> Dimension:
    def accepts(candidate: Any) -> None:
        validated(PipelineConfig, *with_value(tree, origins, key, candidate, ORIGIN))

    dimension = _range(key, value) if isinstance(value, dict) else _choices(key, value)
    for corner in dimension.corners:
        accepts(corner)
    _has_influence(key, sweep)
    if isinstance(dimension, Range) and dimension.whole and _takes_fractions(dimension, accepts):
        return Range(key, dimension.low, dimension.high, dimension.step, dimension.log, whole=False)
    return dimension


def _range(key: str, bounds: Mapping[str, Any]) -> Range:
    def wrong(problem: str, hint: str = f"e.g. {EXAMPLE}") -> InputError:
        return InputError(f"sweep.space: {key}: {problem}", hint)

    if unknown := sorted(set(bounds) - set(BOUNDS)):
        raise wrong(f"unknown key '{unknown[0]}'", f"known: {', '.join(BOUNDS)}")
    if missing := [name for name in ("low", "high") if name not in bounds]:
        raise wrong(f"{missing[0]} is missing")
    log, step = bounds.get("log", False), bounds.get("step")
    if not isinstance(log, bool):
        raise wrong(f"log must be true or false; got {log}")
    numbers = [bounds["low"], bounds["high"], *([] if step is None else [step])]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise wrong(f"low, high and step must be numbers; got {number!r}")
    low, high = bounds["low"], bounds["high"]
    if low >= high:
        raise wrong(f"low must be below high; got {low} and {high}")
    if log and (low <= 0 or step is not None):
        raise wrong("log needs a low above 0, and no step")
    if step is not None and (step <= 0 or (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step))):
        raise wrong(f"high must be low and a whole number of steps; got {low}, {high}, step {step}")
    whole = all(isinstance(number, int) for number in numbers)
    return Range(key, float(low), float(high), None if step is None else float(step), log, whole)


def _takes_fractions(dimension: Range, accepts: Any) -> bool:
    """Whether the key holds a float although the bounds are written as integers: 0 to 1 would give only 0 and 1."""
    try:
        accepts(dimension.low + 0.5)
    except InputError:
        return False
    return True


def _choices(key: str, values: Any) -> Choices:
    if not isinstance(values, list) or not values:
        raise InputError(f"sweep.space: {key}: must be a list of choices or a table with low and high", EXAMPLE)
    for value in values:
        if not isinstance(value, str | int | float | bool):
            raise InputError(
                f"sweep.space: {key}: a choice must be a string, number or boolean; got {value}", "drop it"
            )
    if len({(type(value), value) for value in values}) < len(values):
        raise InputError(f"sweep.space: {key}: a choice is listed twice", "each once")
    return Choices(key, tuple(values))


def _has_influence(key: str, sweep: SweepConfig) -> None:
    if key in OTHER_VAL:
        problem = "changes which images val holds, so trials could not be compared"
        raise InputError(f"sweep.space: {key}: {problem}", "set it once, outside of the space")
    read = {section for objective in sweep.objectives for section in READ[objective]}
    if key.split(".")[0] not in read:
        objectives = ", ".join(sweep.objectives)
        raise InputError(
            f"sweep.space: {key}: has no effect on sweep.objectives = {objectives}", f"sweep {', '.join(sorted(read))}"
        )


def _some_combination(plan: Plan) -> None:
    """Refuse a space where no combination of the ends makes sense, e.g. momentum for an optimizer without."""
    first: InputError | None = None
    axes = [[(dimension.key, corner) for corner in dimension.corners] for dimension in plan.space]
    for params in itertools.islice(itertools.product(*axes), MOST_COMBINATIONS):
        try:
            plan.config(dict(params))
        except InputError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first
