"""Which operators a runtime really executes, and in which precision: did INT8 run as INT8? Runs in a worker only."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_demo.runtime import import_openvino

Feeds = Mapping[str, NDArray[Any]]
# Operators that carry the arithmetic, in either runtime's vocabulary; parts of names.
HEAVY = ("conv", "gemm", "matmul", "fullyconnected", "lstm", "gru", "rnn", "attention")
INTEGER = (":u8", ":i8", ":uint8", ":int8", "qlinear", "convinteger", "matmulinteger")


def executed(runtime: str, model: Path, precision: str, feeds: Feeds) -> dict[str, int]:
    """`type:precision` -> how many, most frequent first."""
    count = _openvino if runtime == "openvino" else _onnxruntime
    return dict(count(model, precision, feeds).most_common())


def _openvino(model: Path, precision: str, feeds: Feeds) -> Counter[str]:
    """From the compiled graph. Source: OpenVINO documentation, `ov::CompiledModel::get_runtime_model`."""
    ov = import_openvino()
    core = ov.Core()
    graph = core.read_model(model)
    graph.reshape({port: list(array.shape) for port, array in enumerate(feeds.values())})
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1})
    count: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind, number = (info[key].astype(str) for key in ("layerType", "runtimePrecision"))
        if kind not in ("Input", "Output", "Const"):
            count[f"{kind}:{number}"] += 1
    return count


def _onnxruntime(model: Path, precision: str, feeds: Feeds) -> Counter[str]:
    """From one profiled run. Source: ONNX Runtime documentation, "Profiling tools"."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    count: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            args = event["args"]
            inputs = args.get("input_type_shape") or [{"unknown": []}]
            count[f"{args['op_name']}:{next(iter(inputs[0]))}"] += 1
    return count


def heavy(counts: Mapping[str, int]) -> dict[str, int]:
    """The operators that carry the arithmetic; all of them when none is known to."""
    chosen = {key: n for key, n in counts.items() if any(part in key.lower() for part in HEAVY)}
    return chosen or dict(counts)


def summary(counts: Mapping[str, int]) -> str:
    """`Convolution:u8 x6, FullyConnected:u8 x1`: the heavy operators in one line."""
    return ", ".join(f"{key} x{n}" for key, n in heavy(counts).items())


def integer_share(counts: Mapping[str, int]) -> tuple[int, int]:
    """How many heavy operators run on 8-bit integers, and how many there are."""
    chosen = heavy(counts)
    return sum(n for key, n in chosen.items() if any(part in key.lower() for part in INTEGER)), sum(chosen.values())
