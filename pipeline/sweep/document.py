"""`sweep.json`: what a sweep tried and found."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.spec import RESULT, Objective


class TrialRow(BaseModel):
    """One trial."""

    model_config = RESULT
    number: int
    state: Literal["complete", "pruned", "failed", "killed", "running"]
    params: dict[str, str | bool | int | float]
    values: dict[str, float]
    """Objective -> value; empty unless complete."""
    reason: str = ""
    """Why it was given up or failed."""
    epochs: int | None = None
    """How many were reported; null with several objectives, where nothing is given up."""
    facts: dict[str, Any] = {}


class SweepDocument(BaseModel):
    """`sweep.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)
    schema_: Annotated[Literal["pipeline.sweep/1"], Field(alias="schema")] = "pipeline.sweep/1"
    name: str
    storage: str
    """Without password."""
    objectives: tuple[Objective, ...]
    trials: tuple[TrialRow, ...]
    best: tuple[int, ...]
    """The best trial, or the Pareto front from the fastest to the best on val."""
    notes: tuple[str, ...]
    files: dict[str, str]
    """What is beside this file: `best` or `best-N` (the TOML of trial N), `picture`, `front`."""
    remeasured_ms: dict[str, float] = {}
    """Trial -> latency of the trials nearest to the front, measured again in the same rounds of one benchmark;
    the front is chosen by these."""

    def row(self, number: int) -> TrialRow:
        """The row of a trial."""
        return next(row for row in self.trials if row.number == number)

    def to_json(self) -> str:
        """The text of `sweep.json`."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"
