"""Frames straight into the first convolution: the same answers, and nothing left to do before it in both runtimes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from stages import export, onnx_graph, quantize
from stages.arrays import load_frames
from stages.pixels import reference_batch
from stages.quantize.census import fused
from stages.quantize.front import PIXELS, STEP, straight, without_quantizer
from stages.quantize.recipes import Recipe, batch_readers, prepared, quantized
from stages.quantize.target import host_target
from stages.spec import DataResult, ExportConfig, ExportResult, QuantizeConfig, QuantizeResult, TrainResult

ELSEWHERE: Any = "arm64" if host_target() != "arm64" else "x86-vnni"  # speed is not judged there
MEAN, STD = (115 / 255,) * 3, (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def colour_export(
    colour_data: DataResult, colour_train: TrainResult, small_folder: Callable[[str], Path]
) -> ExportResult:
    return export.run(ExportConfig(parity_images=16), colour_data, colour_train, out_dir=small_folder("colour-export"))


@pytest.fixture(scope="module")
def colour_quantize(
    colour_data: DataResult, colour_train: TrainResult, colour_export: ExportResult, small_folder: Callable[[str], Path]
) -> QuantizeResult:
    config = QuantizeConfig(images=100, max_drop=0.02, target=ELSEWHERE)
    return quantize.run(config, colour_data, colour_train, colour_export, out_dir=small_folder("colour-quantize"))


def run(model: ModelProto, value: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: value})[0])


def convolution(pads: int, bias: bool = True) -> tuple[ModelProto, ModelProto]:
    """A network of one convolution on a normalized batch, and a pre graph that only has the right input."""
    rng = np.random.default_rng(0)
    tensors = {"w": rng.normal(size=(4, 3, 3, 3))} | ({"b": rng.normal(size=4)} if bias else {})
    node = helper.make_node("Conv", ["batch", *tensors], ["logits"], "conv", pads=[pads] * 4)
    value = helper.make_tensor_value_info
    batch, logits = (value(name, TensorProto.FLOAT, ["batch", c, 8, 8]) for name, c in (("batch", 3), ("logits", None)))
    values = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()]
    logits.type.tensor_type.ClearField("shape")
    frames = value("frames", TensorProto.UINT8, ["batch", 8, 8, 3])
    opset = [helper.make_opsetid("", 20)]
    core = helper.make_graph([node], "core", [batch], [logits], values)
    pre = helper.make_graph([helper.make_node("Identity", ["frames"], ["batch"])], "pre", [frames], [frames])
    return tuple(helper.make_model(graph, opset_imports=opset, ir_version=10) for graph in (core, pre))


def frames_of(n: int = 5) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize("mean", [MEAN, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)])
def test_the_folded_network_is_exact(bias: bool, pads: int, mean: tuple[float, float, float]) -> None:
    """Against numpy's preprocessing in float64 and the unchanged convolution, with padding, too."""
    core, pre = convolution(pads, bias)
    front = straight(core, pre, mean, STD)
    assert front is not None
    frames = frames_of()
    want = run(core, reference_batch(frames, "rgb", mean, STD).astype(np.float32))
    np.testing.assert_allclose(run(front.core, front.feed(frames)), want, rtol=1e-4, atol=2e-4)


def test_the_pre_graph_feeds_what_calibration_was_fed() -> None:
    core, pre = convolution(1)
    front = straight(core, pre, MEAN, STD)
    assert front is not None
    frames = frames_of()
    np.testing.assert_array_equal(run(front.pre, frames), front.feed(frames))
    low, high = front.ranges[PIXELS]
    assert (low, high) == (-front.zero * STEP, (255 - front.zero) * STEP)  # type: ignore[operator]


@pytest.mark.parametrize("what", ["another reader", "depthwise", "not a convolution"])
def test_what_does_not_begin_with_one_convolution_stays_normalized(what: str) -> None:
    core, pre = convolution(1)
    if what == "another reader":
        core.graph.node.append(helper.make_node("Relu", ["batch"], ["more"]))
    elif what == "depthwise":
        core.graph.node[0].attribute.append(helper.make_attribute("group", 3))
    else:
        core.graph.node[0].op_type = "ConvTranspose"
    assert straight(core, pre, MEAN, STD) is None


@pytest.mark.parametrize("mean", [(0.5, 0.45, 0.3), (100 / 255, 100 / 255, 101 / 255), (0.5,) * 3])
def test_a_mean_that_is_not_one_level_for_all_colours_stays_normalized(mean: tuple[float, float, float]) -> None:
    """What pads a picture is 0 after normalization, and no byte says that for all three."""
    core, pre = convolution(1)
    assert straight(core, pre, mean, STD) is None


def test_removing_the_quantizer_changes_no_output(
    colour_data: DataResult, colour_export: ExportResult, tmp_path: Path
) -> None:
    """The frame's bytes are what the quantizer would make of them, so both graphs compute the very same."""
    core, pre = (onnx_graph.load(colour_export.folder / f"{name}.onnx") for name in ("core", "pre"))
    front = straight(core, pre, colour_data.mean, colour_data.std)
    assert front is not None
    onnx_graph.save(front.core, tmp_path / "core.onnx")
    frames = load_frames(colour_data, "train")[:40]
    readers = batch_readers(PIXELS, front.feed(frames))
    int8 = quantized(prepared(tmp_path / "core.onnx", readers, known=front.ranges), Recipe())
    bare = front.behind(int8)
    assert [node.op_type for node in int8.graph.node if PIXELS in node.input] == ["QuantizeLinear"]
    assert [node.op_type for node in bare.graph.node if PIXELS in node.input] == ["Conv"]
    for model in (int8, bare):
        onnx.checker.check_model(model, full_check=True)
    one, other = (run(onnx_graph.joined(front.pre, model), frames) for model in (int8, bare))
    np.testing.assert_array_equal(one, other)
    # another step, e.g. of a network that was made otherwise: nothing is removed
    step = next(tensor for tensor in int8.graph.initializer if tensor.name == f"{PIXELS}_scale")
    step.CopyFrom(numpy_helper.from_array(np.array(2 * STEP, np.float32), step.name))
    assert without_quantizer(int8, front.zero or 0) == int8


def test_a_colour_network_takes_frames_as_they_are(
    colour_quantize: QuantizeResult, colour_export: ExportResult, tmp_path: Path
) -> None:
    """In both runtimes every convolution is INT8, and nothing comes before the first."""
    file = colour_quantize.folder / colour_quantize.model
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    assert onnx.load(tmp_path / "optimized.onnx").graph.node[0].op_type == "QLinearConv"
    counts = fused(file)
    for sentence in counts.values():
        int8, total = (int(word) for word in sentence.split(" convolutions")[0].split(" of "))
        assert int8 == total > 0
    assert colour_quantize.passed
    core = onnx_graph.load(colour_quantize.folder / colour_quantize.core)
    assert onnx_graph.input_names(core) == ["frames"]
    assert onnx_graph.output_names(core) == ["logits", "embedding"]


def test_the_numbers_are_those_of_the_shipped_file(colour_quantize: QuantizeResult, colour_data: DataResult) -> None:
    truth = np.load(colour_data.folder / "val.truth.npy")
    model = onnx_graph.load(colour_quantize.folder / colour_quantize.model)
    answers = run(model, np.array(load_frames(colour_data, "val"))).argmax(axis=1)
    assert colour_quantize.val_int8["onnxruntime"] == pytest.approx(float((answers == truth).mean()))


def test_grey_pictures_are_normalized_as_fp32_has_them(small_data: DataResult, small_export: ExportResult) -> None:
    front = quantize._front(small_data, small_export)
    assert front.zero is None
    assert front.ranges == {}
    assert front.behind(front.core) is front.core
    assert front.pre == onnx_graph.load(small_export.folder / small_export.pre)
