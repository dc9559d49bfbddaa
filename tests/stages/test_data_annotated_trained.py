"""What training sees of annotated frames: their truth goes along, mirrored by hand; whole pages are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_demo.errors import InputError
from stages.data.annotated import boxes_of
from stages.data.annotated_show import Shown, drawn
from stages.data.annotated_trained import as_trained
from stages.data.show import show
from stages.spec import AugmentConfig, DataConfig, ScenesConfig

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 20, 32, 3), np.uint8)
MIRROR = AugmentConfig(flip=1.0)


def shown(task: str, truths: list[Any]) -> Shown:
    names = [str(at) for at in range(len(truths))]
    return Shown(task=task, labels=("a", "b"), frames=list(FRAMES), truths=truths, names=names)


def source_of(frame: NDArray[np.uint8]) -> int:
    """Which frame this is the mirror image of."""
    (found,) = np.flatnonzero((FRAMES[:, :, ::-1] == frame).all(axis=(1, 2, 3)))
    return int(found)


def test_boxes_are_mirrored_with_their_frames() -> None:
    truths = [boxes_of([[at, 2, at + 5, 9]] * (at % 3), [at % 2] * (at % 3), [1] * (at % 3)) for at in range(6)]
    seen = as_trained(shown("detect", truths), MIRROR, 0)
    for frame, boxes in zip(seen.frames, seen.truths, strict=True):
        true = truths[source_of(frame)]
        assert boxes.classes.tolist() == true.classes.tolist()
        assert boxes.flags.tolist() == true.flags.tolist()
        wanted = [[32 - x1, y0, 32 - x0, y1] for x0, y0, x1, y1 in true.xyxy]
        np.testing.assert_allclose(boxes.xyxy, np.reshape(wanted, (-1, 4)), atol=1e-4)


def test_masks_are_mirrored_with_their_frames() -> None:
    masks = list(np.random.default_rng(1).integers(0, 2, (6, 20, 32), np.uint8))
    seen = as_trained(shown("segment", masks), MIRROR, 0)
    for frame, mask in zip(seen.frames, seen.truths, strict=True):
        assert np.array_equal(mask, masks[source_of(frame)][:, ::-1])


def test_labels_stay_with_their_frames() -> None:
    tags = list(np.array([[0, 0], [0, 1], [1, 0], [1, 1], [1, 0], [0, 1]], np.uint8))
    seen = as_trained(shown("multilabel", tags), MIRROR, 0)
    assert [list(truth) for truth in seen.truths] == [list(tags[source_of(frame)]) for frame in seen.frames]
    assert set(drawn(seen)[1]) == {"(none)", "a", "b", "a b"}


def test_in_random_order_the_same_for_the_same_seed() -> None:
    masks = list(np.zeros((6, 20, 32), np.uint8))
    first, again, other = (as_trained(shown("segment", masks), MIRROR, seed) for seed in (0, 0, 1))
    orders = [[source_of(frame) for frame in seen.frames] for seen in (first, again, other)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(6))


@pytest.mark.parametrize("name", ["scenes-detect", "scenes-segment"])
def test_a_page_of_composed_scenes_with_mosaic(name: str, tmp_path: Path) -> None:
    scenes = ScenesConfig(train_frames=8, val_frames=2, test_frames=2)
    config = DataConfig(name=name, size_wh=(64, 64), colour="rgb", scenes=scenes)
    augment = AugmentConfig(mosaic=1.0, scale=0.2)
    task = name.removeprefix("scenes-")
    for file, changes in (("plain.png", None), ("changed.png", augment)):
        assert show(config, tmp_path / file, n=7, augment=changes, task=task) == 7
    plain, changed = (cv2.imread(str(tmp_path / file)) for file in ("plain.png", "changed.png"))
    assert plain is not None
    assert changed is not None
    assert (plain != changed).any()
    with pytest.raises(InputError, match="colour"):
        show(
            config.model_copy(update={"colour": "gray"}),
            tmp_path / "x.png",
            augment=AugmentConfig(colour=0.1),
            task=task,
        )
