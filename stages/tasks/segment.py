"""Segmentation, training side: cross entropy and Dice on masks, the class of every pixel, truths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_demo.errors import InputError
from edge_demo.tasks.segment import ClassMap, correct
from edge_demo.tasks.segment_metric import VOID, to_runs, total
from stages.arrays import load_masks
from stages.augment.masks import check_masks_augment
from stages.spec import DataResult, Split, TrainConfig

SMOOTH = 1.0  # pixels added above and below Dice's fraction, so that a class of few pixels does not make it jump
UNKEPT = 8  # pictures whose loss is computed at a time where it has no gradient
WORST, OTHERS = 48, 24
"""Items of test whose maps are kept for the report."""


class Post(nn.Module):
    """logits (N, num_labels s s, H / s, W / s) -> classes uint8 (N, H, W).

    s x s pixels share a place; channel `(c s + y) s + x` is class c of the pixel y down and x to the right in it. The
    class of each pixel is found first and the pixels are put in their places then: a byte each is moved, not a float
    for every class. Source of the order: Shi et al. 2016, arXiv:1609.05158, section 2.2.
    """

    def __init__(self, size_wh: tuple[int, int]) -> None:
        """`size_wh`: W and H."""
        super().__init__()
        self.size_wh = size_wh

    def forward(self, logits: Tensor) -> tuple[Tensor]:
        """The class with the largest logit; of equal ones the first."""
        fine = self.size_wh[0] // logits.shape[3]
        found = torch.unflatten(logits, 1, (-1, fine * fine)).argmax(dim=1).to(torch.uint8)
        placed = torch.unflatten(found, 1, (fine, fine)).permute(0, 3, 1, 4, 2)
        return (placed.flatten(3, 4).flatten(1, 2),)


def loss(raw: tuple[Tensor, ...], targets: Tensor, config: TrainConfig, class_weights: Tensor | None = None) -> Tensor:
    """The mean over the batch of each picture's cross entropy and Dice loss, added up; void (255) is left out of both.

    - Cross entropy: the mean over the picture's pixels that have a class, with `config.label_smoothing`.
    - Dice: 1 - 2 sum(p t) / (sum(p) + sum(t)), p the probability of a class and t its truth over the picture's pixels,
      the mean over the classes that the picture shows. Small things weigh as much as large ones, as in the metric.
      Source: Milletari et al. 2016, arXiv:1606.04797, section 3; without squares as Sudre et al. 2017,
      arXiv:1707.03237, section 2.1.

    Each picture counts on its own, so that a batch is worth the same in parts as in one; one that is void everywhere
    counts as 0.

    Args:
        raw: logits (N, num_labels s s, H / s, W / s) first.
        targets: uint8 (N, H, W) class ids, 255 void.
        config: Its label smoothing.
        class_weights: float32 (num_labels,); each pixel's cross entropy is multiplied by its class's.
    """
    # Without gradients nothing has to be kept, so few pictures at a time: probabilities of many classes are large.
    size = len(targets) if torch.is_grad_enabled() else UNKEPT
    parts = zip(torch.split(raw[0], size), torch.split(targets, size), strict=True)
    losses = [of_each(logits, truth, config.label_smoothing, class_weights) for logits, truth in parts]
    return torch.cat(losses).mean()


def of_each(raw: Tensor, targets: Tensor, label_smoothing: float, class_weights: Tensor | None) -> Tensor:
    """The loss of each picture (N,); see `loss`.

    No sum over pixels minds their order, so the truth's bytes are put in the order of the logits, not these in its:
    moving them, and their gradients back, took a sixth of a training step (16 pictures of 128x128, 208 and 171 ms).
    """
    logits = torch.unflatten(raw.float().contiguous(), 1, (-1, (targets.shape[1] // raw.shape[2]) ** 2)).flatten(2)
    ids = per_place(targets, raw.shape[2])
    known = ids != VOID
    truth = torch.where(known, ids, 0).long()
    log_p = logits.log_softmax(dim=1)
    log_true = log_p.gather(1, truth[:, None])[:, 0]
    entropy = -log_true if class_weights is None else -log_true * class_weights[truth]
    if label_smoothing:
        even = log_p if class_weights is None else log_p * class_weights.view(1, -1, 1)
        entropy = (1 - label_smoothing) * entropy - label_smoothing * even.mean(dim=1)
    entropies = (entropy * known).sum(dim=1) / known.sum(dim=1).clamp_min(1)
    return entropies + dice(log_p, log_true, truth, known.to(log_p.dtype))


def per_place(targets: Tensor, height: int) -> Tensor:
    """uint8 (N, H, W) -> (N, s s h w), s = H / h: the pixels in the order of the logits; see `Post`."""
    fine = targets.shape[1] // height
    tiled = torch.unflatten(torch.unflatten(targets, 2, (-1, fine)), 1, (-1, fine))  # n, h, s, w, s
    return tiled.permute(0, 2, 4, 1, 3).flatten(1)


def dice(log_p: Tensor, log_true: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """The Dice loss of each picture (N,), in 0..1.

    Args:
        log_p: (N, num_labels, P) log probabilities of the classes of P pixels.
        log_true: (N, P), of the true ones.
        truth: int64 (N, P) class ids; any where the weight is 0.
        weight: (N, P), 1 where a pixel counts, else 0.
    """
    right = log_true.exp() * weight
    both, true = (torch.zeros_like(log_p[:, :, 0]).scatter_add(1, truth, values) for values in (right, weight))
    found = torch.einsum("ncp,np->nc", log_p.exp(), weight)
    lost = 1 - (2 * both + SMOOTH) / (found + true + SMOOTH)
    shown = true > 0
    return (lost * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1)


def check(config: TrainConfig, data: DataResult) -> None:
    """Raises InputError for a single class, settings that would do nothing, or that masks cannot follow."""
    if len(data.labels) < 2:
        raise InputError(f"data.{data.name}: one class only ({data.labels[0]})", "add a class beside the background")
    if config.loss != "cross-entropy":
        raise InputError(f"train.loss: {config.loss} is for classify; segment has its own", "leave it out")
    check_masks_augment(config.augment)


def targets(data: DataResult, split: Split) -> Tensor:
    """uint8 (N, H, W) class ids, 255 void, mapped from disk.

    Raises:
        InputError: an id that is neither a class nor void.
    """
    # torch warns of read-only arrays; this one is copied on a write, and nobody writes
    masks = torch.from_numpy(np.load(data.folder / f"{split}.masks.npy", mmap_mode="c", allow_pickle=False))
    ids = torch.bincount(masks.flatten(), minlength=VOID + 1)
    if unknown := ids[len(data.labels) : VOID].nonzero().flatten().tolist():
        message = (
            f"{split}: class {unknown[0] + len(data.labels)} of a mask is not one of the {len(data.labels)} classes"
        )
        raise InputError(message, "type: pipeline data check")
    return masks


def truths(data: DataResult, split: Split) -> list[NDArray[np.uint8]]:
    """The mask of every frame, uint8 (H, W), mapped from disk."""
    return list(load_masks(data, split))


def plain_truth(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """A mask as JSON holds it, in runs."""
    return to_runs(mask)


def strata(data: DataResult, split: Split) -> NDArray[np.int64]:
    """The class of each frame that the fewest frames of the split show; the background where all of it is void."""
    num_labels = len(data.labels)
    counts = [np.bincount(mask.ravel(), minlength=VOID + 1)[:num_labels] for mask in load_masks(data, split)]
    shown = np.array(counts).reshape(-1, num_labels) > 0
    rarest: NDArray[np.int64] = np.where(shown, shown.sum(axis=0), len(shown) + 1).argmin(axis=1)
    return rarest


def predictions(truths: Sequence[NDArray[np.uint8]], results: Sequence[ClassMap]) -> dict[str, NDArray[Any]]:
    """`pixels` int64 (256, 256), true class by found class, void left out; and the maps of some items, to be looked at.

    `map` uint8 (n, H, W) is the answer and `map_truth` the truth of the items `map_item` int64 (n,): the `WORST` of
    lowest quality, the lowest first, then `OTHERS` of the rest, evenly spread.
    """
    order = np.argsort(correct(results, truths), kind="stable")
    rest = np.sort(order[WORST:])
    others = rest[np.linspace(0, len(rest) - 1, min(OTHERS, len(rest))).astype(np.int64)]
    kept = np.concatenate([order[:WORST], others])
    return {
        "pixels": total((result.classes, truth) for result, truth in zip(results, truths, strict=True)),
        "map_item": kept,
        "map": np.stack([results[index].classes for index in kept]),
        "map_truth": np.stack([truths[index] for index in kept]),
    }
