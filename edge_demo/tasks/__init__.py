"""What a task does on the device: raw graph outputs -> typed results -> score, picture, JSON. Registry: `TASKS`.

A new task is one file here and one in `stages/tasks`; nothing else in the project asks which task it is running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edge_demo.tasks import classify

Frame = NDArray[Any]
Raw = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Task:
    """One row of functions. A result is the task's own frozen dataclass, a truth what `truth.json` holds per item."""

    outputs: tuple[str, ...]
    """Names of the graph outputs `decode` needs."""
    metric: str
    """The leading metric: a key of what `score` returns; higher is better."""
    check_params: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]
    """(decode parameters, labels) -> completed parameters; InputError on an unknown key or value out of range."""
    region: Callable[[Frame, Mapping[str, Any]], tuple[int, int, int, int]]
    """(frame, parameters) -> xyxy of the part of the frame the network looks at, in pixels."""
    decode: Callable[[Raw, Mapping[str, Any]], list[Any]]
    """(raw outputs of a batch, parameters) -> one result per frame."""
    score: Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
    """(results, truths) -> metrics."""
    correct: Callable[[Sequence[Any], Sequence[Any]], NDArray[Any]]
    """(results, truths) -> float64 per item; its mean is the leading metric where that is a mean, else a quality."""
    same: Callable[[Any, Any], bool]
    """Whether two results give the same answer (agreement of runtimes and precisions)."""
    draw: Callable[[Frame, Any, Sequence[str], Mapping[str, Any]], Frame]
    """(frame BGR uint8 HWC, result, labels, parameters) -> a new annotated frame."""
    to_json: Callable[[Any, Sequence[str]], dict[str, Any]]
    """(result, labels) -> plain JSON values, rounded to 6 digits."""
    adjustable: tuple[str, ...] = ()
    """Numeric decode parameters in [0, 1] that a viewer may change while the demo runs (thresholds)."""
    rescore: Callable[[Any, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]], Any] | None = None
    """(result, (scores, embedding) -> scores over more labels) -> result; None where nothing can be taught."""


TASKS: dict[str, Task] = {
    "classify": Task(
        outputs=classify.OUTPUTS,
        metric="accuracy",
        check_params=classify.check_params,
        region=classify.region,
        decode=classify.decode,
        score=classify.score,
        correct=classify.correct,
        same=classify.same,
        draw=classify.draw,
        to_json=classify.to_json,
        rescore=classify.rescore,
    ),
}
