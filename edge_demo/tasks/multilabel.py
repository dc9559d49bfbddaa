"""Any number of labels a picture, on the device: `scores`, each label's own probability -> those that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_demo.errors import InputError
from edge_demo.tasks import multilabel_metric
from edge_demo.tasks.listing import list_labels

OUTPUTS = ("scores", "embedding")
DEFAULTS: dict[str, Any] = {"threshold": 0.5}

Raw = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tags:
    """One frame's answer. `scores` float32 (num_labels,), each in 0..1 on its own; shown from `threshold` on."""

    scores: NDArray[np.float32]
    threshold: float

    @property
    def shown(self) -> NDArray[np.bool_]:
        """(num_labels,): whether each label is there."""
        return self.scores >= self.threshold


def check_params(params: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Complete and check the decode parameters. `threshold` in [0, 1]: the score from which a label is there.

    Raises:
        InputError: an unknown key, or a value out of range.
    """
    unknown = sorted(set(params) - set(DEFAULTS))
    if unknown:
        raise InputError(f"decode.{unknown[0]}: unknown parameter for multilabel", f"known: {', '.join(DEFAULTS)}")
    threshold = {**DEFAULTS, **params}["threshold"]
    if isinstance(threshold, bool) or not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise InputError(f"decode.threshold: {threshold!r} is not in [0, 1]", "0.5 is usual")
    return {"threshold": float(threshold)}


def check_outputs(outputs: Mapping[str, tuple[str, tuple[int, ...]]], labels: Sequence[str]) -> str:
    """What is wrong with the graph's outputs, name -> (dtype, shape); empty when nothing is."""
    shape = outputs["scores"][1]
    return "" if shape[-1:] == (len(labels),) else f"{len(labels)} labels for scores of shape {list(shape)}"


def region(frame: NDArray[Any], params: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """The whole frame."""
    return 0, 0, frame.shape[1], frame.shape[0]


def decode(raw: Raw, params: Mapping[str, Any]) -> list[Tags]:
    """`scores` (N, num_labels) -> one `Tags` per frame."""
    return [Tags(row, params["threshold"]) for row in raw["scores"]]


def score(results: Sequence[Tags], truths: Sequence[ArrayLike]) -> dict[str, float]:
    """`mean_ap`, `exact` (share of frames whose labels are all right), and `ap.<index>` of labels that occur.

    Args:
        results: Answers.
        truths: 0 or 1 for each label, (num_labels,).

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("no results to score")
    scores, tags = _stacked(results), _truths(truths)
    per_label = multilabel_metric.average_precisions(scores, tags)
    shown = np.stack([result.shown for result in results])
    return {
        "mean_ap": multilabel_metric.mean_ap(scores, tags),
        "exact": float((shown == tags).all(axis=1).mean()),
        **{f"ap.{label}": value for label, value in per_label.items()},
    }


def correct(results: Sequence[Tags], truths: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Quality of each frame: labels both shown and true over those that are either; 1.0 where neither has any.

    Not the summands of `mean_ap`, which has none; for paired tests. Source: Jaccard index.
    """
    shown, tags = np.stack([result.shown for result in results]), _truths(truths)
    either = (shown | tags).sum(axis=1)
    return np.where(either > 0, (shown & tags).sum(axis=1) / np.maximum(either, 1), 1.0)


def interval(results: Sequence[Tags], truths: Sequence[ArrayLike]) -> tuple[float, float]:
    """95 % interval of `mean_ap`; see `multilabel_metric.mean_ap_interval`."""
    return multilabel_metric.mean_ap_interval(_stacked(results), _truths(truths))


def same(a: Tags, b: Tags) -> bool:
    """Whether both show the same labels."""
    return bool((a.shown == b.shown).all())


def draw(frame: NDArray[np.uint8], result: Tags, labels: Sequence[str], params: Mapping[str, Any]) -> NDArray[np.uint8]:
    """A copy of the BGR frame with the labels that are there and their scores."""
    out = frame.copy()
    list_labels(out, _shown(result, labels), labels)
    return out


def to_json(result: Tags, labels: Sequence[str]) -> dict[str, Any]:
    """`{"labels": {label: score}}` of those that are there, the highest score first."""
    return {"labels": {label: round(value, 6) for label, value in _shown(result, labels).items()}}


def _shown(result: Tags, labels: Sequence[str]) -> dict[str, float]:
    order = np.argsort(-result.scores, kind="stable")
    return {labels[index]: float(result.scores[index]) for index in order if result.shown[index]}


def _stacked(results: Sequence[Tags]) -> NDArray[np.float32]:
    return np.stack([result.scores for result in results])


def _truths(truths: Sequence[ArrayLike]) -> NDArray[np.bool_]:
    return np.array([np.asarray(truth, dtype=bool) for truth in truths])
