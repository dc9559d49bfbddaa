"""Writes a split of boxes or masks: frames at network size streamed to disk, the truth beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from edge_demo.image import Frame
from stages.data.annotated import VOID, Boxes
from stages.data.prepare import npy_header
from stages.spec import DataConfig, Split

BOX_FILES = ("boxes", "box_items", "box_classes", "box_flags")


class Stack:
    """A uint8 array (N, *shape) written item by item; only one of them lies in memory."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.count = path, shape, 0
        self.digest = hashlib.sha256()

    def __enter__(self) -> Self:
        self.file: IO[bytes] = self.path.open("wb")
        self.file.write(npy_header(0, self.shape))
        return self

    def add(self, item: NDArray[np.uint8]) -> None:
        """Appends one item of the shape."""
        data = np.ascontiguousarray(item).tobytes()
        self.file.write(data)
        self.digest.update(data)
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.seek(0)
        self.file.write(npy_header(self.count, self.shape))
        self.file.close()


@dataclass(slots=True)
class Ready:
    """A frame at network size with its truth."""

    id: str
    key: str
    """Content hash of the source picture."""
    frame: Frame
    original_wh: tuple[int, int]
    truth: Boxes | NDArray[np.uint8]
    """Boxes in network pixels, or a mask (H, W)."""


@dataclass(slots=True)
class Written:
    """What is known about a split once it is on disk."""

    levels: NDArray[np.int64]
    """Histogram (C, 256) of the frames' values."""
    class_counts: NDArray[np.int64]
    """Boxes per class, or frames that show it."""
    ids: list[dict[str, str]] = field(default_factory=list)
    sizes_wh: list[tuple[int, int]] = field(default_factory=list)
    digest: str = ""


class SplitWriter:
    """The files of one split; `close` writes what is small and gives what is known."""

    def __init__(self, out_dir: Path, split: Split, task: str, config: DataConfig, num_labels: int) -> None:
        self.out_dir, self.split, self.task = out_dir, split, task
        channels = 1 if config.colour == "gray" else 3
        size_hw = config.size_wh[::-1]
        self.frames = Stack(out_dir / f"{split}.frames.npy", (*size_hw, channels)).__enter__()
        self.masks = Stack(out_dir / f"{split}.masks.npy", size_hw).__enter__() if task == "segment" else None
        self.boxes: list[Boxes] = []
        self.known = Written(np.zeros((channels, 256), np.int64), np.zeros(num_labels, np.int64))

    def add(self, ready: Ready) -> None:
        """Appends a frame and its truth."""
        known = self.known
        self.frames.add(ready.frame)
        for channel in range(ready.frame.shape[2]):
            known.levels[channel] += np.bincount(ready.frame[:, :, channel].ravel(), minlength=256)
        known.ids.append({"id": ready.id, "sha256": ready.key})
        known.sizes_wh.append(ready.original_wh)
        if isinstance(ready.truth, Boxes):
            self.boxes.append(ready.truth)
            known.class_counts += np.bincount(ready.truth.classes, minlength=len(known.class_counts))
        elif self.masks is not None:
            self.masks.add(ready.truth)
            shown = np.flatnonzero(np.bincount(ready.truth.ravel(), minlength=VOID + 1)[: len(known.class_counts)])
            known.class_counts[shown] += 1

    def close(self) -> Written:
        """Ends the files."""
        for stack in (self.frames, self.masks):
            if stack is not None:
                stack.__exit__(None, None, None)
        sizes = np.array(self.known.sizes_wh, np.int64).reshape(-1, 2)
        self._save("original_wh", sizes)
        digest = self.frames.digest
        digest.update(sizes.tobytes())
        if self.masks is not None:
            digest.update(self.masks.digest.digest())
        else:
            for name, values in zip(BOX_FILES, self._flat(), strict=True):
                self._save(name, values)
                digest.update(values.tobytes())
        self.known.digest = digest.hexdigest()
        return self.known

    def _flat(self) -> Sequence[NDArray[np.float32] | NDArray[np.int64] | NDArray[np.uint8]]:
        counts = [len(boxes) for boxes in self.boxes]
        return (
            np.concatenate([np.empty((0, 4)), *(boxes.xyxy for boxes in self.boxes)]).astype(np.float32),
            np.repeat(np.arange(len(counts)), counts).astype(np.int64),
            np.concatenate([np.empty(0, np.int64), *(boxes.classes for boxes in self.boxes)]),
            np.concatenate([np.empty(0, np.uint8), *(boxes.flags for boxes in self.boxes)]),
        )

    def _save(self, name: str, values: NDArray[np.generic]) -> None:
        np.save(self.out_dir / f"{self.split}.{name}.npy", values, allow_pickle=False)


def write_items(out_dir: Path, written: Mapping[Split, Written]) -> None:
    """`items.json`: every frame's id and content hash."""
    items = {split: part.ids for split, part in written.items()}
    (out_dir / "items.json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
