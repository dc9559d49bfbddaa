"""The model card: what a person must know before trusting the model, in one page of Markdown.

Source for the sections: Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv:1810.03993), figure 1.
"""

from __future__ import annotations

from stages.spec import (
    BundleConfig,
    DataResult,
    EvaluateResult,
    ExportResult,
    QuantizeResult,
    TrainResult,
)


def model_card(
    name: str,
    config: BundleConfig,
    data: DataResult,
    train: TrainResult,
    export: ExportResult,
    quantize: QuantizeResult,
    evaluate: EvaluateResult,
) -> str:
    """README.md of the bundle; the same inputs give the same text."""
    sections = (
        f"# {name} {config.version}",
        _model(train, export, quantize),
        _data(data),
        _metrics(evaluate),
        _limits(data),
        _use(config),
    )
    return "\n\n".join(sections) + "\n"


def _model(train: TrainResult, export: ExportResult, quantize: QuantizeResult) -> str:
    return (
        f"Task `{train.task}`: {len(train.labels)} labels ({', '.join(train.labels)}).\n"
        f"Network `{train.model.name}` (depth {train.model.depth}, width {train.model.width}): {train.parameters:,} "
        f"parameters, {train.macs:,} multiply-accumulates per frame; best epoch {train.best_epoch} of {train.epochs}.\n"
        f"ONNX opset {export.opset}; FP32 file {export.size_bytes:,} bytes, INT8 file {quantize.size_bytes:,} bytes."
    )


def _data(data: DataResult) -> str:
    counts = ", ".join(f"{count:,} {split}" for split, count in data.counts.items())
    width, height = data.size_wh
    lines = [
        "## Data",
        "",
        f"`{data.name}`: {counts} images, network input {width} x {height} px, {data.colour}.",
        "Images that also are in the test split were left out of training; no choice was made on the test split.",
    ]
    if data.composed:
        lines.append("**The data is composed**: put together by a program from smaller real images, not photographed.")
    return "\n".join(lines)


def _metrics(evaluate: EvaluateResult) -> str:
    lines = [
        "## Metrics",
        "",
        "On the whole test split. `torch` is the reference; the others ran the files of this bundle.",
        "",
        f"| engine | precision | {evaluate.metric} | 95 % interval | n | same answer as torch FP32 |",
        "|---|---|---|---|---|---|",
    ]
    for row in evaluate.rows:
        low, high = row.ci95
        lines.append(
            f"| {row.runtime} | {row.precision} | {row.metrics[evaluate.metric]:.4f} | {low:.4f} .. {high:.4f} "
            f"| {row.n:,} | {row.agreement:.2%} |"
        )
    lines += ["", f"Recommended: **{evaluate.recommended}**. {evaluate.reason}"]
    return "\n".join(lines)


def _limits(data: DataResult) -> str:
    return "\n".join(
        (
            "## Limits",
            "",
            "- The metrics hold for images like those of the test split; other cameras, light or subjects were not "
            "measured.",
            "- The network answers for every picture, also for one that shows none of its labels.",
            f"- Everything is reduced to {data.size_wh[0]} x {data.size_wh[1]} px first; smaller detail is not seen.",
        )
    )


def _use(config: BundleConfig) -> str:
    return "\n".join(
        (
            "## Use",
            "",
            "`pipeline verify`, `pipeline bench` and `pipeline demo` take this folder.",
            "",
            f"Licence of the model: {config.licence}. Licence of the data: {config.data_licence}.",
        )
    )
