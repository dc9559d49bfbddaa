"""Reading what the data stage wrote: memory-mapped frames, and the truth beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.spec import DataResult, Split


def load_frames(data: DataResult, split: Split) -> NDArray[np.uint8]:
    """uint8 NHWC frames at network size, C = 1 (gray) or 3 (BGR), memory-mapped read-only."""
    frames: NDArray[np.uint8] = np.load(data.folder / f"{split}.frames.npy", mmap_mode="r", allow_pickle=False)
    return frames


def load_truth(data: DataResult, split: Split) -> Any:
    """The truth of a split, in the order of its frames, as the task's score takes it.

    For classify int64 class ids (N,), for detect see `load_boxes`, for segment `load_masks`, for
    multilabel `load_tags`.
    """
    return TRUTHS[data.task](data, split)


def _load_classes(data: DataResult, split: Split) -> NDArray[np.int64]:
    truth: NDArray[np.int64] = np.load(data.folder / f"{split}.truth.npy", allow_pickle=False)
    return truth


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatBoxes:
    """The boxes of several frames, one after the other.

    Raises:
        ValueError: the arrays are not of one length.
    """

    xyxy: NDArray[np.float32]
    """(M, 4), pixels of the network-size frame."""
    items: NDArray[np.int64]
    """(M,), index of the frame, rising."""
    classes: NDArray[np.int64]
    """(M,)"""
    flags: NDArray[np.uint8]
    """(M,), bit 0 crowd (ignored in the metric), bit 1 difficult."""
    frames: int
    """Number of frames, those without a box too."""

    def __post_init__(self) -> None:
        count = len(self.items)
        if self.xyxy.shape != (count, 4) or self.classes.shape != (count,) or self.flags.shape != (count,):
            raise ValueError(f"{count} items, but boxes {self.xyxy.shape} and classes {self.classes.shape}")

    def per_frame(self) -> list[dict[str, list[Any]]]:
        """`{"boxes": [[x0, y0, x1, y1], ...], "classes": [...], "crowd": [...]}` per frame: plain JSON values."""
        ends = np.searchsorted(self.items, np.arange(self.frames + 1))
        xyxy, classes, crowd = self.xyxy.tolist(), self.classes.tolist(), (self.flags & 1).astype(bool).tolist()
        return [
            {"boxes": xyxy[start:end], "classes": classes[start:end], "crowd": crowd[start:end]}
            for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        ]


def load_flat_boxes(data: DataResult, split: Split) -> FlatBoxes:
    """All boxes of a split as arrays."""
    names = ("boxes", "box_items", "box_classes", "box_flags")
    parts = (np.load(data.folder / f"{split}.{name}.npy", allow_pickle=False) for name in names)
    xyxy, items, classes, flags = parts
    return FlatBoxes(xyxy=xyxy, items=items, classes=classes, flags=flags, frames=data.counts[split])


def load_boxes(data: DataResult, split: Split) -> list[dict[str, list[Any]]]:
    """One `{"boxes", "classes", "crowd"}` per frame; see `FlatBoxes.per_frame`."""
    return load_flat_boxes(data, split).per_frame()


def load_masks(data: DataResult, split: Split) -> NDArray[np.uint8]:
    """uint8 (N, H, W) class ids at network size, 0 background, 255 void, memory-mapped read-only."""
    masks: NDArray[np.uint8] = np.load(data.folder / f"{split}.masks.npy", mmap_mode="r", allow_pickle=False)
    return masks


def load_tags(data: DataResult, split: Split) -> NDArray[np.uint8]:
    """uint8 (N, num_labels), 1 where the picture has the label."""
    tags: NDArray[np.uint8] = np.load(data.folder / f"{split}.tags.npy", allow_pickle=False)
    return tags


def load_original_wh(data: DataResult, split: Split) -> NDArray[np.int64]:
    """int64 (N, 2): width and height of each source picture of boxes or masks, before `data.resize`."""
    sizes: NDArray[np.int64] = np.load(data.folder / f"{split}.original_wh.npy", allow_pickle=False)
    return sizes


def to_bgr(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 NHWC with C = 1 or 3 -> a contiguous uint8 NHWC BGR copy, what the deployed graph takes."""
    return np.repeat(frames, 3, axis=3) if frames.shape[3] == 1 else np.array(frames, order="C")


def stratified(truth: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """Indices of a sample of about `n` items, seeded, every class in proportion (at least one each), sorted.

    Returns all indices when `n` is not smaller than the split.
    """
    if n >= len(truth):
        return np.arange(len(truth))
    rng = np.random.default_rng(seed)
    picked: list[NDArray[np.int64]] = []
    for class_id in np.unique(truth):
        members = np.flatnonzero(truth == class_id)
        share = max(1, round(n * len(members) / len(truth)))
        picked.append(rng.permutation(members)[:share])
    return np.sort(np.concatenate(picked))


TRUTHS: dict[str, Callable[[DataResult, Split], Any]] = {
    "classify": _load_classes,
    "detect": load_boxes,
    "segment": load_masks,
    "multilabel": load_tags,
}
