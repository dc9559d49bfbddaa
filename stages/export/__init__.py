"""torch to ONNX: the network and its preprocessing as one graph, proven equal in both runtimes before it goes on."""

from __future__ import annotations

import json
from pathlib import Path

from edge_demo.manifest import InputContract
from stages.export.graphs import export_parts
from stages.export.parity import climb
from stages.onnx_graph import composed, opset, save
from stages.spec import DataResult, ExportConfig, ExportResult, Gate, OnStep, ParityRow, Step, TrainResult, ignore
from stages.tasks import TASKS
from stages.trained import load_trained

__all__ = ["run"]


def run(
    config: ExportConfig, data: DataResult, train: TrainResult, *, out_dir: Path, on_step: OnStep = ignore
) -> ExportResult:
    """Write `core.onnx`, `pre.onnx`, `post.onnx` and `model.fp32.onnx`, and climb the parity ladder on test images.

    Raises:
        InputError: data and checkpoint do not belong together; an opset the exporter does not write.
        Error: damaged or non-finite weights; a graph that is not what was asked for.
    """
    deployed = load_trained(data, train)
    task = TASKS[train.task]
    on_step(Step("export graphs"))
    parts = export_parts(deployed, task.raw_outputs, task.outputs, data.size_wh, config.opset)
    for name, part in zip(("pre", "core", "post"), parts, strict=True):
        save(part, out_dir / f"{name}.onnx")
    model = composed(*parts, task.outputs, contract_metadata(data, train))
    size_bytes = save(model, out_dir / "model.fp32.onnx")
    rows = climb(config, deployed, data, train.task, out_dir, on_step)
    return ExportResult(
        folder=out_dir, opset=opset(model), size_bytes=size_bytes, parity=rows, gates=(_gate(rows, config),)
    )


def contract_metadata(data: DataResult, train: TrainResult) -> dict[str, str]:
    """What a deployed graph says about itself: task, labels and input contract, as JSON where they are not words."""
    contract = InputContract(size_wh=data.size_wh, resize=data.resize, colour=data.colour, mean=data.mean, std=data.std)
    return {
        "task": train.task,
        "labels": json.dumps(train.labels, ensure_ascii=False),
        "input": contract.model_dump_json(),
    }


def _gate(rows: tuple[ParityRow, ...], config: ExportConfig) -> Gate:
    """The ladder as one gate; a broken rung is named, the first one (the others stand on it)."""
    required = [row for row in rows if row.required]
    broken = [row for row in required if not row.passed]
    worst = broken[0] if broken else max(required, key=lambda row: row.max_rel)
    message = f"parity, {worst.name}: {worst.max_rel:.1e} of the largest value, agreement {worst.agreement:.2%}"
    return Gate(
        name="parity",
        value=worst.max_rel,
        limit=config.max_abs,
        passed=not broken,
        stop=True,
        message=f"{message}, limit {config.max_abs:.0e} and 100 %, n = {worst.n}",
    )
