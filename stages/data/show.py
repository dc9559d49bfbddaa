"""A contact sheet: labelled pictures of a split as the network gets them, with or without training's random changes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import missing_extra
from edge_demo.image import Frame, load_cv2, write_png
from stages.arrays import stratified
from stages.data.prepare import network_frame
from stages.data.sets import plan
from stages.data.splits import read_and_split
from stages.spec import AugmentConfig, DataConfig, Split

TILE, CAPTION, GAP = 112, 18, 6  # pixels
PAPER_BGR, INK_BGR = (245, 245, 245), (40, 40, 40)


def show(
    config: DataConfig,
    out_png: Path,
    *,
    split: Split = "train",
    n: int = 36,
    augment: AugmentConfig | None = None,
    task: str = "classify",
) -> int:
    """Writes a PNG with about `n` pictures of a split, every class in proportion, each with its label.

    Args:
        config: Which data, at what size.
        out_png: The file to write.
        split: train, val or test.
        n: How many; all when the split has fewer.
        augment: Apply training's random changes with these settings (needs torch); None: as they are.
        task: Whose changes.

    Returns:
        How many pictures are on it.

    Raises:
        InputError: as the data stage; or torch is not installed and `augment` is given.
    """
    data = read_and_split(config, plan(config))
    part, indices = data.splits[split].part, data.splits[split].indices
    picked = indices[stratified(part.truth[indices], n, config.seed)]
    frames = np.stack([network_frame(part.picture(index), config) for index in picked.tolist()])
    truth = part.truth[picked]
    if augment is not None:
        frames = _augmented(frames, truth, augment, task, config.seed)
    out_png.write_bytes(write_png(sheet(frames, [data.labels[class_id] for class_id in truth])))
    return len(picked)


def _augmented(
    frames: NDArray[np.uint8], truth: NDArray[np.int64], augment: AugmentConfig, task: str, seed: int
) -> NDArray[np.uint8]:
    try:
        import torch
    except ImportError:
        raise missing_extra("showing training's random changes", "torch", "train") from None

    from stages.tasks import TASKS

    generator = torch.Generator().manual_seed(seed)
    changed, _ = TASKS[task].augment(torch.from_numpy(frames), torch.from_numpy(truth), augment, generator)
    return np.asarray(changed.numpy(), dtype=np.uint8)


def sheet(frames: NDArray[np.uint8], captions: list[str]) -> Frame:
    """Frames (N, H, W, 1 or 3) and a caption each -> one BGR picture, in rows, nearly square."""
    cv2 = load_cv2()
    columns = math.ceil(math.sqrt(len(frames)))
    rows = math.ceil(len(frames) / columns)
    height, width = frames.shape[1:3]
    # Small pictures are enlarged by whole factors without smoothing, so that what is seen are the network's pixels.
    factor = max(1, TILE // max(height, width))
    cell_w, cell_h = max(width * factor, TILE) + GAP, height * factor + CAPTION + GAP
    out = np.full((rows * cell_h + GAP, columns * cell_w + GAP, 3), PAPER_BGR, np.uint8)
    for position, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
        y, x = GAP + position // columns * cell_h, GAP + position % columns * cell_w
        enlarged = frame.repeat(factor, axis=0).repeat(factor, axis=1)
        out[y : y + height * factor, x : x + width * factor] = enlarged  # one channel spreads over three
        origin = (x, y + height * factor + CAPTION - 5)
        cv2.putText(out, caption, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK_BGR, 1, cv2.LINE_AA)
    return out
