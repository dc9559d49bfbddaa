"""How frames get into an INT8 network: colour frames as they are, with the normalization in the first convolution.

A frame is uint8 already. Normalizing it in float, and rounding it to 8 bits again, costs more than the first
convolution in ONNX Runtime (44 of 292 microseconds of a residual network on 32x32 pictures, of 300 calls the medians)
and says no more: order of colours and scale go into that convolution's weights, the one mean of all three colours (see
`stages.data.prepare.normalization`) is its zero point, and the frame's own bytes are its quantized input. Grey pictures
are normalized in float: luma in the first convolution triples its work, which cost OpenVINO 7 % of a residual network
where ONNX Runtime gained 12 %.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from stages import onnx_graph
from stages.arrays import to_bgr

PIXELS = "pixels"
STEP = 2.0**-6
"""Of the quantized input, per level of a pixel. Not 1: OpenVINO would drop the multiplication by it, no longer see a
quantized input, and compute the first convolution in float."""

Frames = NDArray[np.uint8]
Batch = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Front:
    """A network to quantize, what it is fed while that is done, and the graph that feeds it afterwards."""

    core: ModelProto
    """FP32."""
    feed: Callable[[Frames], Batch]
    """uint8 NHWC frames -> what `core` takes, float32 NCHW."""
    pre: ModelProto
    """The same as a graph, `frames` in."""
    zero: int | None = None
    """Level of a pixel that counts as 0; None: the network takes a normalized batch."""

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Input -> its range, where that does not depend on the calibration images."""
        return {} if self.zero is None else {PIXELS: (-self.zero * STEP, (255 - self.zero) * STEP)}

    def behind(self, int8: ModelProto) -> ModelProto:
        """A network made from `core`, as it goes behind `pre`."""
        return int8 if self.zero is None else without_quantizer(int8, self.zero)


def straight(core: ModelProto, pre: ModelProto, mean: Sequence[float], std: Sequence[float]) -> Front | None:
    """The same network with order of colours and scale in its first convolution, and the mean as its zero point.

    None where no convolution is first, or where the mean is not one level of a byte for all colours: a picture is
    padded with 0 after normalization, which is then no byte.

    Args:
        core: float32 NCHW normalized RGB batch -> raw outputs; stays as it is.
        pre: The graph that normalizes, for its input, opset and IR version.
        mean: Of R, G, B, on the 0..1 scale.
        std: Likewise.
    """
    first, zero = _first_convolution(core), round(255 * mean[0])
    if first is None or not np.allclose(255 * np.asarray(mean), zero, rtol=0, atol=1e-6):
        return None
    folded = copy.deepcopy(core)
    tensors = {tensor.name: tensor for tensor in folded.graph.initializer}
    kernel = numpy_helper.to_array(tensors[first.input[1]]).astype(np.float64)
    # k . (p / 255 - mean) / std = k / (255 std STEP) . (p - zero) STEP
    pixels = (kernel / (255 * STEP * np.asarray(std)[:, np.newaxis, np.newaxis]))[:, ::-1]
    folded.graph.initializer.append(numpy_helper.from_array(pixels.astype(np.float32), f"{PIXELS}.weight"))
    (node,) = (node for node in folded.graph.node if first.input[0] in node.input)
    node.input[:] = [PIXELS, f"{PIXELS}.weight", *first.input[2:]]
    folded.graph.input[0].name = PIXELS
    _drop_unused(folded)

    def feed(frames: Frames) -> Batch:
        return (np.moveaxis(to_bgr(frames), 3, 1).astype(np.float32) - zero) * np.float32(STEP)

    return Front(folded, feed, _pixels_graph(pre, folded, zero), zero)


def _first_convolution(core: ModelProto) -> NodeProto | None:
    """The only reader of the network's only input, where that is a plain convolution with constant weights."""
    (name,) = onnx_graph.input_names(core)
    readers = [node for node in core.graph.node if name in node.input]
    constants = {tensor.name for tensor in core.graph.initializer}
    if len(readers) != 1 or readers[0].op_type != "Conv" or not set(readers[0].input[1:]) <= constants:
        return None
    groups = next((attribute.i for attribute in readers[0].attribute if attribute.name == "group"), 1)
    return readers[0] if groups == 1 else None


def _pixels_graph(pre: ModelProto, core: ModelProto, zero: int) -> ModelProto:
    """uint8 NHWC `frames` -> `pixels`: the same bytes read in another way, which both runtimes fold away.

    In this order: with the transposition first, OpenVINO computes the first convolution in float.
    """
    nodes = [
        helper.make_node("DequantizeLinear", ["frames", "step", "zero"], ["nhwc"], "minus_zero"),
        helper.make_node("Transpose", ["nhwc"], [PIXELS], "nhwc_to_nchw", perm=[0, 3, 1, 2]),
    ]
    tensors = [
        numpy_helper.from_array(np.array(STEP, np.float32), "step"),
        numpy_helper.from_array(np.array(zero, np.uint8), "zero"),
    ]
    graph = helper.make_graph(nodes, "pre", list(pre.graph.input), list(core.graph.input), tensors)
    opset = helper.make_opsetid("", onnx_graph.opset(pre))
    return helper.make_model(graph, opset_imports=[opset], ir_version=pre.ir_version)


def without_quantizer(int8: ModelProto, zero: int) -> ModelProto:
    """The INT8 network without the quantizer of its input, where that would give the frame's own bytes again."""
    core = copy.deepcopy(int8)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in core.graph.initializer}
    readers = [node for node in core.graph.node if PIXELS in node.input]
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        return core
    quantizer = readers[0]
    if not np.isclose(tensors[quantizer.input[1]], STEP, rtol=1e-5) or tensors[quantizer.input[2]] != zero:
        return core
    (dequantizer,) = (node for node in core.graph.node if quantizer.output[0] in node.input)
    for node in core.graph.node:
        node.input[:] = [PIXELS if name == dequantizer.output[0] else name for name in node.input]
    core.graph.node.remove(quantizer)
    core.graph.node.remove(dequantizer)
    _drop_unused(core)
    return core


def _drop_unused(model: ModelProto) -> None:
    """Remove initializers that no node reads, in place."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
