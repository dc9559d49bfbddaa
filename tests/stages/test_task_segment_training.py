"""Segmentation while training: loss against numpy and hand-worked cases, pixels in their places, void left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_demo.tasks.segment_metric import VOID
from stages.spec import TrainConfig
from stages.tasks.segment import Post, loss, per_place

PLAIN = TrainConfig(task="segment")


def fine(logits: NDArray[np.float64]) -> torch.Tensor:
    """Logits per pixel (N, K, 2 h, 2 w) as the network gives them, (N, 4 K, h, w), pixel by pixel."""
    n, classes, height, width = logits.shape
    out = np.empty((n, 4 * classes, height // 2, width // 2), np.float32)
    for channel in range(4 * classes):
        class_id, y, x = channel // 4, channel % 4 // 2, channel % 2
        out[:, channel] = logits[:, class_id, y::2, x::2]
    return torch.from_numpy(out)


def in_numpy(
    logits: NDArray[np.float64], truth: NDArray[np.uint8], smoothing: float, weights: NDArray[np.float64]
) -> float:
    """The loss by its definition, one picture and one pixel after the other."""
    found = []
    for scores, classes in zip(logits, truth, strict=True):
        p = np.exp(scores) / np.exp(scores).sum(axis=0)
        known = np.argwhere(classes != VOID)
        if not len(known):
            found.append(0.0)
            continue
        entropies = []
        for y, x in known:
            wanted = np.full(len(scores), smoothing / len(scores))
            wanted[classes[y, x]] += 1 - smoothing
            entropies.append(-(wanted * weights * np.log(p[:, y, x])).sum())
        overlaps = []
        for class_id in np.unique(classes[classes != VOID]):
            t, q = (classes == class_id)[classes != VOID], p[class_id][classes != VOID]
            overlaps.append((2 * q[t].sum() + 1) / (q.sum() + t.sum() + 1))
        found.append(np.mean(entropies) + 1 - np.mean(overlaps))
    return float(np.mean(found))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    void=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_loss_is_its_definition(seed: int, smoothing: float, weighted: bool, void: float) -> None:
    rng = np.random.default_rng(seed)
    logits, truth = rng.normal(size=(3, 4, 6, 8)), rng.integers(0, 4, (3, 6, 8)).astype(np.uint8)
    truth[0][rng.random(truth[0].shape) < void] = VOID
    weights = rng.uniform(0.5, 2, 4) if weighted else np.ones(4)
    config = PLAIN.model_copy(update={"label_smoothing": smoothing})
    got = loss(
        (fine(logits),), torch.from_numpy(truth), config, torch.from_numpy(weights).float() if weighted else None
    )
    assert float(got) == pytest.approx(in_numpy(logits, truth, smoothing, weights), rel=1e-4)


def test_cross_entropy_part_is_torchs() -> None:
    """Dice by hand is taken off: what is left is torch's own cross entropy with its ignored index."""
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    truth = torch.full((1, 4, 4), 1, dtype=torch.uint8)
    truth[0, 0] = VOID
    p = logits.softmax(dim=1)[0, 1, 1:].sum()
    overlap = (2 * p + 1) / (p + 12 + 1)
    got = loss((F.pixel_unshuffle(logits, 2),), truth, PLAIN)
    torch.testing.assert_close(got, F.cross_entropy(logits, truth.long(), ignore_index=VOID) + 1 - overlap)


def test_hand_worked_case() -> None:
    """Four pixels, two classes, equal logits: entropy ln 2; classes of 3 and 1 pixels, each found with 2."""
    truth = torch.tensor([[[0, 0], [0, 1]]], dtype=torch.uint8)
    overlaps = ((2 * 1.5 + 1) / (2 + 3 + 1), (2 * 0.5 + 1) / (2 + 1 + 1))
    expected = math.log(2) + 1 - sum(overlaps) / 2
    assert float(loss((torch.zeros(1, 8, 1, 1),), truth, PLAIN)) == pytest.approx(expected)


def test_void_everywhere_costs_nothing_and_moves_nothing() -> None:
    logits = torch.randn(2, 8, 3, 3, requires_grad=True)
    value = loss((logits,), torch.full((2, 6, 6), VOID, dtype=torch.uint8), PLAIN)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_batch_is_worth_the_same_in_parts() -> None:
    logits, truth = torch.randn(6, 12, 4, 4), torch.randint(0, 3, (6, 8, 8), dtype=torch.uint8)
    truth[1, :5], truth[4] = VOID, 2
    parts = [float(loss((logits[part],), truth[part], PLAIN)) * n / 6 for part, n in ((slice(2), 2), (slice(2, 6), 4))]
    assert float(loss((logits,), truth, PLAIN)) == pytest.approx(sum(parts), rel=1e-5)


def test_the_loss_is_the_same_without_gradients() -> None:
    """There it is computed a few pictures at a time."""
    logits, truth = torch.randn(19, 12, 2, 2), torch.randint(0, 3, (19, 4, 4), dtype=torch.uint8)
    with torch.inference_mode():
        few = loss((logits,), truth, PLAIN)
    torch.testing.assert_close(few, loss((logits,), truth, PLAIN))


def test_a_perfect_answer_costs_nothing() -> None:
    truth = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    logits = F.pixel_unshuffle(F.one_hot(truth.long(), 3).permute(0, 3, 1, 2).float() * 60, 2)
    assert float(loss((logits,), truth, PLAIN)) == pytest.approx(0, abs=1e-5)


def test_post_is_the_argmax_of_every_pixel() -> None:
    """Against torch's own shuffle and numpy's argmax; the first of equal ones, as in numpy."""
    logits = torch.randint(0, 4, (3, 20, 5, 7), generator=torch.Generator().manual_seed(1)).float()
    (classes,) = Post((14, 10))(logits)
    assert classes.dtype == torch.uint8
    assert np.array_equal(classes.numpy(), F.pixel_shuffle(logits, 2).numpy().argmax(axis=1))


def test_pixels_lie_where_the_docstring_says() -> None:
    logits = torch.zeros(1, 8, 2, 2)
    logits[0, 4 * 1 + 2 * 1 + 0, 0, 1] = 5  # class 1, one down, none to the right, in the place (0, 1)
    assert F.pixel_shuffle(logits, 2)[0, 1, 1, 2] == 5
    truth = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    assert per_place(truth, 2).view(2, 2, 2, 2)[1, 0, 0, 1] == truth[0, 1, 2]
    assert Post((4, 4))(logits)[0][0].nonzero().tolist() == [[1, 2]]
