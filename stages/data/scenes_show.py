"""Composed scenes with their truth, for people to check."""

from __future__ import annotations

from stages.arrays import FlatBoxes
from stages.data.annotated_show import Shown
from stages.data.scenes import boxes_at, opened
from stages.scenes import fresh_scenes
from stages.spec import DataConfig, Split


def pictures(config: DataConfig, split: Split, n: int) -> Shown:
    """`n` scenes of a split's own objects and grounds, and a number for each.

    Raises:
        InputError: as the data stage.
    """
    for made, source, labels, seed in opened(config):
        if made == split:
            frames, truth = fresh_scenes(source, seed, 0, n)
            each = [boxes_at(truth, at) if isinstance(truth, FlatBoxes) else truth[at] for at in range(n)]
            names = [str(at) for at in range(n)]
            return Shown(task=source.task, labels=labels, frames=list(frames), truths=each, names=names)
    raise ValueError(f"no split {split}")
