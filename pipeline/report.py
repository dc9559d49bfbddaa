"""The files people read: `report.html` (one file, no network, no script), `report.md` (for a CI page), `report.json`.

Command: `pipeline report`. Every number is a fact of `pipeline.report_facts`; nothing is computed in a template.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import Error, missing_extra
from pipeline import report_charts as charts
from pipeline import report_detect as detect
from pipeline import report_facts as facts
from pipeline import report_multilabel as multilabel
from pipeline import report_segment as segment
from pipeline.report_document import ReportDocument
from pipeline.report_format import percent, points, runtime_name, sentence, span, times
from pipeline.report_verdict import fit_sentences, make_verdict, make_warnings
from stages.arrays import load_frames
from stages.reliability import reliability
from stages.spec import (
    BenchResult,
    BundleResult,
    DataResult,
    EvaluateResult,
    ExportResult,
    OnStep,
    QuantizeResult,
    ReportConfig,
    ReportResult,
    Step,
    TrainResult,
)

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
MISTAKE_SHARE = 2 / 3  # of the samples shown; the rest is drawn from the right answers, so that both are seen
SEED = 0


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """One test picture: PNG as a data URI, and what it was taken for. `score` is the network's own, 0..1."""

    uri: str
    size_wh: tuple[int, int]
    truth: str
    answer: str
    score: float


def run(
    config: ReportConfig,
    data: DataResult,
    train: TrainResult,
    export: ExportResult,
    quantize: QuantizeResult,
    evaluate: EvaluateResult,
    bundle: BundleResult,
    bench: BenchResult,
    *,
    out_dir: Path,
    on_step: OnStep,
) -> ReportResult:
    """Write the three report files into `out_dir`, a folder inside the run folder.

    Raises:
        Error: an earlier stage's file is missing or does not fit the others.
        InputError: jinja2, matplotlib or Pillow is not installed.
    """
    html_page, markdown_page = _templates()
    on_step(Step("report: facts", 0, 3))
    arrays = facts.read_predictions(evaluate)
    document = build(config, data, train, export, quantize, evaluate, bundle, bench, arrays, out_dir.parent)
    on_step(Step("report: charts and pictures", 1, 3))
    drawn = draw_charts(document)
    pictures = draw_pictures(data, arrays, config.samples)
    on_step(Step("report: pages", 2, 3))
    result = ReportResult(folder=out_dir)
    html = html_page.render(r=document, charts=drawn, **pictures)
    (out_dir / result.html).write_text(html, encoding="utf-8")
    (out_dir / result.markdown).write_text(markdown_page.render(r=document), encoding="utf-8")
    (out_dir / result.json_file).write_text(document.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    on_step(Step("report: pages", 3, 3))
    return result


def build(
    config: ReportConfig,
    data: DataResult,
    train: TrainResult,
    export: ExportResult,
    quantize: QuantizeResult,
    evaluate: EvaluateResult,
    bundle: BundleResult,
    bench: BenchResult,
    arrays: dict[str, NDArray[Any]],
    run_folder: Path,
) -> ReportDocument:
    """All facts of the report, derived from the results and the files they name."""
    predictions = facts.class_predictions(data, arrays)
    bench_document = facts.read_bench(bench)
    gates = facts.all_gates(train, export, quantize, evaluate, bench)
    details = facts.bench_details(bench_document)
    verdict = make_verdict(evaluate, bench, details, gates)
    return ReportDocument(
        title=config.title or f"{bundle.name}: {train.task} on {data.name}",
        verdict=verdict,
        warnings=make_warnings(data, train, quantize, evaluate, bench, bench_document.warnings),
        gates=gates,
        fit=fit_sentences(train, verdict),
        data=data,
        train=train,
        export=export,
        quantize=quantize,
        evaluate=evaluate,
        bundle=bundle,
        bench=bench,
        bench_detail=details,
        not_measured=facts.not_measured(bench, details),
        classes=facts.class_rows(data, predictions),
        confusion=facts.confusion_of(data.labels, predictions) if predictions else None,
        reliability=reliability(predictions["score"], predictions["truth"] == predictions["answer"])
        if predictions
        else None,
        detection=detect.facts_of(data, arrays) if detect.is_told_by(arrays) else None,
        multilabel=multilabel.facts_of(data, arrays) if multilabel.is_told_by(arrays) else None,
        segmentation=segment.facts_of(data, arrays) if segment.is_told_by(arrays) else None,
        curves=facts.read_curves(train),
        software=facts.software_versions(),
        host=facts.host_facts(bench_document),
        run_name=run_folder.name,
        reproduce=facts.reproduce_command(run_folder),
    )


def draw_charts(document: ReportDocument) -> dict[str, str]:
    """Chart name -> SVG; a chart without anything to show is left out, and the page says why."""
    drawn = {}
    metric, bench = document.train.metric, document.bench
    for name, what in (("loss", "loss"), ("metric", metric)):
        column = what if name == "metric" else "loss"
        series = [
            charts.Series(label, [row[f"{split}_{column}"] for row in document.curves])
            for split, label in (("train", "training batches"), ("val", "validation"))
            if document.curves and f"{split}_{column}" in document.curves[0]
        ]
        if series:
            drawn[name] = charts.curves(name, what, series, document.train.best_epoch, as_percent=name == "metric")
    if document.reliability:
        drawn["reliability"] = charts.diagram(document.reliability)
    if document.detection and (rows := [row for row in document.detection.classes if row.precision]):
        drawn["precision"] = charts.precision([charts.Series(row.label, row.precision) for row in rows])
    variants = {
        row.id: charts.Variant(
            name=row.id,
            runtime=row.runtime,
            precision=row.precision,
            label=f"{runtime_name(row.runtime)} {row.precision.upper()}",
            recommended=row.id == bench.recommended,
        )
        for row in bench.rows
    }
    points = [
        charts.Point(variants[row.id], row.p50_ms, row.accuracy, document.bench_detail[row.id].accuracy_ci95)
        for row in bench.rows
        if row.p50_ms is not None and row.accuracy is not None
    ]
    if points:
        drawn["tradeoff"] = charts.tradeoff(points, metric)
    ratios = [charts.Ratio(variants[row.id], row.ratio) for row in bench.rows if row.ratio and row.id != bench.baseline]
    if ratios:
        drawn["speed"] = charts.speed(ratios, bench.baseline)
    return drawn


def draw_pictures(data: DataResult, arrays: dict[str, NDArray[Any]], samples: int) -> dict[str, Any]:
    """What the page shows of test frames: the template's variables of whatever the predictions are about."""
    if predictions := facts.class_predictions(data, arrays):
        mistakes, right = thumbnails(data, predictions, samples)
        return {"mistakes": mistakes, "right": right}
    if detect.is_told_by(arrays):
        lowest, rest = detect.frames_shown(data, arrays, samples)
        return {"worst_frames": lowest, "other_frames": rest}
    if multilabel.is_told_by(arrays):
        poor, good = multilabel.frames_shown(data, arrays, samples)
        return {"worst_frames": poor, "other_frames": good}
    if segment.is_told_by(arrays):
        worst, others = segment.frames_shown(data, arrays, samples)
        return {"worst_frames": worst, "other_frames": others, "map_legend": segment.legend(data.labels)}
    return {}


def thumbnails(
    data: DataResult, predictions: dict[str, NDArray[Any]], samples: int
) -> tuple[list[Thumbnail], list[Thumbnail]]:
    """(mistakes, the surest first; right answers, drawn at random with a fixed seed), together at most `samples`."""
    frames = load_frames(data, "test")
    if len(frames) != len(predictions["truth"]):
        raise Error(f"{len(predictions['truth'])} predictions for {len(frames)} test frames", "run evaluate again")
    is_wrong = predictions["truth"] != predictions["answer"]
    wrong = np.flatnonzero(is_wrong)
    wrong = wrong[np.argsort(-predictions["score"][wrong], kind="stable")][: round(samples * MISTAKE_SHARE)]
    right = np.random.default_rng(SEED).permutation(np.flatnonzero(~is_wrong))[: samples - len(wrong)]

    def thumbnail(index: int) -> Thumbnail:
        return Thumbnail(
            uri=png_uri(frames[index]),
            size_wh=(frames.shape[2], frames.shape[1]),
            truth=data.labels[int(predictions["truth"][index])],
            answer=data.labels[int(predictions["answer"][index])],
            score=float(predictions["score"][index]),
        )

    return [thumbnail(int(index)) for index in wrong], [thumbnail(int(index)) for index in np.sort(right)]


def png_uri(frame: NDArray[np.uint8]) -> str:
    """A `data:` URI of a uint8 HWC frame, one gray channel or BGR."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("the report", "Pillow", "train") from error
    image = frame[:, :, 0] if frame.shape[2] == 1 else frame[:, :, ::-1]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]|#~$])")


def markdown_text(value: object) -> str:
    """A value as one line of literal GitHub-flavoured Markdown: nothing in it formats, is a tag, or ends a cell.

    Source: https://spec.commonmark.org/0.31.2/#backslash-escapes (sections 2.4 and 2.5).
    """
    text = re.sub(r"\s+", " ", str(value))
    if hasattr(value, "__html__"):  # marked by the template as already literal: the inside of a code fence
        return text
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKDOWN_SIGNS.sub(r"\\\1", text)


def typeset(text: str) -> str:
    """The text with true minus signs, and no-break spaces between a number and its unit."""
    text = re.sub(r"(?<![\w.-])-(?=\d)", "\u2212", text)
    return re.sub(r"(?<=\d) (?=%|ms\b|MB\b|points\b|items\b)|(?<=\bn) (?== )|(?<=\bn =) (?=\d)", "\u00a0", text)


def _templates() -> tuple[Any, Any]:
    """The HTML and the Markdown template, each escaping every value it prints."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise missing_extra("the report", "jinja2", "train") from error
    common: dict[str, Any] = {
        "loader": FileSystemLoader(TEMPLATES),
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "keep_trailing_newline": True,
    }
    html = Environment(autoescape=True, **common)
    html.filters["svg"] = Markup  # only for what report_charts drew, which escapes its labels itself
    markdown = Environment(autoescape=False, finalize=markdown_text, **common)
    markdown.filters["literal"] = Markup
    for environment in (html, markdown):
        _add_filters(environment)
    return html.get_template("report.html.j2"), markdown.get_template("report.md.j2")


def _add_filters(environment: Environment) -> None:
    filters: dict[str, Callable[..., str]] = {
        "percent": percent,
        "points": points,
        "times": times,
        "span": span,
        "runtime": runtime_name,
        "typeset": typeset,
        "sentence": sentence,
        "count": lambda value: f"{value:,}",
        "number": lambda value, digits: f"{value:,.{digits}f}",
        "significant": lambda value: f"{value:.2g}",
        "megabytes": lambda size_bytes: f"{size_bytes / 1e6:.2f} MB",
    }
    environment.filters.update(filters)
