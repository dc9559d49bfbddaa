"""How frames get into an INT8 network: colour frames as they are, with the normalization in the first convolution.

A frame is uint8 already. Normalizing it in float, and rounding it to 8 bits again, costs more than the first
convolution in ONNX Runtime (44 of 292 microseconds of a residual network on 32x32 pictures, of 300 calls the medians)
and says no more: order of colours, scale and mean are linear, so they go into that convolution's weights, and the
frame's own bytes are its quantized input. Grey pictures are normalized in float: luma in the first convolution triples
its work, which cost OpenVINO 7 % of a residual network where ONNX Runtime gained 12 %.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from stages import onnx_graph
from stages.arrays import to_bgr

PIXELS = "pixels"
STEP = 2.0**-6
"""Of the quantized input, per level of a pixel. Not 1: OpenVINO would drop the multiplication by it, no longer see a
quantized input, and compute the first convolution in float."""

Kernel = NDArray[np.float64]
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
    """The same network with order of colours, scale and mean in its first convolution; None where that is not first.

    Args:
        core: float32 NCHW normalized RGB batch -> raw outputs; stays as it is.
        pre: The graph that normalizes, for its input, opset and IR version.
        mean: Of R, G, B, on the 0..1 scale.
        std: Likewise.
    """
    first = _first_convolution(core)
    if first is None:
        return None
    zero = int(np.clip(np.rint(255 * np.mean(mean)), 0, 254))
    folded = copy.deepcopy(core)
    tensors = {tensor.name: tensor for tensor in folded.graph.initializer}
    kernel = numpy_helper.to_array(tensors[first.input[1]]).astype(np.float64)
    kernel, level = _with_pixels(kernel, zero, np.asarray(mean), np.asarray(std))
    folded.graph.initializer.append(numpy_helper.from_array(kernel.astype(np.float32), f"{PIXELS}.weight"))
    (node,) = (node for node in folded.graph.node if first.input[0] in node.input)
    node.input[:] = [PIXELS, f"{PIXELS}.weight", *first.input[2:]]
    folded.graph.input[0].name = PIXELS
    folded.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    _drop_unused(folded)

    def feed(frames: Frames) -> Batch:
        four = np.pad(to_bgr(frames), ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=level)
        return (np.moveaxis(four, 3, 1).astype(np.float32) - zero) * np.float32(STEP)

    return Front(folded, feed, _pixels_graph(pre, folded, zero, level), zero)


def _first_convolution(core: ModelProto) -> NodeProto | None:
    """The only reader of the network's only input, where that is a plain convolution with constant weights."""
    (name,) = onnx_graph.input_names(core)
    readers = [node for node in core.graph.node if name in node.input]
    constants = {tensor.name for tensor in core.graph.initializer}
    if len(readers) != 1 or readers[0].op_type != "Conv" or not set(readers[0].input[1:]) <= constants:
        return None
    groups = next((attribute.i for attribute in readers[0].attribute if attribute.name == "group"), 1)
    return readers[0] if groups == 1 else None


def _with_pixels(kernel: Kernel, zero: int, mean: Kernel, std: Kernel) -> tuple[Kernel, int]:
    """Kernel (O, RGB, h, w) for a normalized batch -> (O, BGR1, h, w) for pixels, and the level of the fourth channel.

    k . (p / 255 - mean) / std = k / (255 std STEP) . (p - zero) STEP + k / (255 std) . (zero - 255 mean)

    The second term is the same for all pixels of a picture, but not for the padding around it, which is 0. So it does
    not go into the bias but to a fourth channel, which is constant inside of the picture. That constant is as small as
    keeps the channel's weights no larger than the others, for they share a step in INT8.
    """
    scaled = kernel / (255 * std[:, np.newaxis, np.newaxis])
    shift = zero - 255 * mean
    level = min(255, zero + max(1, math.ceil(np.abs(shift).max())))
    constant = (scaled * shift[:, np.newaxis, np.newaxis]).sum(axis=1, keepdims=True) / (level - zero)
    return np.concatenate([scaled[:, ::-1], constant], axis=1) / STEP, level


def _pixels_graph(pre: ModelProto, core: ModelProto, zero: int, level: int) -> ModelProto:
    """uint8 NHWC `frames` -> `pixels`: a fourth channel, and else a reinterpretation, which both runtimes fold away.

    In this order: with the transposition first, OpenVINO computes the first convolution in float.
    """
    nodes = [
        helper.make_node("Pad", ["frames", "pads", "level"], ["four"], "fourth_channel"),
        helper.make_node("DequantizeLinear", ["four", "step", "zero"], ["nhwc"], "minus_zero"),
        helper.make_node("Transpose", ["nhwc"], [PIXELS], "nhwc_to_nchw", perm=[0, 3, 1, 2]),
    ]
    values: dict[str, NDArray[Any]] = {
        "pads": np.array([0, 0, 0, 0, 0, 0, 0, 1], np.int64),
        "level": np.array(level, np.uint8),
        "step": np.array(STEP, np.float32),
        "zero": np.array(zero, np.uint8),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in values.items()]
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
