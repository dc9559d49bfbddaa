"""Which operators really run in INT8: read from the graph each runtime executes, not from the file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime

from edge_demo.runtime import import_openvino

# Names in the graphs ONNX Runtime executes, by what they compute; Nhwc* and Fused* are its own fused float kernels.
ORT_INT8 = {
    "convolution": {"QLinearConv", "ConvInteger"},
    "matrix product": {"QGemm", "QLinearMatMul", "MatMulInteger"},
}
ORT_FLOAT = {"convolution": {"Conv", "FusedConv", "NhwcFusedConv"}, "matrix product": {"Gemm", "FusedGemm", "MatMul"}}
OPENVINO_TYPES = {"Convolution": "convolution", "GroupConvolution": "convolution", "FullyConnected": "matrix product"}


def fused(model: Path, runtimes: Sequence[str] = ("onnxruntime", "openvino")) -> dict[str, str]:
    """Per runtime a sentence: `6 of 6 convolutions INT8, 1 of 1 matrix products INT8`."""
    count = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    return {name: _sentence(count[name](model)) for name in runtimes}


Counts = dict[str, tuple[int, int]]
"""kind -> (in INT8, all)."""


def _onnxruntime(model: Path) -> Counts:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # saving an optimized graph warns that it is for this CPU only: it is thrown away
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        types = [node.op_type for node in onnx.load(optimized).graph.node]
    counts: Counts = {}
    for kind, names in ORT_INT8.items():
        int8 = sum(name in names for name in types)
        counts[kind] = int8, int8 + sum(name in ORT_FLOAT[kind] for name in types)
    return counts


def _openvino(model: Path) -> Counts:
    core = import_openvino().Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", settings)
    counts: Counts = dict.fromkeys(ORT_INT8, (0, 0))
    for operation in compiled.get_runtime_model().get_ops():
        info = operation.get_rt_info()
        kind = OPENVINO_TYPES.get(info["layerType"].astype(str))
        if kind is not None:
            int8, total = counts[kind]
            counts[kind] = int8 + (info["runtimePrecision"].astype(str) in ("i8", "u8")), total + 1
    return counts


def _sentence(counts: Counts) -> str:
    parts = [f"{int8} of {total} {kind}s INT8" for kind, (int8, total) in counts.items() if total]
    return ", ".join(parts) or "no convolution and no matrix product"
