"""Augmentation: each knob against numpy by hand, identity at 0, seeded, frames stay frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.augment import Draws, augment_alone
from stages.augment import augment as augment_batch
from stages.augment.geometry import warp
from stages.augment.light import blur3
from stages.spec import AugmentConfig

FRAMES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 12, 10, 3), np.uint8))
TARGETS = torch.arange(16)


def augment(
    frames: Tensor, targets: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    return augment_batch(frames, targets, config, Draws(generator, len(frames)), 16)


def changed(frames: Tensor = FRAMES, seed: int = 0, **knobs: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    out, targets = augment(frames, TARGETS[: len(frames)], AugmentConfig(**knobs), generator)
    assert torch.equal(targets, TARGETS[: len(frames)])
    assert out.dtype == torch.uint8
    assert out.shape == frames.shape
    return out


def matrix(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float32)


def test_all_knobs_at_zero_change_nothing_and_draw_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    out, _ = augment(FRAMES, TARGETS, AugmentConfig(), generator)
    assert torch.equal(out, FRAMES)
    assert torch.equal(generator.get_state(), before)


def test_certain_flip_and_invert_are_exact() -> None:
    assert np.array_equal(changed(flip=1.0).numpy(), FRAMES.numpy()[:, :, ::-1])
    assert np.array_equal(changed(invert=1.0).numpy(), 255 - FRAMES.numpy())


@pytest.mark.parametrize("knobs", [{}, {"rotate_deg": 1e-6}])
def test_whose_turn_it_is_is_mirrored_whatever_chance_says(knobs: dict[str, float]) -> None:
    """With and without resampling; a process mirrors those of its own part."""
    config = AugmentConfig.model_validate({"flip": 0.5, "flip_in_turn": True} | knobs)
    turn = torch.arange(len(FRAMES)) % 3 == 0
    part = slice(2, None)
    out, _ = augment_alone(FRAMES[part], config, Draws(torch.Generator().manual_seed(0), len(FRAMES), part, turn))
    want = torch.where(turn.view(-1, 1, 1, 1), FRAMES.flip(2), FRAMES)[part]
    assert (out.int() - want.int()).abs().max() <= 1


def test_probabilities_are_met_and_never_half_done() -> None:
    frames = FRAMES[:1].expand(2000, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    out, _ = augment(frames, torch.zeros(2000), AugmentConfig(invert=0.3), generator)
    inverted = (out == 255 - frames).flatten(1).all(1)
    kept = (out == frames).flatten(1).all(1)
    assert bool((inverted | kept).all())
    assert inverted.float().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 2000))


def test_warp_shifts_by_whole_pixels_and_repeats_the_border() -> None:
    """Reading 2 pixels further right and 3 further down of a 10 x 12 picture: 2 / 5 and 3 / 6 half sides."""
    batch = FRAMES[:1].permute(0, 3, 1, 2).float()
    got = warp(batch, matrix((1, 0, 2 / 5), (0, 1, 3 / 6)))
    padded = np.pad(FRAMES[0].numpy(), ((0, 3), (0, 2), (0, 0)), mode="edge")[3:, 2:]
    np.testing.assert_allclose(got[0].permute(1, 2, 0).numpy(), padded, atol=1e-3)


def test_warp_is_torchs_affine() -> None:
    batch, matrices = (
        FRAMES.permute(0, 3, 1, 2).float(),
        torch.randn(16, 2, 3, generator=torch.Generator().manual_seed(0)),
    )
    grid = F.affine_grid(matrices, list(batch.shape), align_corners=False)
    expected = F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(warp(batch, matrices), expected, rtol=1e-3, atol=1e-2)


def test_warp_turns_a_square_by_a_right_angle() -> None:
    square = torch.from_numpy(np.random.default_rng(1).random((1, 1, 9, 9), np.float32))
    got = warp(square, matrix((0, -1, 0), (1, 0, 0)))
    # result (x, y) is read at source (-y, x): a quarter turn
    np.testing.assert_allclose(got[0, 0].numpy(), np.rot90(square[0, 0].numpy(), 1), atol=1e-5)


def test_shift_moves_no_further_than_asked() -> None:
    """A bright column in the middle of 41 pixels stays within 0.1 x 41 = 4.1 pixels, plus one for interpolation."""
    frames = torch.zeros(64, 41, 41, 1, dtype=torch.uint8)
    frames[:, :, 20] = 255
    out, _ = augment(frames, torch.zeros(64), AugmentConfig(shift=0.1), torch.Generator().manual_seed(0))
    columns = out[..., 0].float().mean(1)
    centre = (columns * torch.arange(41)).sum(1) / columns.sum(1) - 20
    assert centre.abs().max() <= 4.1 + 0.05
    assert centre.std() == pytest.approx(8.2 / math.sqrt(12), rel=0.25)


@pytest.mark.parametrize("shape", [(31, 31), (21, 41), (41, 21)])
def test_rotation_keeps_angles_on_pictures_of_any_shape(shape: tuple[int, int]) -> None:
    """A disc stays a disc: its second moments stay isotropic, and its centre stays where it is."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    disc = 255.0 / (1 + np.exp(2 * (np.hypot(x - width // 2, y - height // 2) - 5)))
    frames = torch.from_numpy(disc.astype(np.uint8))[None, :, :, None].expand(32, -1, -1, -1)
    out, _ = augment(frames, torch.zeros(32), AugmentConfig(rotate_deg=180), torch.Generator().manual_seed(0))
    for picture in out[..., 0].numpy().astype(float):
        total = picture.sum()
        centre_x, centre_y = (picture * x).sum() / total, (picture * y).sum() / total
        assert (centre_x, centre_y) == pytest.approx((width // 2, height // 2), abs=0.05)
        spread_x, spread_y = (picture * (x - centre_x) ** 2).sum(), (picture * (y - centre_y) ** 2).sum()
        assert spread_x / spread_y == pytest.approx(1, abs=0.03)


def test_scale_stays_within_its_limits() -> None:
    """The area of a disc changes by (1 +- 0.2)^2 at most."""
    y, x = np.mgrid[:41, :41]
    disc = (np.hypot(x - 20, y - 20) < 8).astype(np.uint8) * 255
    frames = torch.from_numpy(disc)[None, :, :, None].expand(64, -1, -1, -1)
    out, _ = augment(frames, torch.zeros(64), AugmentConfig(scale=0.2), torch.Generator().manual_seed(0))
    area = out.float().sum((1, 2, 3)) / disc.sum(dtype=float)
    assert area.min() >= 0.8**2 - 0.02
    assert area.max() <= 1.2**2 + 0.02
    assert area.max() - area.min() > 0.4


def test_blur_against_numpy() -> None:
    batch = FRAMES[:2].permute(0, 3, 1, 2).float()
    padded = np.pad(batch.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    np.testing.assert_allclose(blur3(batch).numpy(), (windows * kernel).sum((-1, -2)), rtol=1e-5)
    expected = np.rint((windows * kernel).sum((-1, -2))).transpose(0, 2, 3, 1)
    assert np.abs(changed(FRAMES[:2], blur=1.0).numpy() - expected).max() <= 1  # a tie may round either way


def test_noise_has_at_most_the_asked_deviation() -> None:
    grey = torch.full((16, 64, 64, 1), 128, dtype=torch.uint8)
    deviation = changed(grey, noise=0.1).float().flatten(1).std(1) / 255
    assert deviation.max() <= 0.1 * 1.05
    assert deviation.max() > 0.05
    assert deviation.min() < 0.05


def test_contrast_is_a_straight_line_per_picture() -> None:
    """Unclipped values keep their order and even distances; gain within 1 +- 0.3, and pictures differ."""
    ramp = torch.arange(100, 160, 4, dtype=torch.uint8).view(1, 1, 15, 1).expand(16, 4, -1, -1).contiguous()
    out = changed(ramp, contrast=0.3).float()[:, 0, :, 0]
    gains = (out[:, -1] - out[:, 0]) / 56
    assert gains.min() >= 0.7 - 0.02
    assert gains.max() <= 1.3 + 0.02
    assert gains.std() > 0.05
    assert ((out.diff(dim=1) / 4 - gains[:, None]).abs() <= 0.26).all()  # rounding: one level of 4


def test_cutout_blanks_one_square_with_the_mean() -> None:
    out = changed(FRAMES, cutout=0.5)
    for frame, before in zip(out.numpy(), FRAMES.numpy(), strict=True):
        mean = np.rint(before.astype(float).mean((0, 1)))
        blank = (np.abs(frame - mean) <= 1).all(-1)
        rows, columns = np.flatnonzero((frame != before).any((1, 2))), np.flatnonzero((frame != before).any((0, 2)))
        assert rows.max() - rows.min() + 1 <= 6
        assert columns.max() - columns.min() + 1 <= 5
        assert blank.sum() >= 6 * 5
        assert (frame == before).all(-1).sum() >= 12 * 10 - 6 * 5


def test_inverting_comes_after_geometry_so_no_black_wedges() -> None:
    """White paper, dark ink after inverting: every pixel moved in from outside is paper."""
    frames = torch.zeros(16, 12, 10, 1, dtype=torch.uint8)
    out = changed(frames, shift=0.3, rotate_deg=30, invert=1.0)
    assert bool((out == 255).all())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    channels=st.sampled_from((1, 3)),
    knobs=st.fixed_dictionaries(
        {
            "shift": st.floats(0, 0.5),
            "rotate_deg": st.floats(0, 180),
            "scale": st.floats(0, 0.9),
            "shear": st.floats(0, 0.9),
            "flip": st.floats(0, 1),
            "invert": st.floats(0, 1),
            "contrast": st.floats(0, 1),
            "blur": st.floats(0, 1),
            "noise": st.floats(0, 0.5),
            "cutout": st.floats(0, 0.9),
        }
    ),
)
def test_seeded_and_input_untouched(seed: int, channels: int, knobs: dict[str, float]) -> None:
    frames = FRAMES[..., :channels].contiguous()
    before = frames.clone()
    first, again = changed(frames, seed, **knobs), changed(frames, seed, **knobs)
    assert torch.equal(first, again)
    assert torch.equal(frames, before)
    assert first.is_contiguous()


def test_grey_pictures_in_three_channels_stay_grey() -> None:
    """Geometry, light and blur treat the channels alike (noise does not, as in a camera)."""
    grey = FRAMES[..., :1].expand(-1, -1, -1, 3).contiguous()
    out = changed(grey, shift=0.2, rotate_deg=20, scale=0.2, contrast=0.5, blur=1.0, invert=0.5, cutout=0.3)
    assert torch.equal(out[..., 0], out[..., 1])
    assert torch.equal(out[..., 0], out[..., 2])
