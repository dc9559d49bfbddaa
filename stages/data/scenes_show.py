"""Composed scenes with their truth drawn on them, for people to check."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.arrays import FlatBoxes
from stages.data.annotated_show import annotated
from stages.data.scenes import boxes_at, opened
from stages.scenes import fresh_scenes
from stages.spec import DataConfig, Split


def pictures(config: DataConfig, split: Split, n: int) -> tuple[NDArray[np.uint8], list[str]]:
    """`n` drawn scenes (N, H, W, 3) of a split's own objects and grounds, and a number for each.

    Raises:
        InputError: as the data stage.
    """
    for made, source, labels, seed in opened(config):
        if made == split:
            frames, truth = fresh_scenes(source, seed, 0, n)
            each = [boxes_at(truth, at) if isinstance(truth, FlatBoxes) else truth[at] for at in range(n)]
            drawn = [annotated(source.task, frame, one, labels) for frame, one in zip(frames, each, strict=True)]
            return np.stack(drawn), [str(at) for at in range(n)]
    raise ValueError(f"no split {split}")
