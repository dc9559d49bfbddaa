"""What the report says of several labels a picture: how well each is ranked and found, the frames it does worst on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edge_demo.tasks.multilabel_metric import average_precisions
from pipeline.report_frames import FrameShown, jpeg_uri, test_frames
from stages.spec import DataResult

FROZEN = ConfigDict(extra="forbid", frozen=True)
ARRAYS = frozenset({"tags", "tag_scores", "shown", "quality"})
WORST_SHARE = 2 / 3  # of the frames shown; the others are drawn from the rest, so that both are seen
SMALLEST_SIDE = 96  # px; smaller frames are enlarged by whole factors


class LabelFound(BaseModel):
    """One label on test; null where nothing can be said."""

    model_config = FROZEN
    label: str
    frames: int
    """Those that have it."""
    ap: float | None
    found: float | None
    """Share of its frames on which it is shown."""
    right: float | None
    """Share of the frames on which it is shown that have it."""


class Multilabel(BaseModel):
    """Labels of test frames, of the shipped precision in ONNX Runtime."""

    model_config = FROZEN
    frames: int
    threshold: float
    """The score from which a label is shown."""
    exact: float
    """Share of the frames whose labels are all right."""
    classes: tuple[LabelFound, ...]


def is_told_by(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the predictions are those of several labels a picture."""
    return set(arrays) >= ARRAYS


def facts_of(data: DataResult, arrays: Mapping[str, NDArray[Any]]) -> Multilabel:
    """Everything the page says in numbers."""
    tags, scores, threshold = arrays["tags"], arrays["tag_scores"], float(arrays["shown"])
    shown, ap = scores >= threshold, average_precisions(arrays["tag_scores"], arrays["tags"])
    both, true, answered = (shown & tags).sum(axis=0), tags.sum(axis=0), shown.sum(axis=0)
    return Multilabel(
        frames=len(tags),
        threshold=threshold,
        exact=float((shown == tags).all(axis=1).mean()),
        classes=tuple(
            LabelFound(
                label=label,
                frames=int(true[index]),
                ap=ap.get(index),
                found=float(both[index] / true[index]) if true[index] else None,
                right=float(both[index] / answered[index]) if answered[index] else None,
            )
            for index, label in enumerate(data.labels)
        ),
    )


def frames_shown(
    data: DataResult, arrays: Mapping[str, NDArray[Any]], samples: int
) -> tuple[list[FrameShown], list[FrameShown]]:
    """(the frames of lowest quality, others), together at most `samples`.

    Raises:
        Error: predictions of another test split.
    """
    quality, tags = arrays["quality"], arrays["tags"]
    frames, answers = test_frames(data, quality), arrays["tag_scores"] >= float(arrays["shown"])
    order = np.argsort(quality, kind="stable")
    worst = order[: round(samples * WORST_SHARE)]
    rest = order[len(worst) :]
    wanted = min(samples - len(worst), len(rest))
    others = rest[np.linspace(0, len(rest) - 1, wanted).astype(int)] if wanted else rest[:0]

    def shown(item: int) -> FrameShown:
        picture = enlarged(np.asarray(frames[item]))
        said = f"{_names(data.labels, tags[item])}; answered {_names(data.labels, answers[item])}"
        return FrameShown(jpeg_uri(picture), (picture.shape[1], picture.shape[0]), float(quality[item]), said)

    return [shown(item) for item in worst.tolist()], [shown(item) for item in others.tolist()]


def enlarged(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame (H, W, 1 or 3) as BGR, each pixel a square of as many as a small one needs to be seen."""
    factor = max(1, -(-SMALLEST_SIDE // max(frame.shape[:2])))
    bgr = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame
    return bgr.repeat(factor, axis=0).repeat(factor, axis=1)


def _names(labels: Sequence[str], has: NDArray[np.bool_]) -> str:
    return ", ".join(label for label, one in zip(labels, has.tolist(), strict=True) if one) or "nothing"
