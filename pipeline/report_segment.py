"""What the report says of masks: IoU of every class, which pixels are taken for what, the frames it does worst on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edge_demo.tasks.colours import colour_of
from edge_demo.tasks.segment_metric import VOID, ious
from pipeline.report_frames import FrameShown, jpeg_uri, test_frames
from stages.spec import DataResult

FROZEN = ConfigDict(extra="forbid", frozen=True)
ARRAYS = frozenset({"pixels", "map", "map_truth", "map_item", "quality"})
MATRIX_CLASSES = 30  # a wider confusion matrix is no longer readable
WORST_PAIRS = 20
WORST_SHARE = 2 / 3  # of the frames shown; the others are drawn from the rest, so that both are seen
COLOURED = 0.5  # of the colour over the picture
BACKGROUND = 0  # the class that is not coloured
VOID_BGR = (255, 255, 255)


class ClassPixels(BaseModel):
    """One class on test, in pixels; null where no true pixel has it."""

    model_config = FROZEN
    label: str
    pixels: int
    """True ones."""
    iou: float | None
    found: float | None
    """Share of its true pixels that are answered with it."""
    right: float | None
    """Share of the pixels answered with it that are truly its; null where none is."""


class PixelsConfused(BaseModel):
    """The share of the pixels of class `truth` that were answered `answer`."""

    model_config = FROZEN
    truth: str
    answer: str
    share: float


class Segmentation(BaseModel):
    """Pixels of test whose truth is known, of the shipped precision in ONNX Runtime."""

    model_config = FROZEN
    frames: int
    pixels: int
    void: float
    """Share of all pixels that is void and counts nowhere."""
    classes: tuple[ClassPixels, ...]
    matrix: tuple[tuple[float, ...], ...] | None
    """Row = truth, column = answer, shares of the row; null for more classes than can be read."""
    worst: tuple[PixelsConfused, ...]
    """The largest shares that are wrong, at most `WORST_PAIRS`."""


def is_told_by(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the predictions are those of masks."""
    return set(arrays) >= ARRAYS


def facts_of(data: DataResult, arrays: Mapping[str, NDArray[Any]]) -> Segmentation:
    """Everything the page says in numbers, from the confusion matrix of all pixels."""
    counts, labels = arrays["pixels"], data.labels
    width, height = data.size_wh
    every = data.counts["test"] * width * height
    iou, true, found = ious(counts), counts.sum(axis=1), counts.sum(axis=0)
    shares = counts[: len(labels), : len(labels)] / np.maximum(true[: len(labels), None], 1)
    pairs = [(float(shares[t, a]), t, a) for t, a in np.argwhere(shares).tolist() if t != a]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return Segmentation(
        frames=data.counts["test"],
        pixels=int(true.sum()),
        void=1 - int(true.sum()) / every,
        classes=tuple(
            ClassPixels(
                label=label,
                pixels=int(true[index]),
                iou=iou.get(index),
                found=float(counts[index, index] / true[index]) if true[index] else None,
                right=float(counts[index, index] / found[index]) if found[index] else None,
            )
            for index, label in enumerate(labels)
        ),
        matrix=tuple(tuple(map(float, row)) for row in shares) if len(labels) <= MATRIX_CLASSES else None,
        worst=tuple(PixelsConfused(truth=labels[t], answer=labels[a], share=s) for s, t, a in pairs[:WORST_PAIRS]),
    )


def frames_shown(
    data: DataResult, arrays: Mapping[str, NDArray[Any]], samples: int
) -> tuple[list[FrameShown], list[FrameShown]]:
    """(the frames of lowest quality, others), together at most `samples`.

    Raises:
        Error: predictions of another test split.
    """
    frames, quality = test_frames(data, arrays["quality"]), arrays["quality"]
    place_of = {int(item): place for place, item in enumerate(arrays["map_item"])}
    by_quality = sorted(place_of, key=lambda item: (float(quality[item]), item))
    worst = by_quality[: round(samples * WORST_SHARE)]
    rest = by_quality[len(worst) :]
    wanted = min(samples - len(worst), len(rest))
    others = [rest[index] for index in np.linspace(0, len(rest) - 1, wanted).astype(int)] if wanted else []

    def shown(item: int) -> FrameShown:
        truth, answer = (arrays[name][place_of[item]] for name in ("map_truth", "map"))
        picture = beside(np.asarray(frames[item]), truth, answer)
        seen = [data.labels[index] for index in np.unique(truth) if index not in (BACKGROUND, VOID)]
        size_wh = (picture.shape[1], picture.shape[0])
        return FrameShown(jpeg_uri(picture), size_wh, float(quality[item]), ", ".join(seen) or "nothing")

    return [shown(item) for item in worst], [shown(item) for item in others]


def beside(frame: NDArray[np.uint8], truth: NDArray[np.uint8], answer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame (H, W, 1 or 3), and the same under its truth and its answer: BGR (H, 3 W, 3); void is white."""
    bgr = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame
    return np.concatenate([bgr, coloured(bgr, truth), coloured(bgr, answer)], axis=1)


def coloured(bgr: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A BGR frame under the colours of its class map (H, W)."""
    table = np.array([colour_of(class_id) for class_id in range(VOID)] + [VOID_BGR], dtype=np.float32)
    share = np.where(classes == BACKGROUND, 0.0, COLOURED)[..., None]
    blended: NDArray[np.uint8] = (bgr * (1 - share) + table[classes] * share).round().astype(np.uint8)
    return blended


def legend(labels: Sequence[str]) -> list[tuple[str, str]]:
    """(label, its colour as CSS) of every class that is coloured."""
    return [
        (label, "#{2:02x}{1:02x}{0:02x}".format(*colour_of(class_id)))
        for class_id, label in enumerate(labels)
        if class_id != BACKGROUND
    ]
