"""Crop, elastic, whole-pixel shifts and the order of all of them, against numpy and OpenCV."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.augment import PER_PICTURE, Draws, augment
from stages.augment.geometry import compose, draw_crop, draw_field, draw_geometry, shift_and_flip, warp
from stages.spec import AugmentConfig

OFF = dict.fromkeys(PER_PICTURE, 0.0)


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), n)


def smooth(n: int, height: int, width: int) -> torch.Tensor:
    """Float pictures without sharp edges, where two bilinear interpolations agree closely."""
    noise = np.random.default_rng(0).random((n, height, width), np.float32) * 255
    return torch.from_numpy(np.stack([cv2.GaussianBlur(part, (0, 0), 2) for part in noise]))[:, None]


def remapped(batch: torch.Tensor, matrix: torch.Tensor, field: torch.Tensor | None) -> np.ndarray:
    """The same by cv2.remap, whose places are pixel centres from 0."""
    height, width = batch.shape[2:]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    half_x, half_y = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1
    out = []
    for index, picture in enumerate(batch[:, 0].numpy()):
        places = matrix[index].double().numpy() @ np.stack([half_x, half_y, np.ones_like(x)]).reshape(3, -1)
        source_x, source_y = places.reshape(2, height, width)
        if field is not None:
            source_x, source_y = source_x + field[index, ..., 0].numpy(), source_y + field[index, ..., 1].numpy()
        map_x, map_y = ((source_x + 1) * width - 1) / 2, ((source_y + 1) * height - 1) / 2
        out.append(
            cv2.remap(
                picture, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )  # fmt: skip
    return np.stack(out)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(12, 40), st.integers(12, 40)),
    knobs=st.fixed_dictionaries(
        {
            "shift": st.floats(0, 0.5),
            "rotate_deg": st.floats(0, 180),
            "scale": st.floats(0, 0.5),
            "shear": st.floats(0, 0.5),
            "crop": st.floats(0, 0.8),
            "elastic": st.floats(0, 0.1),
            "flip": st.sampled_from((0.0, 0.5, 1.0)),
            "flip_vertical": st.sampled_from((0.0, 0.5, 1.0)),
            "quarter_turns": st.sampled_from((0.0, 0.5, 1.0)),
        }
    ),
)
def test_all_geometry_together_is_opencvs_remap(seed: int, size: tuple[int, int], knobs: dict[str, float]) -> None:
    """OpenCV rounds places to 1/32 of a pixel; on smooth pictures that is a level or two."""
    batch = smooth(3, *size)
    geometry = draw_geometry(draws(3, seed), knobs, *size)
    expected = remapped(batch, geometry.matrix, geometry.field)
    np.testing.assert_allclose(geometry.apply(batch)[:, 0].numpy(), expected, atol=4)


def test_crop_is_inside_has_the_asked_area_and_a_modest_ratio() -> None:
    matrix = draw_crop(draws(4000), 0.6)
    width, height = matrix[:, 0, 0], matrix[:, 1, 1]
    assert bool((matrix[:, 0, 2].abs() + width <= 1 + 1e-6).all())
    assert bool((matrix[:, 1, 2].abs() + height <= 1 + 1e-6).all())
    free = (width < 1) & (height < 1)  # a side as long as the picture's is cut off
    area, ratio = (width * height)[free], (width / height)[free]
    assert 0.4 - 1e-5 <= float(area.min()) < 0.41
    assert bool((area <= 1).all())
    assert 3 / 4 - 1e-5 <= float(ratio.min()) < 0.76
    assert 1.31 < float(ratio.max()) <= 4 / 3 + 1e-5
    assert float(matrix[:, 0, 2].mean()) == pytest.approx(0, abs=0.02)


def test_a_crop_of_the_left_upper_quarter_is_opencvs_resize_of_it() -> None:
    batch = smooth(1, 20, 24)
    got = warp(batch, torch.tensor([[[0.5, 0, -0.5], [0, 0.5, -0.5]]]))[0, 0].numpy()
    expected = cv2.resize(batch[0, 0].numpy()[:10, :12], (24, 20), interpolation=cv2.INTER_LINEAR)
    # the last row and column look over the quarter's edge here, and repeat it there
    np.testing.assert_allclose(got[:-1, :-1], expected[:-1, :-1], atol=0.01)


def test_compose_is_the_product_of_matrices() -> None:
    outer, inner = (torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    below = torch.tensor([[[0.0, 0, 1]]]).expand(5, 1, 3)
    expected = torch.cat([outer, below], 1) @ torch.cat([inner, below], 1)
    torch.testing.assert_close(compose(outer, inner), expected[:, :2])


@pytest.mark.parametrize(("height", "width"), [(28, 28), (28, 56), (96, 64)])
def test_elastic_field_has_the_asked_deviation_everywhere_and_the_gaussians_correlation(
    height: int, width: int
) -> None:
    """White noise under a Gaussian of sigma s has the correlation exp(-d^2 / 4 s^2) at distance d."""
    field = draw_field(draws(3000), 0.05, height, width).numpy() / 2  # in sides
    assert field.shape == (3000, height, width, 2)
    np.testing.assert_allclose(field.std(axis=0), 0.05, rtol=0.08)
    np.testing.assert_allclose(field.mean(axis=0), 0, atol=5 * 0.05 / math.sqrt(3000))
    middle, step = height // 2, height // 7
    here, there = field[:, middle, width // 2, 0], field[:, middle + step, width // 2, 0]
    expected = math.exp(-((step / height) ** 2) / (4 * (4 / 29) ** 2))
    assert np.corrcoef(here, there)[0, 1] == pytest.approx(expected, abs=0.03)
    assert np.corrcoef(field[:, middle, 5, 0], field[:, middle, 5, 1])[0, 1] == pytest.approx(0, abs=0.07)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.floats(0, 0.5), flip=st.sampled_from((0.0, 1.0)))
def test_whole_pixel_shift_is_a_slice_of_the_padded_picture(seed: int, shift: float, flip: float) -> None:
    frames = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (4, 11, 8, 3), np.uint8))
    got = shift_and_flip(frames, draws(4, seed), OFF | {"shift": shift, "flip": flip})[0].numpy()
    most_y, most_x = int(np.float32(shift) * np.float32(11)), int(np.float32(shift) * np.float32(8))
    for before, after in zip(frames.numpy(), got, strict=True):
        padded = np.pad(before, ((most_y, most_y), (most_x, most_x), (0, 0)), mode="edge")
        places = [padded[y : y + 11, x : x + 8] for y in range(2 * most_y + 1) for x in range(2 * most_x + 1)]
        seen = after[:, ::-1] if flip else after
        assert any(np.array_equal(seen, place) for place in places)


def test_whole_pixel_shifts_are_all_alike() -> None:
    frames = torch.zeros(9000, 9, 9, 1, dtype=torch.uint8)
    frames[:, 4, 4] = 255
    out, _ = augment(frames, torch.zeros(9000), AugmentConfig(shift=0.12), draws(9000), 10)  # 1.08 pixels
    counts = (out[..., 0] == 255).sum(0).numpy()
    assert counts.sum() == 9000
    assert np.count_nonzero(counts) == 9
    np.testing.assert_allclose(counts[3:6, 3:6], 1000, atol=5 * math.sqrt(1000))


def test_parts_of_a_batch_are_changed_as_the_whole() -> None:
    """Two processes with half of the batch each see together what one sees."""
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 10, 14, 3), np.uint8))
    targets = torch.arange(12) % 5
    config = AugmentConfig(
        shift=0.1, rotate_deg=10, scale=0.1, shear=0.1, crop=0.3, elastic=0.03, flip=0.5, invert=0.5, contrast=0.3,
        colour=0.2, blur=0.5, noise=0.1, cutout=0.3, mixup=0.4, cutmix=1.0, policy=2, policy_magnitude=0.5,
    )  # fmt: skip
    whole, mixed = augment(frames, targets, config, draws(12), 5)
    for part in (slice(0, 6), slice(6, 12)):
        share = Draws(torch.Generator().manual_seed(0), 12, part)
        some, some_targets = augment(frames[part], targets[part], config, share, 5)
        assert (some.int() - whole[part].int()).abs().max() <= 1  # sums of floats in another order
        torch.testing.assert_close(some_targets, mixed[part])


@pytest.mark.parametrize(
    "knobs",
    [
        {"crop": 1.0}, {"elastic": 0.3}, {"colour": 1.1}, {"mixup": -1.0}, {"cutmix": 11.0}, {"policy": 9},
        {"policy": 2}, {"policy_magnitude": 0.5},
    ],
)  # fmt: skip
def test_out_of_range_or_without_effect_is_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig.model_validate(knobs)
