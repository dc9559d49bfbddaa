"""A QDQ network of ONNX in torch, its quantization as differentiable noise: what quantization-aware training trains.

It is read from the very file that ships, so the quantizers sit where the runtimes fuse them, for any network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from edge_demo.errors import Error

QUANTIZED = "_quantized"  # ONNX Runtime's suffix for an initializer that holds a tensor of the FP32 network
INT8_MAX, INT7_MAX = 127, 64
TINY = 1e-12  # a channel of zeros has a step all the same


class QdqNetwork(nn.Module):
    """The network with FP32 weights and biases as parameters, and the step of every activation as another.

    Zero points stay: where a ReLU was fused into a quantizer, the zero point is what clips at zero.
    Sources: straight-through rounding, Bengio et al. 2013, arXiv:1308.3432; learned steps, Esser et al. 2020,
    arXiv:1902.08153.

    Args:
        int8: What `stages.quantize.recipes.quantized` made.
        fp32: The network it was made from: weights start from there, before their rounding.
        weight_max: Largest weight level: 127, or 64 where the range is reduced.

    Raises:
        Error: an operator this reader does not know.
    """

    def __init__(self, int8: ModelProto, fp32: ModelProto, weight_max: int = INT8_MAX) -> None:
        super().__init__()
        self.nodes, self.weight_max = list(int8.graph.node), weight_max
        self.feed, self.outputs = int8.graph.input[0].name, [value.name for value in int8.graph.output]
        self.constants = _constants(int8)
        floats = _constants(fp32)
        self.weights, self.steps = nn.ParameterDict(), nn.ParameterDict()
        for node in self.nodes:
            if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                self.weights[_key(node.input[0])] = nn.Parameter(self._start(node, floats))
            elif node.op_type == "QuantizeLinear":
                # The logarithm: a step must stay positive, and steps differ by orders of magnitude.
                start = self.constants[node.input[1]].float().log()
                # What a picture's bytes mean is not to be learnt.
                self.steps[_key(node.input[1])] = nn.Parameter(start, requires_grad=node.input[0] != self.feed)
            elif node.op_type not in OPERATORS and node.op_type != "DequantizeLinear":
                raise Error(f"fine-tuning: operator {node.op_type} of {node.name or 'a node'} is not supported")

    def forward(self, batch: Tensor) -> list[Tensor]:
        """float32 NCHW -> the network's outputs, in order, as INT8 would give them."""
        values: dict[str, Tensor] = {**self.constants, self.feed: batch}
        for node in self.nodes:
            if node.op_type == "QuantizeLinear":
                values[node.output[0]] = self._activation(node, values[node.input[0]])
            elif node.op_type == "DequantizeLinear":
                values[node.output[0]] = self._dequantized(node, values)
            else:
                operands = [values[name] if name else None for name in node.input]
                values[node.output[0]] = OPERATORS[node.op_type](operands, _attributes(node))
        return [values[name] for name in self.outputs]

    def _start(self, node: NodeProto, floats: Mapping[str, Tensor]) -> Tensor:
        """A weight as FP32 has it; a bias as INT8 has it, because it may have been corrected."""
        levels, name = self.constants[node.input[0]], node.input[0].removesuffix(QUANTIZED)
        if levels.dtype == torch.int32:
            return (levels.double() * self.constants[node.input[1]].double()).float()
        if name not in floats:
            raise Error(f"fine-tuning: {name} is not in the FP32 network")
        return floats[name].clone()

    def weight(self, node: NodeProto) -> Tensor:
        """The FP32 weight or bias behind a DequantizeLinear node."""
        weight: Tensor = self.weights[_key(node.input[0])]
        return weight

    def weight_step(self, node: NodeProto) -> Tensor:
        """Step of a quantized weight, per channel or one: its largest value over the largest level."""
        weight = self.weight(node).detach()
        if self.constants[node.input[1]].dim() == 0:
            return weight.abs().max().clamp_min(TINY) / self.weight_max
        others = [dim for dim in range(weight.dim()) if dim != _axis(node) % weight.dim()]
        return weight.abs().amax(dim=others).clamp_min(TINY) / self.weight_max

    def weight_levels(self, node: NodeProto) -> Tensor:
        """The weight in steps, not yet rounded."""
        weight, step = self.weight(node), self.weight_step(node)
        return (weight / _along(step, node, weight)).clamp(-self.weight_max, self.weight_max)

    def step(self, node: NodeProto) -> Tensor:
        """Step of the activation a QuantizeLinear node rounds."""
        step: Tensor = self.steps[_key(node.input[1])].exp()
        return step

    def _activation(self, node: NodeProto, x: Tensor) -> Tensor:
        step, zero = self.step(node), self.constants[node.input[2]].float()
        return (_rounded((x / step + zero).clamp(0, 255)) - zero) * step

    def _dequantized(self, node: NodeProto, values: Mapping[str, Tensor]) -> Tensor:
        if node.input[0] not in self.constants:
            return values[node.input[0]]  # an activation: its quantizer has done it all
        if self.constants[node.input[0]].dtype != torch.int8:
            return self.weight(node)  # a bias: 32 bits are as good as float
        return _rounded(self.weight_levels(node)) * _along(self.weight_step(node), node, self.weight(node))


def _axis(node: NodeProto) -> int:
    return int(_attributes(node).get("axis", 1))


def _along(step: Tensor, node: NodeProto, weight: Tensor) -> Tensor:
    """Steps per channel, shaped to divide the weight."""
    if not step.dim():
        return step
    axis = _axis(node) % weight.dim()
    return step.view([-1 if dim == axis else 1 for dim in range(weight.dim())])


def _rounded(x: Tensor) -> Tensor:
    """Rounded, with the gradient of the identity."""
    return x + (x.round() - x).detach()


def _key(name: str) -> str:
    return name.replace(".", "/")  # ParameterDict takes no dots


def _constants(model: ModelProto) -> dict[str, Tensor]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


Operands = list[Any]
Attributes = dict[str, Any]


def _padded(x: Tensor, attributes: Attributes, fill: float) -> Tensor:
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Error("fine-tuning: automatic padding is not supported")
    pads = list(attributes.get("pads", []))
    half = len(pads) // 2
    sides = [side for axis in reversed(range(half)) for side in (pads[axis], pads[axis + half])]
    return F.pad(x, sides, value=fill) if any(sides) else x


def _conv(operands: Operands, attributes: Attributes) -> Tensor:
    x, weight, *bias = operands
    return F.conv2d(
        _padded(x, attributes, 0.0),
        weight,
        bias[0] if bias else None,
        stride=attributes.get("strides", [1, 1]),
        dilation=attributes.get("dilations", [1, 1]),
        groups=attributes.get("group", 1),
    )


def _gemm(operands: Operands, attributes: Attributes) -> Tensor:
    a, b, *c = operands
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    return product + attributes.get("beta", 1.0) * c[0] if c else product


def _max_pool(operands: Operands, attributes: Attributes) -> Tensor:
    x = _padded(operands[0], attributes, -math.inf)
    kernel = attributes["kernel_shape"]
    return F.max_pool2d(x, kernel, attributes.get("strides", kernel), ceil_mode=bool(attributes.get("ceil_mode", 0)))


def _average_pool(operands: Operands, attributes: Attributes) -> Tensor:
    if any(attributes.get("pads", [])):
        raise Error("fine-tuning: average pooling with padding is not supported")
    kernel = attributes["kernel_shape"]
    return F.avg_pool2d(operands[0], kernel, attributes.get("strides", kernel))


def _axes(operands: Operands, attributes: Attributes) -> list[int]:
    given = operands[1].tolist() if len(operands) > 1 and operands[1] is not None else attributes.get("axes")
    return list(given) if given is not None else list(range(operands[0].dim()))


def _reduce(function: Callable[..., Tensor]) -> Callable[[Operands, Attributes], Tensor]:
    return lambda operands, attributes: function(
        operands[0], dim=_axes(operands, attributes), keepdim=bool(attributes.get("keepdims", 1))
    )


def _reshape(operands: Operands, attributes: Attributes) -> Tensor:
    x, shape = operands[0], operands[1].tolist()
    shaped: Tensor = x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])
    return shaped


def _clip(operands: Operands, attributes: Attributes) -> Tensor:
    low, high, *_ = (*operands[1:], None, None)
    return torch.clamp(operands[0], low, high)


def _hard_sigmoid(operands: Operands, attributes: Attributes) -> Tensor:
    slope: Tensor = attributes.get("alpha", 0.2) * operands[0] + attributes.get("beta", 0.5)
    return slope.clamp(0, 1)


OPERATORS: dict[str, Callable[[Operands, Attributes], Tensor]] = {
    "Add": lambda operands, attributes: operands[0] + operands[1],
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Concat": lambda operands, attributes: torch.cat(operands, dim=attributes["axis"]),
    "Constant": lambda operands, attributes: torch.from_numpy(np.array(numpy_helper.to_array(attributes["value"]))),
    "Conv": _conv,
    "Div": lambda operands, attributes: operands[0] / operands[1],
    "Flatten": lambda operands, attributes: operands[0].flatten(attributes.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda operands, attributes: operands[0].mean(dim=(2, 3), keepdim=True),
    "GlobalMaxPool": lambda operands, attributes: operands[0].amax(dim=(2, 3), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda operands, attributes: F.hardswish(operands[0]),
    "Identity": lambda operands, attributes: operands[0],
    "MatMul": lambda operands, attributes: operands[0] @ operands[1],
    "MaxPool": _max_pool,
    "Mul": lambda operands, attributes: operands[0] * operands[1],
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "Relu": lambda operands, attributes: torch.relu(operands[0]),
    "Reshape": _reshape,
    "Sigmoid": lambda operands, attributes: torch.sigmoid(operands[0]),
    "Softmax": lambda operands, attributes: torch.softmax(operands[0], dim=attributes.get("axis", -1)),
    "Sub": lambda operands, attributes: operands[0] - operands[1],
    "Transpose": lambda operands, attributes: operands[0].permute(*attributes["perm"]),
}
