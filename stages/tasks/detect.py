"""Detection, training side: which cells answer for a box, loss, peaks in the graph, truths.

Raw outputs are `logits` (N, C, h, w) and `sides` (N, 4, h, w). The softplus of a cell's sides are the distances, in
cells, from its middle to the left, top, right and bottom of its box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_demo.errors import InputError
from edge_demo.tasks.detect import Boxes
from stages.arrays import load_flat_boxes
from stages.augment.boxes import COLUMNS, NOTHING, check_boxes_augment
from stages.spec import DataResult, Split, TrainConfig

CANDIDATES = 100  # boxes that leave the graph; as many as count in the COCO metric

# Which cells answer for a box. Source: Feng et al. 2021, TOOD (arXiv:2108.07755), section 3.2; the exponents are those
# the detectors of the YOLO family took over from there.
CELLS_PER_BOX = 10
SCORE_POWER, IOU_POWER = 0.5, 6.0
NEAR = 1.0  # cells; a smaller box is taken for one of that half side, or no middle of a cell may lie in it

FOCUS = 2.0  # Source: Li et al. 2020, Generalized Focal Loss (arXiv:2006.04388), section 3.1
BOX_WEIGHT = 2.0  # of the boxes against the scores, as there
USUAL_BOXES = 8.0  # the loss is divided by it, so that it is of the size of other losses; a constant, as a batch has to
# be worth the same in parts as in one


class Post(nn.Module):
    """logits, sides -> boxes (N, K, 4) xyxy in pixels, scores (N, K), classes int64 (N, K); the best first.

    A cell answers with its best class, and only where no neighbour answers with a higher score: what NMS would do
    with most of a box's cells is done in the graph. Source: Zhou et al. 2019, CenterNet (arXiv:1904.07850), section 4.
    """

    def __init__(self, size_wh: tuple[int, int]) -> None:
        super().__init__()
        self.size_wh = size_wh

    def forward(self, logits: Tensor, sides: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Peaks, the best `CANDIDATES` of them, and their boxes."""
        height, width = logits.shape[2:]
        scores, classes = logits.sigmoid().max(dim=1)
        highest = F.max_pool2d(scores[:, None], 3, stride=1, padding=1)[:, 0]
        peaks = torch.where(scores == highest, scores, torch.zeros_like(scores)).flatten(1)
        best, at = peaks.topk(min(CANDIDATES, height * width), dim=1)
        scale = torch.tensor([self.size_wh[0] / width, self.size_wh[1] / height] * 2, device=logits.device)
        boxes = boxes_of(sides)
        # Cells that only fill up the K score 0, and each runtime picks its own: they all say the same nothing.
        is_peak = (best > 0).to(torch.int64)
        picked = boxes.gather(1, at[:, :, None].expand(-1, -1, 4)) * scale * is_peak[:, :, None]
        return picked, best, classes.flatten(1).gather(1, at) * is_peak


def boxes_of(sides: Tensor) -> Tensor:
    """Raw sides (N, 4, h, w) -> xyxy (N, h * w, 4) in cells."""
    height, width = sides.shape[2:]
    distances = F.softplus(sides).flatten(2).transpose(1, 2)
    middles = middles_of(height, width, sides.device)
    return torch.cat([middles - distances[..., :2], middles + distances[..., 2:]], dim=2)


def middles_of(height: int, width: int, device: torch.device) -> Tensor:
    """(h * w, 2): x and y of the middle of every cell, in cells, row by row."""
    y, x = torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)


def check(config: TrainConfig, data: DataResult) -> None:
    """Raises InputError for settings that would do nothing, or that boxes cannot follow."""
    if config.loss != "cross-entropy":
        raise InputError(f"train.loss: {config.loss} is for classify; detect has its own", "leave it out")
    if config.label_smoothing:
        raise InputError("train.label_smoothing: has no effect on detect", "leave it out")
    check_boxes_augment(config.augment)


class FlatTargets:
    """The boxes of a split, one after the other, so that a picture with thousands of them costs only itself."""

    def __init__(self, rows: Tensor, starts: Tensor) -> None:
        """`rows` float32 (B, 6) as in `stages.augment.boxes`; `starts` int64 (N + 1,), where each picture begins."""
        self.rows, self.starts = rows, starts

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.rows.device

    def to(self, device: torch.device) -> FlatTargets:
        """The same on another device."""
        return FlatTargets(self.rows.to(device), self.starts.to(device))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, picked: Tensor | slice) -> Tensor:
        """(n, M, 6), M the most boxes of one of them and at least 1; rows of class `NOTHING` fill up."""
        first, last = self.starts[:-1][picked], self.starts[1:][picked]
        counts = last - first
        most = max(1, int(counts.amax()) if len(counts) else 0)
        within = torch.arange(most, device=self.device)
        is_box = within < counts[:, None]
        rows = F.pad(self.rows, (0, 0, 0, 1))  # so that there is a last row, whatever is picked
        found = rows[(first[:, None] + within).clamp(max=len(self.rows))]
        empty = torch.zeros(COLUMNS, device=self.device)
        empty[4] = NOTHING
        return torch.where(is_box[..., None], found, empty)


def targets(data: DataResult, split: Split) -> FlatTargets:
    """The boxes of a split, in shares of the frame's sides.

    Raises:
        InputError: a class outside the data's labels, or a box of a frame that is not there.
    """
    flat = load_flat_boxes(data, split)
    outside = flat.classes[(flat.classes < 0) | (flat.classes >= len(data.labels))]
    if outside.size:
        message = f"{split}: class {outside[0]} of a box is not one of the {len(data.labels)} classes"
        raise InputError(message, "type: pipeline data check")
    starts = np.searchsorted(flat.items, np.arange(flat.frames + 1))
    if starts[0] != 0 or starts[-1] != len(flat.items) or np.any(np.diff(flat.items) < 0):
        raise InputError(f"{split}: boxes of frames that are not there", "type: pipeline data check")
    xyxy = flat.xyxy / np.array(data.size_wh * 2, np.float32)
    rows = np.concatenate([xyxy, np.stack([flat.classes, flat.flags & 1], axis=1)], axis=1).astype(np.float32)
    return FlatTargets(torch.from_numpy(rows.reshape(-1, COLUMNS)), torch.from_numpy(starts.astype(np.int64)))


def loss(raw: tuple[Tensor, ...], targets: Tensor, config: TrainConfig, class_weights: Tensor | None = None) -> Tensor:
    """Quality focal loss of the scores and GIoU loss of the boxes, mean over the pictures.

    The score that a cell should give for the class of its box is the IoU that its box can have; boxes are compared
    where a cell answers for one, in proportion to how well it does. Sources: Li et al. 2020 (arXiv:2006.04388),
    equation 2; Rezatofighi et al. 2019 (arXiv:1902.09630), algorithm 1; assignment: see `answering`.

    Args:
        raw: logits (N, C, h, w) and sides (N, 4, h, w).
        targets: float32 (N, M, 6), see `stages.augment.boxes`.
        config: Plays no part.
        class_weights: float32 (C,); a box weighs by its class's.
    """
    logits, sides = (part.float() for part in raw)
    height, width = logits.shape[2:]
    found, cells = boxes_of(sides), logits.flatten(2).transpose(1, 2)
    truth = targets[..., :4] * torch.tensor([width, height] * 2, device=targets.device)
    classes = targets[..., 4].long()
    is_box, is_crowd = (classes >= 0) & (targets[..., 5] == 0), (classes >= 0) & (targets[..., 5] == 1)
    middles = middles_of(height, width, logits.device)
    with torch.no_grad():
        owner, share, quality = answering(cells.sigmoid(), found, truth, classes.clamp(min=0), is_box, middles)
        own_class = classes.gather(1, owner).clamp(min=0)
        weight = share if class_weights is None else share * class_weights[own_class]
        wanted = torch.zeros_like(cells).scatter_(2, own_class[..., None], quality[..., None])
        # Inside a crowd nobody knows what is there: cells that answer for nothing else count for nothing.
        inside = (distances_to(truth, middles).amin(dim=3) > 0) & is_crowd[..., None]
        counts = ~inside.any(dim=1) | (share > 0)
    score_loss = F.binary_cross_entropy_with_logits(cells, wanted, reduction="none")
    score_loss = score_loss * (wanted - cells.sigmoid()).abs() ** FOCUS
    if class_weights is not None:
        score_loss = torch.where(wanted > 0, score_loss * class_weights, score_loss)
    box_loss = 1 - giou(found, truth.gather(1, owner[..., None].expand(-1, -1, 4)))
    total = (score_loss.sum(dim=2) * counts).sum(dim=1) + BOX_WEIGHT * (box_loss * weight).sum(dim=1)
    return total.mean() / USUAL_BOXES


def answering(
    scores: Tensor, found: Tensor, truth: Tensor, classes: Tensor, is_box: Tensor, middles: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which box each cell answers for: those whose middle lies in it and whose score and box fit it best.

    Source: Feng et al. 2021, TOOD (arXiv:2108.07755), section 3.2. A cell that fits several answers for the one its
    box overlaps most.

    Args:
        scores: (N, P, C) of every cell.
        found: (N, P, 4), their boxes in cells.
        truth: (N, M, 4), true boxes in cells.
        classes: int64 (N, M).
        is_box: bool (N, M), which of them are boxes to be found.
        middles: (P, 2).

    Returns:
        Of each cell (N, P): the index of its box; its share 0..1, that is its fit in that of the box's best cell, 0
        where it answers for none; and its quality, the share of the best IoU that a cell has with that box.
    """
    n, cells, _ = scores.shape
    most = truth.shape[1]
    if not bool(is_box.any()):
        none = torch.zeros(n, cells, device=scores.device)
        return none.long(), none, none
    overlap = iou(truth[:, :, None], found[:, None]).clamp(min=0)  # (N, M, P)
    own = scores.transpose(1, 2).gather(1, classes[..., None].expand(-1, -1, cells))
    near = (distances_to(truth, middles, NEAR).amin(dim=3) > 0) & is_box[..., None]
    fit = torch.where(near, own**SCORE_POWER * overlap**IOU_POWER, -1.0)
    best, at = fit.topk(min(CELLS_PER_BOX, cells), dim=2)
    chosen = torch.zeros_like(near).scatter_(2, at, best >= 0)
    owner = torch.where(chosen, overlap, -1.0).argmax(dim=1)  # (N, P)
    chosen &= owner[:, None] == torch.arange(most, device=owner.device)[:, None]
    fit, overlap = fit * chosen, overlap * chosen
    share = fit / fit.amax(dim=2, keepdim=True).clamp(min=1e-20)
    quality = share * overlap.amax(dim=2, keepdim=True)
    return owner, share.gather(1, owner[:, None])[:, 0], quality.gather(1, owner[:, None])[:, 0]


def distances_to(boxes: Tensor, middles: Tensor, at_least: float = 0.0) -> Tensor:
    """(N, M, P, 4): how far inside of each box (N, M, 4) each place (P, 2) lies, from every side; negative outside.

    Boxes of a half side below `at_least` are taken for as large as that.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = ((boxes[..., 2:] - boxes[..., :2]) / 2).clamp(min=at_least)
    low, high = (centre - half)[:, :, None], (centre + half)[:, :, None]
    return torch.cat([middles - low, high - middles], dim=3)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Of xyxy boxes (..., 4), which are broadcast; 0 where both are empty."""
    shared = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - shared
    return shared / union.clamp(min=1e-9)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """IoU minus the share of the smallest box around both that neither covers, in -1..1."""
    shared = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = (_area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - shared).clamp(min=1e-9)
    around = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])).clamp(min=1e-9)
    return shared / union - (around - union) / around


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height


def strata(data: DataResult, split: Split) -> NDArray[np.int64]:
    """The class of each frame's rarest box, by the boxes of the split; the number of labels where there is none."""
    flat = load_flat_boxes(data, split)
    rarity = np.argsort(np.argsort(-np.bincount(flat.classes, minlength=len(data.labels)), kind="stable"))
    rarest = np.full(flat.frames, -1)
    np.maximum.at(rarest, flat.items, rarity[flat.classes])
    by_rarity = np.append(np.argsort(rarity), len(data.labels))
    stands_for: NDArray[np.int64] = by_rarity[rarest].astype(np.int64)
    return stands_for


def predictions(truths: Sequence[Mapping[str, Any]], results: Sequence[Boxes]) -> dict[str, NDArray[Any]]:
    """Found boxes as `found_xyxy` float32 (n, 4), `found_score`, `found_class`, `found_item`; true ones as `true_...`.

    `true_crowd` bool in place of a score; `shown` float32 is the score from which a box is shown.
    """
    counts = [len(result.scores) for result in results]
    true_counts = [len(truth["boxes"]) for truth in truths]
    return {
        "found_xyxy": np.concatenate([np.empty((0, 4), np.float32), *(result.xyxy for result in results)]),
        "found_score": np.concatenate([np.empty(0, np.float32), *(result.scores for result in results)]),
        "found_class": np.concatenate([np.empty(0, np.int64), *(result.class_ids for result in results)]),
        "found_item": np.repeat(np.arange(len(results)), counts),
        "true_xyxy": np.array([box for truth in truths for box in truth["boxes"]], np.float32).reshape(-1, 4),
        "true_class": np.array([class_id for truth in truths for class_id in truth["classes"]], np.int64),
        "true_crowd": np.array([flag for truth in truths for flag in truth["crowd"]], bool),
        "true_item": np.repeat(np.arange(len(truths)), true_counts),
        "shown": np.array(results[0].threshold if results else 0.0, dtype=np.float32),
    }
