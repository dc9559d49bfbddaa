"""A contact sheet: labelled pictures of a split as the network gets them, with or without training's random changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import missing_extra
from edge_demo.image import Frame, load_cv2, write_png
from stages.arrays import stratified
from stages.data import annotated_show, scenes_show
from stages.data.annotated_sets import LAYOUTS
from stages.data.annotated_trained import as_trained as annotated_as_trained
from stages.data.prepare import network_frame
from stages.data.scenes import TASKS
from stages.data.sets import plan
from stages.data.splits import read_and_split
from stages.spec import AugmentConfig, DataConfig, Split

if TYPE_CHECKING:
    from torch import Tensor

    from stages.graph import Preprocess

TILE, CAPTION, GAP = 112, 18, 6  # pixels
PAPER_BGR, INK_BGR = (245, 245, 245), (40, 40, 40)

DRAWN: dict[str, Callable[[DataConfig, Split, int], annotated_show.Shown]] = {
    **dict.fromkeys(LAYOUTS, annotated_show.pictures),
    **dict.fromkeys(TASKS, scenes_show.pictures),
}
"""Annotated sets -> some of their frames."""


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
        InputError: as the data stage; or `augment` is given and torch is not installed, or it does not suit the frames.
    """
    if config.name in DRAWN:
        shown = DRAWN[config.name](config, split, n)
        if augment is not None:
            shown = annotated_as_trained(shown, augment, config.seed)
        frames, names = annotated_show.drawn(shown)
        out_png.write_bytes(write_png(sheet(frames, names)))
        return len(names)
    data = read_and_split(config, plan(config))
    part, indices = data.splits[split].part, data.splits[split].indices
    picked = indices[stratified(part.truth[indices], n, config.seed)]
    frames = np.stack([network_frame(part.picture(index), config) for index in picked.tolist()])
    truth = part.truth[picked]
    captions = [data.labels[class_id] for class_id in truth]
    if augment is not None:
        frames, captions = as_trained(frames, truth, data.labels, config, augment, task)
    out_png.write_bytes(write_png(sheet(frames, captions)))
    return len(picked)


def as_trained(
    frames: NDArray[np.uint8],
    truth: NDArray[np.int64],
    labels: Sequence[str],
    config: DataConfig,
    augment: AugmentConfig,
    task: str,
) -> tuple[NDArray[np.uint8], list[str]]:
    """One training batch, through training's own changes and preprocessing, and back from the network's input.

    Like every training batch it is in random order, which is also what decides whom mixup and cutmix join.
    """
    try:
        import torch
    except ImportError:
        raise missing_extra("showing training's random changes", "torch", "train") from None

    from stages.augment import Draws
    from stages.graph import Preprocess
    from stages.tasks import TASKS

    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(frames), generator=generator)
    batch, targets = TASKS[task].augment(
        torch.from_numpy(frames)[order],
        torch.from_numpy(truth)[order],
        augment,
        Draws(generator, len(frames)),
        len(labels),
    )
    # Any mean and deviation do: they cancel when the batch is turned back into pixels.
    channels = 1 if config.colour == "gray" else 3
    pre = Preprocess(config.colour, [0.5] * channels, [0.25] * channels)
    seen = _pixels(pre, pre(batch))
    return seen, [caption(target, labels) for target in targets.numpy()]


def _pixels(pre: Preprocess, batch: Tensor) -> NDArray[np.uint8]:
    """The network's input (N, C, H, W) as frames again: uint8 (N, H, W, C), gray or BGR."""
    levels = ((batch + pre.shift) / pre.scale).round().clamp(0, 255).permute(0, 2, 3, 1)
    if levels.shape[3] == 3:
        levels = levels.flip(3)
    return np.ascontiguousarray(levels.numpy().astype(np.uint8))


def caption(target: NDArray[Any], labels: Sequence[str]) -> str:
    """A class id as its label; a mixed target (num_labels,) as its two largest shares, e.g. `3 62 % + 7`."""
    if target.ndim == 0:
        return labels[int(target)]
    first, second = (int(class_id) for class_id in np.argsort(-target, kind="stable")[:2])
    if target[second] < 0.005:
        return labels[first]
    return f"{labels[first]} {100 * target[first]:.0f} % + {labels[second]}"


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
    for position, (frame, text) in enumerate(zip(frames, captions, strict=True)):
        y, x = GAP + position // columns * cell_h, GAP + position % columns * cell_w
        enlarged = frame.repeat(factor, axis=0).repeat(factor, axis=1)
        out[y : y + height * factor, x : x + width * factor] = enlarged  # one channel spreads over three
        origin = (x, y + height * factor + CAPTION - 5)
        cv2.putText(out, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK_BGR, 1, cv2.LINE_AA)
    return out
