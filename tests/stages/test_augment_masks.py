"""Masks follow their pictures: against OpenCV's nearest pixel, and against pictures that are their own masks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_demo.errors import InputError
from stages.augment import PER_PICTURE, Draws
from stages.augment.geometry import Geometry, draw_geometry
from stages.augment.masks import augment_masks, check_masks_augment, moved
from stages.spec import AugmentConfig

OFF = dict.fromkeys(PER_PICTURE, 0.0)


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), n)


def some_masks(n: int, height: int, width: int) -> torch.Tensor:
    """Class ids 0 to 3 and void."""
    values = np.random.default_rng(1).integers(0, 5, (n, height, width))
    return torch.from_numpy(np.where(values == 4, 255, values).astype(np.uint8))


def remapped(masks: torch.Tensor, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The same by cv2.remap, and which pixels are read so near to a pixel's edge that rounding decides."""
    height, width = masks.shape[1:]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    ones = np.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1, np.ones_like(x)]).reshape(3, -1)
    out, close = [], []
    for index, mask in enumerate(masks.numpy()):
        places = (geometry.matrix[index].double().numpy() @ ones).reshape(2, height, width)
        if geometry.field is not None:
            places = places + geometry.field[index].permute(2, 0, 1).double().numpy()
        at = [((place + 1) * side - 1) / 2 for place, side in zip(places, (width, height), strict=True)]
        nearest = [np.rint(place).astype(np.float32) for place in at]
        out.append(cv2.remap(mask, *nearest, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=255))
        close.append(np.any([np.abs(place - np.floor(place) - 0.5) < 1e-3 for place in at], axis=0))
    return np.stack(out), np.stack(close)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(12, 40), st.integers(12, 40)),
    knobs=st.fixed_dictionaries(
        {
            "shift": st.floats(0, 0.5),
            "rotate_deg": st.floats(0, 180),
            "scale": st.floats(0, 0.5),
            "crop": st.floats(0, 0.9),
            "elastic": st.sampled_from([0.0, 0.05]),
            "flip": st.sampled_from([0.0, 0.5]),
        }
    ),
)
def test_the_nearest_pixel_is_opencvs(seed: int, size: tuple[int, int], knobs: dict[str, float]) -> None:
    masks = some_masks(3, *size)
    geometry = draw_geometry(draws(3, seed), OFF | knobs, *size)
    expected, close = remapped(masks, geometry)
    assert np.array_equal(moved(masks, geometry).numpy()[~close], expected[~close])


def test_a_shift_to_the_right_by_hand() -> None:
    """Read one pixel further left: the first column comes from outside, so nobody knows its class."""
    masks = torch.tensor([[[0, 1, 2, 3], [255, 1, 1, 0]]], dtype=torch.uint8)
    left = Geometry(torch.tensor([[[1.0, 0.0, -2 / 4], [0.0, 1.0, 0.0]]]))
    assert moved(masks, left).tolist() == [[[255, 0, 1, 2], [255, 255, 1, 1]]]


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(shift=0.3, flip=0.5),
        AugmentConfig(mosaic=1.0),
        AugmentConfig(mosaic=0.5, flip=0.5, shift=0.2),
        AugmentConfig(quarter_turns=1.0, flip_vertical=0.5),
    ],
)
def test_a_picture_that_is_its_own_mask_stays_so(config: AugmentConfig) -> None:
    """Values are moved by whole pixels here, so inside the picture frame and mask stay one and the same."""
    masks = torch.randint(0, 4, (8, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    frames, after = augment_masks(masks[..., None], masks, config, draws(8), 4)
    assert frames.shape == (8, 16, 16, 1)
    assert not torch.equal(after, masks)
    known = after != 255
    assert known.float().mean() > 0.5
    assert torch.equal(frames[..., 0][known], after[known])


def test_nothing_is_moved_where_nothing_is_on() -> None:
    masks = some_masks(2, 8, 8)
    frames = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    assert augment_masks(frames, masks, AugmentConfig(), draws(2), 4)[1] is masks
    lit = augment_masks(frames, masks, AugmentConfig(noise=0.1, cutout=0.5), draws(2), 4)[1]
    assert torch.equal(lit, masks)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_what_joins_classes_of_pictures_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"train.augment.{name}: joins the classes of pictures"):
        check_masks_augment(AugmentConfig.model_validate({name: 0.5}))
