"""FP32 to INT8: one QDQ file that both runtimes execute in integers, and what it costs on val, measured from that file.

Activations unsigned, weights signed and per channel (U8S8). ONNX Runtime's own default (S8S8) is not offered: on x86 it
leaves convolutions in float there, and OpenVINO refuses to compile it on CPUs with AMX.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnx import ModelProto
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edge_demo import tasks
from edge_demo.errors import Error
from stages import onnx_graph
from stages.arrays import load_frames, load_truth
from stages.inference import within
from stages.quantize.calibration import Calibration, Reader, collect
from stages.quantize.census import fused
from stages.quantize.comparison import Comparison, compare
from stages.spec import (
    DataResult,
    ExportResult,
    Gate,
    OnStep,
    QuantizeConfig,
    QuantizeResult,
    Step,
    TrainResult,
    ignore,
)
from stages.tasks import TASKS

__all__ = ["quantized_core", "run"]

RUNTIMES = ("onnxruntime", "openvino")
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# What a ReLU network is made of. Left out: sigmoids, products and the like, which ONNX Runtime runs faster in float
# (measured on inverted-residual networks: 1.64 times FP32 speed against 1.53 with every operator in INT8).
CONV_ONLY = [
    *("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Concat", "Resize", "ReduceMean", "Reshape", "Flatten"),
]
OPERATORS: dict[str, list[str] | None] = {"all": None, "conv-only": CONV_ONLY}


def run(
    config: QuantizeConfig,
    data: DataResult,
    train: TrainResult,
    export: ExportResult,
    *,
    out_dir: Path,
    on_step: OnStep = ignore,
) -> QuantizeResult:
    """Write `core.int8.onnx` and `model.int8.onnx`, and measure the saved files on val in both runtimes.

    Raises:
        InputError: too few calibration images, or of another size; an exported file that is no model.
        Error: calibration data that is not what training saw; a graph that cannot be quantized.
    """
    on_step(Step("calibrate", note=f"INT8: U8S8, {config.method}, {config.images} training images"))
    calibration = collect(config, data)
    core = quantized_core(config, export.folder / export.core, calibration)
    onnx_graph.save(core, out_dir / "core.int8.onnx")
    size_bytes = onnx_graph.save(_deployed(core, export, train.task), out_dir / "model.int8.onnx")
    compared: dict[str, Comparison] = {}
    frames, truth = load_frames(data, "val"), list(load_truth(data, "val"))
    for name in RUNTIMES:
        on_step(Step("compare on val", len(compared), len(RUNTIMES)))
        models = export.folder / export.model, out_dir / "model.int8.onnx"
        cores = export.folder / export.pre, export.folder / export.core, out_dir / "core.int8.onnx"
        compared[name] = compare(name, models, cores, frames, truth, train.task, data.labels)
    facts = {"method": config.method, "ops": config.ops, **calibration.facts}
    return _result(config, train.task, compared, out_dir, len(truth), size_bytes, facts)


def quantized_core(config: QuantizeConfig, core: Path, calibration: Calibration) -> ModelProto:
    """The bare network in INT8 (QDQ), with the FP32 one's inputs and outputs. The same inputs give the same bytes.

    No calibration cache: ONNX Runtime's does not look at the data, and would reuse the ranges of another set.

    Raises:
        InputError: not a model.
        Error: ONNX Runtime cannot quantize it.
    """
    source = onnx_graph.load(core)
    name = onnx_graph.input_names(source)[0]
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        try:
            # No symbolic shape inference: the exporter has written every shape, and it fails on global max pooling.
            quant_pre_process(core, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                quantized,
                Reader(name, calibration.batch),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS[config.ops],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=METHODS[config.method],
            )
        except (RuntimeError, ValueError, TypeError) as error:
            detail = (str(error).splitlines() or [type(error).__name__])[0]
            raise Error(f"{core.name}: ONNX Runtime cannot quantize it: {detail}") from error
        model = onnx_graph.load(quantized)
    if "QuantizeLinear" not in onnx_graph.operators(model):
        raise Error(f"{core.name}: nothing in this network can be quantized with quantize.ops = {config.ops!r}")
    return onnx_graph.clean(model)


def _deployed(core: ModelProto, export: ExportResult, task: str) -> ModelProto:
    """The INT8 network between the FP32 pre and post graphs, with the FP32 file's metadata."""
    pre, post, model = (onnx_graph.load(export.folder / name) for name in (export.pre, export.post, export.model))
    metadata = {item.key: item.value for item in model.metadata_props}
    return onnx_graph.composed(pre, core, post, TASKS[task].outputs, metadata)


def _result(
    config: QuantizeConfig,
    task: str,
    compared: dict[str, Comparison],
    out_dir: Path,
    n: int,
    size_bytes: int,
    facts: dict[str, object],
) -> QuantizeResult:
    metric = tasks.TASKS[task].metric
    drop = max(runtime.fp32 - runtime.int8 for runtime in compared.values())
    return QuantizeResult(
        folder=out_dir,
        metric=metric,
        n=n,
        val_fp32={name: runtime.fp32 for name, runtime in compared.items()},
        val_int8={name: runtime.int8 for name, runtime in compared.items()},
        paired={name: (runtime.lost, runtime.won) for name, runtime in compared.items()},
        drop=drop,
        max_drop=config.max_drop,
        passed=within(drop, config.max_drop),
        sqnr_db=min(runtime.sqnr_db for runtime in compared.values()),
        agreement={name: runtime.agreement for name, runtime in compared.items()},
        fused=fused(out_dir / "model.int8.onnx"),
        size_bytes=size_bytes,
        calibration=facts,
        gates=(_gate(config, metric, drop, n),) if config.required else (),
    )


def _gate(config: QuantizeConfig, metric: str, drop: float, n: int) -> Gate:
    return Gate(
        name="quantize.max_drop",
        value=drop,
        limit=config.max_drop,
        passed=within(drop, config.max_drop),
        stop=True,
        message=f"INT8 loses {100 * drop:.2f} points of {metric} on val, limit {100 * config.max_drop:.2f}, n = {n}",
    )
