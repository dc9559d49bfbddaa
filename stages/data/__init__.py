"""The data stage: labelled pictures in, split and decoded frames at network size out. Registry: `KINDS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stages.data import annotated_prepare, annotated_sets, prepare, scenes, sets
from stages.spec import DataConfig, DataResult, OnStep, ignore

__all__ = ["fingerprint", "run"]


@dataclass(frozen=True, slots=True)
class Kind:
    """How sets of one kind of truth are prepared and known again."""

    run: Callable[..., DataResult]
    fingerprint: Callable[[DataConfig], str]


LABELLED = Kind(prepare.run, sets.fingerprint)
KINDS: dict[str, Kind] = {
    **dict.fromkeys(annotated_sets.LAYOUTS, Kind(annotated_prepare.run, annotated_sets.fingerprint)),
    **dict.fromkeys(scenes.TASKS, Kind(scenes.run, scenes.fingerprint)),
}
"""Set -> its kind; every other one is pictures with a class each."""


def run(config: DataConfig, *, out_dir: Path, on_step: OnStep = ignore) -> DataResult:
    """Reads, splits and resizes a data set into `out_dir`.

    Raises:
        InputError: as the kind's own `run`.
    """
    return KINDS.get(config.name, LABELLED).run(config, out_dir=out_dir, on_step=on_step)


def fingerprint(config: DataConfig) -> str:
    """sha256 over everything outside the run folder that `run` would read.

    Raises:
        InputError: a set is missing, or the settings contradict each other.
    """
    return KINDS.get(config.name, LABELLED).fingerprint(config)
