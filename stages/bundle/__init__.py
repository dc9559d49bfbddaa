"""Put together what ships: models, golden frames, a labelled sample, the model card and the manifest over all of it."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

from edge_demo.bundle import open_bundle, write_bundle
from edge_demo.errors import Error, InputError
from edge_demo.manifest import InputContract, TensorInfo, Tolerance
from edge_demo.onnx_file import inspect
from edge_demo.tasks import TASKS
from edge_demo.verify import verify
from stages.bundle.card import model_card
from stages.bundle.golden import Deployment, write_golden
from stages.bundle.samples import write_eval, write_file
from stages.spec import (
    BundleConfig,
    BundleResult,
    DataResult,
    EvaluateResult,
    ExportResult,
    OnStep,
    QuantizeResult,
    Step,
    TrainResult,
    ignore,
)

__all__ = ["run"]

MIN_RUNNER = "0.1.0"
"""The first version that reads `edge-bundle/1` as this stage writes it; raise it with what the bundle needs."""
SOFTWARE = ("train-to-edge", "torch", "onnx", "onnxruntime", "openvino", "numpy")


def run(
    config: BundleConfig,
    data: DataResult,
    train: TrainResult,
    export: ExportResult,
    quantize: QuantizeResult,
    evaluate: EvaluateResult,
    *,
    out_dir: Path,
    on_step: OnStep = ignore,
) -> BundleResult:
    """Write the bundle folder, then open and verify it as a device would.

    The same inputs give the same bytes: no times, no paths, fixed orders.

    Raises:
        InputError: decode parameters out of range; data and model of different labels.
        Error: the bundle just written does not verify.
    """
    if data.labels != train.labels:
        raise InputError("the model was trained on other labels than the data has", "type: pipeline train")
    params = TASKS[train.task].check_params(config.decode, data.labels)
    models = {
        "fp32": (export.folder / export.model).read_bytes(),
        "int8": (quantize.folder / quantize.model).read_bytes(),
    }
    files = {
        precision: write_file(out_dir, f"model/model.{precision}.onnx", model) for precision, model in models.items()
    }

    on_step(Step("golden frames", 0, config.golden))
    golden = write_golden(out_dir, data, Deployment(models, train.task, data.labels, params), config.golden)
    on_step(Step("labelled sample", 0, config.eval_images))
    sample = write_eval(out_dir, data, config.eval_images)

    name = config.name or data.name
    card = model_card(name, config, data, train, export, quantize, evaluate)
    write_file(out_dir, "README.md", card.encode())
    on_step(Step("manifest"))
    manifest_sha256 = write_bundle(
        out_dir,
        {
            "min_runner": MIN_RUNNER,
            "name": name,
            "version": config.version,
            "task": train.task,
            "labels": data.labels,
            "input": InputContract(
                size_wh=data.size_wh, resize=data.resize, colour=data.colour, mean=data.mean, std=data.std
            ).model_dump(mode="json"),
            "variants": [
                _variant(precision, file, models[precision], golden.tolerances[precision], evaluate)
                for precision, file in files.items()
            ],
            "decode": params,
            "golden": golden.entry,
            "eval": sample,
            "recommended": evaluate.recommended,
            "reason": evaluate.reason,
            "provenance": _provenance(data, train, export, quantize),
        },
    )
    on_step(Step("verify"))
    report = verify(out_dir)
    if not report.ok:
        raise Error(f"the bundle just written does not verify: {report.failures[0]}")
    sizes = open_bundle(out_dir).archive.sizes
    return BundleResult(folder=out_dir, name=name, manifest_sha256=manifest_sha256, size_bytes=sum(sizes.values()))


def _variant(
    precision: str, file: str, data: bytes, tolerances: list[Tolerance], evaluate: EvaluateResult
) -> dict[str, Any]:
    model = inspect(data)
    rows = [row for row in evaluate.rows if row.precision == precision]
    metrics = {f"{row.runtime}.{name}": value for row in rows for name, value in sorted(row.metrics.items())}
    return {
        "precision": precision,
        "file": file,
        "outputs": [TensorInfo(name=out.name, dtype=out.dtype, shape=out.shape) for out in model.outputs],
        "opset": model.opset,
        "tolerances": tolerances,
        "metrics": metrics,
    }


def _provenance(data: DataResult, train: TrainResult, export: ExportResult, quantize: QuantizeResult) -> dict[str, Any]:
    """Where the model comes from; without times and paths, so that the same run gives the same bytes."""
    return {
        "data": data.model_dump(mode="json", include={"name", "composed", "counts", "digests", "dropped"}),
        "train": {
            **train.model_dump(
                mode="json",
                include={
                    "model", "metric", "val", "train", "best_epoch", "epochs", "parameters", "macs", "precision",
                    "accelerator", "sources",
                },
            ),
            "weights_sha256": hashlib.sha256((train.folder / train.weights).read_bytes()).hexdigest(),
        },
        "export": {"opset": export.opset, "parity": [row.model_dump(mode="json") for row in export.parity]},
        "quantize": quantize.model_dump(
            mode="json", include={"val_fp32", "val_int8", "drop", "max_drop", "passed", "sqnr_db", "calibration"}
        ),
        "software": {name: metadata.version(name) for name in SOFTWARE},
    }  # fmt: skip
