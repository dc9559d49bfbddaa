"""What a task does on the device: raw graph outputs -> typed results -> score, picture, JSON. Registry: `TASKS`.

A new task is one file here and one in `stages/tasks`; nothing else in the project asks which task it is running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edge_demo.manifest import Resize
from edge_demo.tasks import classify, detect, multilabel, segment

Frame = NDArray[Any]
Raw = Mapping[str, NDArray[Any]]
Outputs = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Task:
    """One row of functions. A result is the task's own frozen dataclass, a truth what `truth.json` holds per item."""

    outputs: tuple[str, ...]
    """Names of the graph outputs `decode` needs."""
    metric: str
    """The leading metric: a key of what `score` returns; higher is better."""
    check_params: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]
    """(decode parameters, labels) -> completed parameters; InputError on an unknown key or value out of range."""
    check_outputs: Callable[[Outputs, Sequence[str]], str]
    """(name -> (dtype, shape) of the graph's outputs, labels) -> what is wrong with them, or empty."""
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
    interval: Callable[[Sequence[Any], Sequence[Any]], tuple[float, float]] | None = None
    """(results, truths) -> 95 % interval of the leading metric; None where that is the mean of `correct`."""
    adjustable: tuple[str, ...] = ()
    """Numeric decode parameters in [0, 1] that a viewer may change while the demo runs (thresholds)."""
    rescore: Callable[[Any, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]], Any] | None = None
    """(result, (scores, embedding) -> scores over more labels) -> result; None where nothing can be taught."""
    to_frame: Callable[[Any, tuple[int, int, int, int], Resize, tuple[int, int]], Any] | None = None
    """(result in pixels of the network's input, region xyxy, resize, network's size_wh) -> result in pixels of the
    frame, for drawing and JSON of the demo; None where a result has no coordinates. Scores, golden answers and
    agreement are about results before it."""
    align: Callable[[Raw, Raw], tuple[Raw, Raw]] | None = None
    """(got, want) raw outputs of the same frames -> both without the differences no answer depends on (order of
    candidates, single pixels), before they are compared number by number; None: as they are."""
    follower: Callable[[], Callable[[Any], Any]] | None = None
    """() -> a tracker of one source, called with the result of each frame in turn; None where nothing is tracked."""


TASKS: dict[str, Task] = {
    "classify": Task(
        outputs=classify.OUTPUTS,
        metric="accuracy",
        check_params=classify.check_params,
        check_outputs=classify.check_outputs,
        region=classify.region,
        decode=classify.decode,
        score=classify.score,
        correct=classify.correct,
        same=classify.same,
        draw=classify.draw,
        to_json=classify.to_json,
        rescore=classify.rescore,
    ),
    "multilabel": Task(
        outputs=multilabel.OUTPUTS,
        metric="mean_ap",
        check_params=multilabel.check_params,
        check_outputs=multilabel.check_outputs,
        region=multilabel.region,
        decode=multilabel.decode,
        score=multilabel.score,
        correct=multilabel.correct,
        same=multilabel.same,
        draw=multilabel.draw,
        to_json=multilabel.to_json,
        interval=multilabel.interval,
        adjustable=("threshold",),
    ),
    "detect": Task(
        outputs=detect.OUTPUTS,
        metric="map50_95",
        check_params=detect.check_params,
        check_outputs=detect.check_outputs,
        region=detect.region,
        decode=detect.decode,
        score=detect.score,
        correct=detect.correct,
        same=detect.same,
        draw=detect.draw,
        to_json=detect.to_json,
        interval=detect.interval,
        adjustable=("score_threshold",),
        to_frame=detect.to_frame,
        align=detect.align,
        follower=detect.follower,
    ),
    "segment": Task(
        outputs=segment.OUTPUTS,
        metric="miou",
        check_params=segment.check_params,
        check_outputs=segment.check_outputs,
        region=segment.region,
        decode=segment.decode,
        score=segment.score,
        correct=segment.correct,
        same=segment.same,
        draw=segment.draw,
        to_json=segment.to_json,
        interval=segment.interval,
        adjustable=("opacity",),
        to_frame=segment.to_frame,
        align=segment.align,
    ),
}
