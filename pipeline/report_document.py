"""`report.json`, schema `pipeline.report/1`: what a report says; HTML and Markdown are rendered from it alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.report_detect import Detection
from pipeline.report_multilabel import Multilabel
from pipeline.report_segment import Segmentation
from stages.reliability import Reliability
from stages.spec import (
    BenchResult,
    BundleResult,
    DataResult,
    EvaluateResult,
    ExportResult,
    Gate,
    QuantizeResult,
    TrainResult,
)

FROZEN = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Verdict(BaseModel):
    """The one thing to know: what ships, how good, how fast, and how far to trust it."""

    model_config = FROZEN
    passed: bool
    """Every gate of the run was met."""
    headline: Literal["Ready to ship", "Not ready to ship", "No gate missed"]
    """The last: nobody said which test accuracy is enough, so nothing calls it ready."""
    ships: Literal["fp32", "int8"]
    sentence: str
    metric: str
    value: float
    """The leading metric on test: the lowest of the runtimes at the shipped precision."""
    n: int
    ci95: tuple[float, float]
    runtime: str
    """The runtime that scored `value`."""
    recommended: str
    """Id of the bench row to use on this host; empty: none."""
    ratio: tuple[float, float, float] | None
    """Speed of `recommended` against the baseline: median and 95 % interval."""
    ratio_missing: str
    """Why `ratio` is null; else empty."""
    ratio_by: Literal["wall", "cpu"] | None
    host_status: str


class ClassRow(BaseModel):
    """One class: how many items per split, and how many of its test items were answered right."""

    model_config = FROZEN
    label: str
    counts: dict[str, int]
    right: int | None
    n: int | None
    ci95: tuple[float, float] | None
    """95 % Wilson interval of right / n."""


class Confused(BaseModel):
    """`n` test items of class `truth` that were answered `answer`; `share` of the items of that class."""

    model_config = FROZEN
    truth: str
    answer: str
    n: int
    share: float


class Confusion(BaseModel):
    """Answers against truth on test, of the shipped precision in ONNX Runtime."""

    model_config = FROZEN
    n: int
    mistakes: int
    matrix: tuple[tuple[int, ...], ...] | None
    """Row = truth, column = answer; null for more classes than can be read."""
    worst: tuple[Confused, ...]
    """The most frequent mistakes, at most `WORST_PAIRS`."""


class BenchDetail(BaseModel):
    """What a row of the bench summary leaves out; null is not measured."""

    model_config = FROZEN
    accuracy_n: int | None
    accuracy_ci95: tuple[float, float] | None
    latency_n: int | None
    """Inferences behind the percentiles."""
    fps_estimated: float | None
    """From CPU time per inference: what one thread would reach on a quiet host."""
    fps_reason: str
    """Why FPS is null; else empty."""
    ratio_by: Literal["wall", "cpu"] | None
    """The time the ratio compares: CPU time on a busy host."""
    verdict: str | None


class ReportDocument(BaseModel):
    """`report.json`: every fact of the report. Stage results are embedded as they are."""

    model_config = FROZEN
    schema_: Annotated[Literal["pipeline.report/1"], Field(alias="schema")] = "pipeline.report/1"
    title: str
    verdict: Verdict
    warnings: tuple[str, ...]
    gates: tuple[Gate, ...]
    fit: str
    """Under- or overfitting in plain words, with the numbers."""
    data: DataResult
    train: TrainResult
    export: ExportResult
    quantize: QuantizeResult
    evaluate: EvaluateResult
    bundle: BundleResult
    bench: BenchResult
    bench_detail: dict[str, BenchDetail]
    """Row id -> what the summary rows of `bench` leave out."""
    not_measured: tuple[str, ...]
    """What of the bench table is null, and why."""
    classes: tuple[ClassRow, ...]
    confusion: Confusion | None
    """Null for tasks whose answer is not one class."""
    reliability: Reliability | None
    """Whether the scores mean what they say, on test, of what ships in ONNX Runtime; likewise null."""
    detection: Detection | None
    """Average precision and confusion of boxes on test; null for tasks without boxes."""
    multilabel: Multilabel | None
    """Average precision of each label on test; null for other tasks."""
    segmentation: Segmentation | None
    """IoU and confusion of pixels on test; null for tasks without masks."""
    curves: tuple[dict[str, float | None], ...]
    """One row per epoch of the training's curves file."""
    software: dict[str, str]
    host: dict[str, str]
    run_name: str
    reproduce: str
    """To be typed in the folder that holds the run folder."""
