"""Every network through export and INT8: the same numbers as torch, and every layer in integers in both runtimes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from stages import onnx_graph
from stages.export.graphs import export_parts
from stages.graph import Deployed, Preprocess
from stages.models import MODELS, build
from stages.models.cards import INT8_ACTIVATIONS
from stages.quantize.census import fused
from stages.spec import ModelConfig
from stages.tasks import TASKS

SIZE = (18, 15)  # neither square nor even
slow = pytest.mark.slow


class Batches(CalibrationDataReader):
    """Calibration data, 16 pictures at a time."""

    def __init__(self, batch: np.ndarray) -> None:
        self.left: Iterator[np.ndarray] = iter(np.split(batch, len(batch) // 16))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.left, None)
        return None if batch is None else {"batch": batch}


def exported(config: ModelConfig, folder: Path) -> tuple[nn.Module, np.ndarray, Path]:
    """A network whose batch norms have seen data, some of that data, and its ONNX file."""
    torch.manual_seed(0)
    model = build(config, 1, SIZE, 5)
    nn.init.normal_(model.head.weight, std=0.1)
    batch = torch.randn(64, 1, SIZE[1], SIZE[0])
    with torch.no_grad():
        model.train()(batch)
    task = TASKS["classify"]
    deployed = Deployed(Preprocess("gray", (0.1,), (0.3,)), model, task.post((28, 28))).eval()
    _, core, _ = export_parts(deployed, task.raw_outputs, task.outputs, SIZE, 20)
    onnx_graph.save(core, folder / "core.onnx")
    return model.eval(), batch.numpy(), folder / "core.onnx"


def quantized(core: Path, batch: np.ndarray) -> Path:
    """U8S8 per channel, as reference for any recipe."""
    prepared, int8 = core.with_name("prepared.onnx"), core.with_name("int8.onnx")
    quant_pre_process(core, prepared, skip_symbolic_shape=True)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(prepared, int8, Batches(batch), quant_format=QuantFormat.QDQ, per_channel=True, **types)
    return int8


def run(path: Path, batch: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"batch": batch})


def executed(path: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


CLASSIFIERS = [name for name, row in MODELS.items() if "classify" in row.tasks]


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "fast" else slow) for name in CLASSIFIERS])
def test_exports_and_fuses(name: str, tmp_path: Path) -> None:
    dials = {} if name in ("perceptron", "convnet") else {"depth": 2, "width": 8}
    model, batch, core = exported(ModelConfig(name=name, **dials), tmp_path)
    with torch.no_grad():
        expected = model(torch.from_numpy(batch[:3]))
    for got, want in zip(run(core, batch[:3]), expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)
    int8 = quantized(core, batch)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    linear = sum(isinstance(module, nn.Linear) for module in model.modules())
    parts = [f"{n} of {n} {what}s INT8" for n, what in ((convolutions, "convolution"), (linear, "matrix product")) if n]
    assert fused(int8) == {"onnxruntime": ", ".join(parts), "openvino": ", ".join(parts)}
    floats = executed(int8).keys() & {"Relu", "Clip", "Add", "MaxPool", "Conv", "Gemm", "BatchNormalization"}
    assert floats == set()


@slow
@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hardswish"])
def test_which_activations_vanish(activation: str, tmp_path: Path) -> None:
    """What `--list-models` says about them: one quantization at the input, one dequantization per output, or more."""
    assert "silu and hardswish do not" in INT8_ACTIVATIONS
    _, batch, core = exported(ModelConfig(name="fast", width=8, activation=activation), tmp_path)
    left = executed(quantized(core, batch))
    own = sum(left[name] for name in ("Relu", "Clip", "Sigmoid", "QLinearSigmoid", "HardSigmoid", "HardSwish"))
    assert own == (0 if activation.startswith("relu") else 4)
    assert (left["QuantizeLinear"] == 1 and left["DequantizeLinear"] == 2) == activation.startswith("relu")
