"""Mixup and cutmix by hand, their shares against the Beta distribution; colour against OpenCV; the policy's dials."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from edge_demo.errors import InputError
from stages.augment import Draws, augment, limits_of
from stages.augment.light import recolour
from stages.augment.mix import cutmix, mixup, partners
from stages.augment.policy import STRONGEST
from stages.spec import AugmentConfig


def draws(n: int, seed: int = 0, part: slice | None = None) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), n, part or slice(None))


def numbers(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_partners_are_pairs_and_an_odd_last_one_is_alone() -> None:
    assert partners(draws(6)).tolist() == [1, 0, 3, 2, 5, 4]
    assert partners(draws(5)).tolist() == [1, 0, 3, 2, 4]
    assert partners(draws(8, part=slice(4, 8))).tolist() == [1, 0, 3, 2]
    with pytest.raises(InputError, match=r"pictures 3 to 6 of a batch"):
        partners(draws(6, part=slice(3, 6)))


def test_mixup_by_hand() -> None:
    batch = torch.tensor([100.0, 200.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    mixed = mixup(batch, torch.tensor([1, 0]), numbers(0.75, 0.1))
    assert mixed[0].unique().tolist() == [125.0]
    assert mixed[1].unique().tolist() == pytest.approx([110.0])


def test_cutmix_by_hand() -> None:
    """Share 0.75: a rectangle of half the sides. At the middle of 8 x 4 it is 4 x 2; at the corner a quarter stays."""
    batch = torch.zeros(4, 1, 8, 4)
    batch[1::2] = 1
    mixed, share = cutmix(
        batch, torch.tensor([1, 0, 3, 2]), numbers(0.75, 0.75, 0.75, 1),
        numbers(0.5, 0, 0.5, 0.5), numbers(0.5, 0, 0.25, 0.5),
    )  # fmt: skip
    expected = np.zeros((4, 8, 4))
    expected[0, 2:6, 1:3] = 1
    expected[1] = 1
    expected[1, 0:2, 0:1] = 0
    expected[2, 2:6, 0:2] = 1
    expected[3] = 1
    assert np.array_equal(mixed[:, 0].numpy(), expected)
    assert share.flatten().tolist() == [1 - 8 / 32, 1 - 2 / 32, 1 - 8 / 32, 1]


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 5.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)), and no NaN where both gammas are tiny."""
    share = draws(20_000).beta(alpha)
    assert share.shape == (20_000, 1, 1, 1)
    assert bool(((share >= 0) & (share <= 1)).all())
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(share.mean()) == pytest.approx(0.5, abs=5 * math.sqrt(variance / 20_000))
    assert float(share.var()) == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("knobs", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_targets_say_how_much_of_each_is_in_the_picture(knobs: dict[str, float]) -> None:
    """Even pictures are black, odd ones white: a picture's mean level is its share of class 1."""
    frames = torch.zeros(64, 16, 16, 1, dtype=torch.uint8)
    frames[1::2] = 255
    targets = torch.arange(64) % 2
    out, soft = augment(frames, targets, AugmentConfig.model_validate(knobs), draws(64), 3)
    assert soft.shape == (64, 3)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(1), torch.ones(64))
    assert bool((soft[:, 2] == 0).all())
    np.testing.assert_allclose(out.float().mean((1, 2, 3)) / 255, soft[:, 1], atol=0.5 / 255 + 1e-5)
    binary = ((out == 0) | (out == 255)).flatten(1).all(1)
    assert bool(binary.all()) == ("mixup" not in knobs)
    if len(knobs) == 2:
        assert 10 < int(binary.sum()) < 54


def test_the_last_of_an_odd_batch_is_itself() -> None:
    frames = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 4, 4, 1).contiguous()
    out, soft = augment(frames, torch.arange(5), AugmentConfig(mixup=1.0, cutmix=1.0), draws(5), 5)
    assert torch.equal(out[4], frames[4])
    assert soft[4].tolist() == pytest.approx([0, 0, 0, 0, 1])


def test_recolour_is_a_turn_of_opencvs_colour_differences() -> None:
    """OpenCV's YCrCb: its Cr, Cb plane turned and stretched there, and turned back by OpenCV."""
    frame = np.random.default_rng(0).random((6, 5, 3), np.float32)
    turn, saturation, brightness = 0.7, 1.3, 0.9
    ycc = cv2.cvtColor(frame, cv2.COLOR_BGR2YCrCb)
    red, blue = ycc[..., 1] - 0.5, ycc[..., 2] - 0.5
    ycc[..., 1] = saturation * (math.cos(turn) * red - math.sin(turn) * blue) + 0.5
    ycc[..., 2] = saturation * (math.sin(turn) * red + math.cos(turn) * blue) + 0.5
    expected = brightness * cv2.cvtColor(ycc, cv2.COLOR_YCrCb2BGR)
    batch = torch.from_numpy(frame).permute(2, 0, 1)[None]
    got = recolour(batch, *(torch.tensor([value]) for value in (turn, saturation, brightness)))
    np.testing.assert_allclose(got[0].permute(1, 2, 0).numpy(), expected, atol=3e-3)


def test_colour_leaves_grey_grey_and_keeps_luma_but_for_brightness() -> None:
    frames = torch.full((50, 4, 4, 3), 100, dtype=torch.uint8)
    out, _ = augment(frames, torch.zeros(50), AugmentConfig(colour=0.3), draws(50), 2)
    assert bool((out == out[..., :1]).all())
    levels = out[:, 0, 0, 0].float()
    assert levels.min() >= 70
    assert levels.max() <= 130
    assert levels.std() > 10


def test_colour_of_gray_frames_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.augment\.colour: the frames are gray"):
        augment(torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.zeros(2), AugmentConfig(colour=0.1), draws(2), 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_policy_chooses_every_change_equally_often(channels: int) -> None:
    """Of 3 choices among k changes and nothing, at least one is a certain change at 1 - (1 - 1/(k+1))^3."""
    config = AugmentConfig(policy=3, policy_magnitude=0.25)
    limits = limits_of(config, draws(6000), channels)
    names = [name for name in STRONGEST if channels == 3 or name != "colour"]
    expected = 1 - (1 - 1 / (len(names) + 1)) ** 3
    for name in names:
        limit = limits[name]
        assert isinstance(limit, Tensor)
        assert float((limit > 0).float().mean()) == pytest.approx(expected, abs=4.5 * math.sqrt(0.25 / 6000))
        allowed = [factor * 0.25 * STRONGEST[name] for factor in range(4)]
        distances = (limit.flatten()[:, None] - torch.tensor(allowed)).abs().min(dim=1).values
        assert float(distances.max()) < 1e-5
    assert (limits["crop"], limits["elastic"], limits["flip"]) == (0, 0, 0)
    if channels == 1:
        assert limits["colour"] == 0


def test_policy_comes_on_top_of_what_is_set() -> None:
    limits = limits_of(AugmentConfig(rotate_deg=20, policy=1, policy_magnitude=0.1), draws(500), 1)
    rotation = limits["rotate_deg"]
    assert isinstance(rotation, Tensor)
    assert float(rotation.min()) == 20
    assert float(rotation.max()) == 20  # 3 degrees of the policy are less


def test_policy_changes_some_pictures_and_leaves_others() -> None:
    frames = torch.from_numpy(np.random.default_rng(0).integers(60, 200, (1, 12, 12, 3), np.uint8))
    frames = frames.expand(600, -1, -1, -1).contiguous()
    out, targets = augment(frames, torch.zeros(600), AugmentConfig(policy=1, policy_magnitude=0.5), draws(600), 2)
    same = (out == frames).flatten(1).all(1).float().mean()
    # one in 11 draws nothing, and half of those that draw inverting or blur keep the picture
    assert float(same) == pytest.approx(2 / 11, abs=0.08)
    assert torch.equal(targets, torch.zeros(600))
