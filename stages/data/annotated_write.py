"""Writes a split of boxes, masks or several labels: frames at network size streamed to disk, the truth beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edge_demo.image import Frame
from stages.data.annotated import Boxes
from stages.data.prepare import npy_header
from stages.data.truths import KINDS
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
    truth: Any
    """As the task has it, in the network's frame; see `stages.data.truths`."""


@dataclass(slots=True)
class Written:
    """What is known about a split once it is on disk."""

    levels: NDArray[np.int64]
    """Histogram (C, 256) of the frames' values."""
    class_counts: NDArray[np.int64]
    """Boxes per class, or frames that show or have it."""
    ids: list[dict[str, str]] = field(default_factory=list)
    sizes_wh: list[tuple[int, int]] = field(default_factory=list)
    digest: str = ""


class TruthFiles(Protocol):
    """The files of a split's truth while it is written."""

    def add(self, truth: Any) -> None:
        """Takes the truth of the next frame."""

    def close(self) -> bytes:
        """Ends the files; what the split's digest covers of them."""


class BoxFiles:
    """Boxes of all frames, one after the other."""

    def __init__(self, out_dir: Path, split: Split, size_wh: tuple[int, int]) -> None:
        self.out_dir, self.split = out_dir, split
        self.boxes: list[Boxes] = []

    def add(self, truth: Boxes) -> None:
        """Takes the boxes of the next frame."""
        self.boxes.append(truth)

    def close(self) -> bytes:
        """Writes the flat arrays."""
        arrays = dict(zip(BOX_FILES, self._flat(), strict=True))
        for name, values in arrays.items():
            _save(self.out_dir, self.split, name, values)
        return b"".join(values.tobytes() for values in arrays.values())

    def _flat(self) -> Sequence[NDArray[np.float32] | NDArray[np.int64] | NDArray[np.uint8]]:
        counts = [len(boxes) for boxes in self.boxes]
        return (
            np.concatenate([np.empty((0, 4)), *(boxes.xyxy for boxes in self.boxes)]).astype(np.float32),
            np.repeat(np.arange(len(counts)), counts).astype(np.int64),
            np.concatenate([np.empty(0, np.int64), *(boxes.classes for boxes in self.boxes)]),
            np.concatenate([np.empty(0, np.uint8), *(boxes.flags for boxes in self.boxes)]),
        )


class MaskFile:
    """One mask after the other."""

    def __init__(self, out_dir: Path, split: Split, size_wh: tuple[int, int]) -> None:
        self.masks = Stack(out_dir / f"{split}.masks.npy", size_wh[::-1]).__enter__()

    def add(self, truth: NDArray[np.uint8]) -> None:
        """Appends a mask (H, W)."""
        self.masks.add(truth)

    def close(self) -> bytes:
        """Ends the file."""
        self.masks.__exit__(None, None, None)
        return self.masks.digest.digest()


class TagFile:
    """0 or 1 for each label, frame by frame."""

    def __init__(self, out_dir: Path, split: Split, size_wh: tuple[int, int]) -> None:
        self.out_dir, self.split = out_dir, split
        self.tags: list[NDArray[np.uint8]] = []

    def add(self, truth: NDArray[np.uint8]) -> None:
        """Takes the labels (num_labels,) of the next frame."""
        self.tags.append(truth)

    def close(self) -> bytes:
        """Writes the array."""
        tags = np.stack(self.tags) if self.tags else np.empty((0, 0), np.uint8)
        _save(self.out_dir, self.split, "tags", tags)
        return tags.tobytes()


TRUTH_FILES: dict[str, Callable[[Path, Split, tuple[int, int]], TruthFiles]] = {
    "detect": BoxFiles,
    "segment": MaskFile,
    "multilabel": TagFile,
}
"""Task -> (folder, split, width and height of a frame) -> what writes its truth."""


class SplitWriter:
    """The files of one split; `close` writes what is small and gives what is known."""

    def __init__(self, out_dir: Path, split: Split, task: str, config: DataConfig, num_labels: int) -> None:
        self.out_dir, self.split = out_dir, split
        self.per_class = KINDS[task].per_class
        channels = 1 if config.colour == "gray" else 3
        self.frames = Stack(out_dir / f"{split}.frames.npy", (*config.size_wh[::-1], channels)).__enter__()
        self.truth = TRUTH_FILES[task](out_dir, split, config.size_wh)
        self.known = Written(np.zeros((channels, 256), np.int64), np.zeros(num_labels, np.int64))

    def add(self, ready: Ready) -> None:
        """Appends a frame and its truth."""
        known = self.known
        self.frames.add(ready.frame)
        self.truth.add(ready.truth)
        for channel in range(ready.frame.shape[2]):
            known.levels[channel] += np.bincount(ready.frame[:, :, channel].ravel(), minlength=256)
        known.ids.append({"id": ready.id, "sha256": ready.key})
        known.sizes_wh.append(ready.original_wh)
        known.class_counts += self.per_class(ready.truth, len(known.class_counts))

    def close(self) -> Written:
        """Ends the files."""
        self.frames.__exit__(None, None, None)
        sizes = np.array(self.known.sizes_wh, np.int64).reshape(-1, 2)
        _save(self.out_dir, self.split, "original_wh", sizes)
        digest = self.frames.digest
        digest.update(sizes.tobytes())
        digest.update(self.truth.close())
        self.known.digest = digest.hexdigest()
        return self.known


def _save(out_dir: Path, split: Split, name: str, values: NDArray[np.generic]) -> None:
    np.save(out_dir / f"{split}.{name}.npy", values, allow_pickle=False)


def write_items(out_dir: Path, written: Mapping[Split, Written]) -> None:
    """`items.json`: every frame's id and content hash."""
    items = {split: part.ids for split, part in written.items()}
    (out_dir / "items.json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
