"""Reading what the data stage wrote: memory-mapped frames, and the truth beside them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.spec import DataResult, Split


def load_frames(data: DataResult, split: Split) -> NDArray[np.uint8]:
    """uint8 NHWC frames at network size, C = 1 (gray) or 3 (BGR), memory-mapped read-only."""
    frames: NDArray[np.uint8] = np.load(data.folder / f"{split}.frames.npy", mmap_mode="r", allow_pickle=False)
    return frames


def load_truth(data: DataResult, split: Split) -> NDArray[np.int64]:
    """The truth of a split, in the order of its frames; for classify int64 class ids (N,)."""
    truth: NDArray[np.int64] = np.load(data.folder / f"{split}.truth.npy", allow_pickle=False)
    return truth


def to_bgr(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 NHWC with C = 1 or 3 -> contiguous uint8 NHWC BGR, what the deployed graph takes."""
    return np.ascontiguousarray(np.repeat(frames, 3, axis=3) if frames.shape[3] == 1 else frames)


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
