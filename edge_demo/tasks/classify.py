"""Classification on the device: `scores` -> the class and how sure the network is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError

OUTPUTS = ("scores", "embedding")
DEFAULTS: dict[str, Any] = {"roi": 1.0}
TOP = 3  # classes listed in JSON
GREEN_BGR = (80, 220, 80)
GREY_BGR = (160, 160, 160)
READABLE_FROM = 100  # px; on a smaller frame the text would be a smear over what it names
UNSURE_BELOW = 0.5  # a softmax below one half says another class could be as likely: drawn grey


@dataclass(frozen=True, slots=True)
class Classes:
    """One frame's answer. `scores` float32 (num_labels,), summing to 1; `embedding` float32 (features,)."""

    class_id: int
    score: float
    scores: NDArray[np.float32]
    embedding: NDArray[np.float32]


def check_params(params: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Complete and check the decode parameters.

    `roi`: side of the centred square the network looks at, as a share of the frame's short side, in (0, 1]; 1.0 is
    the whole frame, not only its square.

    Raises:
        InputError: an unknown key, or a value out of range.
    """
    unknown = sorted(set(params) - set(DEFAULTS))
    if unknown:
        raise InputError(f"decode.{unknown[0]}: unknown parameter for classify", f"known: {', '.join(DEFAULTS)}")
    merged = {**DEFAULTS, **params}
    if not (isinstance(merged["roi"], int | float) and 0 < merged["roi"] <= 1):
        raise InputError(f"decode.roi: {merged['roi']!r} is not in (0, 1]", "1.0 reads the whole frame")
    return {"roi": float(merged["roi"])}


def check_outputs(outputs: Mapping[str, tuple[str, tuple[int, ...]]], labels: Sequence[str]) -> str:
    """What is wrong with the graph's outputs, name -> (dtype, shape); empty when nothing is."""
    shape = outputs["scores"][1]
    return "" if shape[-1:] == (len(labels),) else f"{len(labels)} labels for scores of shape {list(shape)}"


def region(frame: NDArray[Any], params: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """The xyxy rectangle of a BGR frame the network looks at, in pixels."""
    height, width = frame.shape[:2]
    if params["roi"] >= 1.0:
        return 0, 0, width, height
    side = max(1, round(params["roi"] * min(height, width)))
    x, y = (width - side) // 2, (height - side) // 2
    return x, y, x + side, y + side


def decode(raw: Mapping[str, NDArray[Any]], params: Mapping[str, Any]) -> list[Classes]:
    """`scores` (N, num_labels) and `embedding` (N, features) -> one `Classes` per frame."""
    scores, embedding = raw["scores"], raw["embedding"]
    best = scores.argmax(axis=1)
    return [
        Classes(int(class_id), float(row[class_id]), row, features)
        for class_id, row, features in zip(best, scores, embedding, strict=True)
    ]


def rescore(
    result: Classes, rescored: Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
) -> Classes:
    """The same frame judged over more labels: `rescored(scores, embedding)` gives their scores, summing to 1."""
    scores = rescored(result.scores, result.embedding)
    class_id = int(scores.argmax())
    return Classes(class_id, float(scores[class_id]), scores, result.embedding)


def correct(results: Sequence[Classes], truths: Sequence[int]) -> NDArray[np.float64]:
    """1.0 where the answer is the true class, else 0.0."""
    answers = np.array([result.class_id for result in results], dtype=np.int64)
    return np.equal(answers, np.asarray(truths, dtype=np.int64)).astype(np.float64)


def score(results: Sequence[Classes], truths: Sequence[int]) -> dict[str, float]:
    """Accuracy (top-1 share), and the mean negative log likelihood in nats.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("no results to score")
    likelihood = [max(float(result.scores[truth]), 1e-12) for result, truth in zip(results, truths, strict=True)]
    return {"accuracy": float(correct(results, truths).mean()), "nll": float(-np.mean(np.log(likelihood)))}


def same(a: Classes, b: Classes) -> bool:
    """Whether both name the same class."""
    return a.class_id == b.class_id


def draw(
    frame: NDArray[np.uint8], result: Classes, labels: Sequence[str], params: Mapping[str, Any]
) -> NDArray[np.uint8]:
    """A copy of the BGR frame with the region of interest and `label confidence` on it."""
    import cv2

    out = frame.copy()
    height, width = out.shape[:2]
    scale = max(height, width) / 640
    x0, y0, x1, y1 = region(frame, params)
    colour = GREEN_BGR if result.score >= UNSURE_BELOW else GREY_BGR
    cv2.rectangle(out, (x0, y0), (x1 - 1, y1 - 1), colour, max(1, round(2 * scale)))
    text = f"{labels[result.class_id]} {result.score:.0%}"
    origin = (x0 + round(6 * scale), max(round(28 * scale), y0 - round(8 * scale)))
    if min(height, width) < READABLE_FROM:
        return out
    cv2.putText(out, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.9 * scale, colour, max(1, round(2 * scale)))
    return out


def to_json(result: Classes, labels: Sequence[str]) -> dict[str, Any]:
    """`{"label", "class_id", "score", "top": [[label, score], ...]}`."""
    order = np.argsort(-result.scores, kind="stable")[:TOP]
    return {
        "label": labels[result.class_id],
        "class_id": result.class_id,
        "score": round(result.score, 6),
        "top": [[labels[i], round(float(result.scores[i]), 6)] for i in order],
    }
