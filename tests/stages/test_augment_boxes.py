"""Boxes go where their pictures go: against the bounds of painted rectangles, found in the changed pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_demo.errors import InputError
from stages.augment import PER_PICTURE, Draws
from stages.augment.boxes import NOTHING, augment_boxes, check_boxes_augment, moved
from stages.augment.geometry import draw_geometry
from stages.augment.mosaic import draw_mosaic
from stages.spec import AugmentConfig

HEIGHT, WIDTH = 96, 128
OFF = dict.fromkeys(PER_PICTURE, 0.0)


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), n)


def painted(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """N frames with three rectangles each, of levels 100, 101, ... that are unique in the batch; and their boxes.

    A box's class is its level - 100, so that pixels and boxes can be paired.
    """
    rng = np.random.default_rng(seed)
    frames = np.zeros((n, HEIGHT, WIDTH, 1), np.uint8)
    boxes = np.zeros((n, 4, 6), np.float32)
    boxes[:, 3, 4] = NOTHING
    for item in range(n):
        for at in range(3):
            x0, y0 = 4 + 42 * at, int(rng.integers(4, 40))
            x1, y1 = x0 + int(rng.integers(20, 38)), y0 + int(rng.integers(20, 50))
            level = 3 * item + at
            frames[item, y0:y1, x0:x1] = 100 + level
            boxes[item, at] = (x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT, level, 0)
    return torch.from_numpy(frames), torch.from_numpy(boxes)


def bounds(mask: Any) -> tuple[int, int, int, int] | None:
    y, x = np.nonzero(mask)
    return (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1) if len(x) else None


def pixels(box: Tensor) -> list[float]:
    return [float(value) for value in box[:4] * torch.tensor([WIDTH, HEIGHT] * 2)]


@pytest.mark.parametrize(
    "knobs",
    [
        {"flip": 1.0}, {"flip_vertical": 1.0}, {"quarter_turns": 1.0}, {"shift": 0.2}, {"scale": 0.4}, {"crop": 0.5},
        {"flip": 0.5, "flip_vertical": 0.5, "quarter_turns": 0.5, "scale": 0.3, "shift": 0.2, "crop": 0.3},
    ],
    ids=str,
)  # fmt: skip
def test_moved_boxes_are_the_bounds_of_the_moved_pixels(knobs: dict[str, float]) -> None:
    """Each rectangle on a frame of its own, so that nothing of it is hidden; edges blur by a pixel."""
    frames, boxes = painted(6)
    geometry = draw_geometry(draws(6), OFF | knobs, HEIGHT, WIDTH)
    result, checked = moved(boxes, geometry), 0
    for at in range(3):
        levels = boxes[:, at, 4].view(-1, 1, 1, 1) + 100
        alone = geometry.apply((frames == levels).permute(0, 3, 1, 2).float())
        for item in range(6):
            if result[item, at, 4] == NOTHING:
                continue
            # The border repeats: a rectangle at the edge of the source is smeared outwards, which is no part of it.
            found = bounds(alone[item, 0].numpy() > 0.5)
            assert found is not None
            np.testing.assert_allclose(pixels(result[item, at]), found, atol=1.01)
            checked += 1
    assert checked >= 8
    assert (result[:, 3, 4] == NOTHING).all()


def test_a_box_of_which_little_is_left_is_no_box_any_more() -> None:
    matrix = torch.tensor([[[1.0, 0, 1.5], [0, 1, 0]]])  # three quarters to the left
    from stages.augment.geometry import Geometry

    boxes = torch.tensor([[[0.7, 0.1, 0.9, 0.3, 1, 0], [0.8, 0.1, 0.9, 0.3, 2, 0], [0.1, 0.1, 0.3, 0.3, 3, 0]]])
    result = moved(boxes, Geometry(matrix))[0]
    # 0.7..0.9 goes to -0.05..0.15, of which three quarters are left; 0.8..0.9 stays whole; 0.1..0.3 is gone
    np.testing.assert_allclose(result[:2, :4], [[0, 0.1, 0.15, 0.3], [0.05, 0.1, 0.15, 0.3]], atol=1e-6)
    assert result[:, 4].tolist() == [1, 2, NOTHING]


def test_mosaic_boxes_are_the_bounds_of_what_is_seen() -> None:
    frames, boxes = painted(12)
    config = AugmentConfig(mosaic=1.0)
    changed, found = augment_boxes(frames, boxes, config, draws(12, 5), 36)
    assert changed.shape == frames.shape
    seen = 0
    for item in range(12):
        shown = {int(level) - 100 for level in changed[item].unique() if level >= 100}
        assert {level // 12 for level in shown} == {item // 4}  # of its four only
        rows = found[item][found[item, :, 4] != NOTHING]
        assert set(rows[:, 4].int().tolist()) <= shown
        for row in rows:
            visible = bounds(changed[item, :, :, 0].numpy() == 100 + int(row[4]))
            np.testing.assert_allclose(pixels(row), visible, atol=1e-3)
            seen += 1
    assert seen > 36


def test_mosaic_of_some_leaves_the_others_and_the_last_of_no_four() -> None:
    frames, _ = painted(10)
    mosaic = draw_mosaic(draws(10, 1), 0.5, HEIGHT, WIDTH)
    same = (mosaic.apply(frames) == frames).flatten(1).all(dim=1)
    assert same[8:].all()
    assert 0 < int(same[:8].sum()) < 8


def test_a_part_of_a_batch_is_changed_like_the_whole() -> None:
    frames, boxes = painted(8)
    config = AugmentConfig(mosaic=0.7, flip=0.5, scale=0.2, noise=0.02)
    whole, whole_boxes = augment_boxes(frames, boxes, config, draws(8, 3), 24)
    for part in (slice(0, 4), slice(4, 8)):
        share = Draws(torch.Generator().manual_seed(3), 8, part)
        some, some_boxes = augment_boxes(frames[part], boxes[part], config, share, 24)
        assert torch.equal(some, whole[part])
        kept = [rows[rows[:, 4] != NOTHING] for rows in some_boxes]
        for rows, wanted in zip(kept, whole_boxes[part], strict=True):
            torch.testing.assert_close(rows, wanted[wanted[:, 4] != NOTHING])
    with pytest.raises(InputError, match="joins fours"):
        draw_mosaic(Draws(torch.Generator(), 12, slice(0, 6)), 1.0, HEIGHT, WIDTH)


def test_frames_without_boxes_pass() -> None:
    frames, _ = painted(4)
    none = torch.full((4, 1, 6), 0.0)
    none[..., 4] = NOTHING
    config = AugmentConfig(mosaic=1.0, flip=0.5, scale=0.2)
    assert (augment_boxes(frames, none, config, draws(4), 3)[1][..., 4] == NOTHING).all()


@pytest.mark.parametrize("knob", ["mixup", "cutmix", "elastic"])
def test_what_boxes_cannot_follow_is_refused(knob: str) -> None:
    with pytest.raises(InputError, match=rf"train\.augment\.{knob}"):
        check_boxes_augment(AugmentConfig(**{knob: 0.1}))
