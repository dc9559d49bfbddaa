"""Bias correction: what INT8 shifts the mean of a channel by is added back to that channel's bias.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D (empirical form): layer by layer in the order of
the graph, each measured with all earlier ones already corrected.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from stages.quantize.probe import probed
from stages.quantize.regions import heavy_nodes

IMAGES = 64  # the mean of a channel over 64 images and all its pixels is known well below one INT8 step


def corrected(int8: ModelProto, fp32: ModelProto, batch: NDArray[np.float32]) -> ModelProto:
    """A copy of the INT8 network with corrected int32 biases; the FP32 one is what it was made from.

    Args:
        int8: QDQ; layers without a quantized bias of their own stay as they are.
        fp32: With the same node names.
        batch: Calibration images, float32 NCHW; the first ones are used.
    """
    model, images = copy.deepcopy(int8), batch[:IMAGES]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantizers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    originals = {node.name: node for node in heavy_nodes(fp32)}
    layers = [node for node in heavy_nodes(model) if _has_int32_bias(node, tensors, dequantizers)]
    wanted = _channel_means(fp32, [originals[node.name].output[0] for node in layers], images)
    for layer, want in zip(layers, wanted, strict=True):
        (got,) = _channel_means(model, [layer.output[0]], images)
        dequantizer = dequantizers[layer.input[2]]
        bias, scale = tensors[dequantizer.input[0]], numpy_helper.to_array(tensors[dequantizer.input[1]])
        steps = np.rint((want - got) / scale)
        if np.isfinite(steps).all():
            limits = np.iinfo(np.int32)
            moved = np.clip(numpy_helper.to_array(bias) + steps, limits.min, limits.max).astype(np.int32)
            bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
    return model


def _has_int32_bias(layer: NodeProto, tensors: dict[str, TensorProto], dequantizers: dict[str, NodeProto]) -> bool:
    if layer.op_type == "MatMul" or len(layer.input) < 3:
        return False
    dequantizer = dequantizers.get(layer.input[2])
    if dequantizer is None or dequantizer.input[0] not in tensors:
        return False
    bias = tensors[dequantizer.input[0]]
    return bool(bias.data_type == TensorProto.INT32 and len(bias.dims) == 1)


def _channel_means(model: ModelProto, names: Sequence[str], images: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """Mean over images and places of every channel (axis 1) of the named float tensors."""
    count, sums = 0, [np.zeros(1) for _ in names]
    for arrays in probed(model, names, images):
        count += len(arrays[0])
        for index, array in enumerate(arrays):
            channels = np.moveaxis(array, 1, 0).reshape(array.shape[1], len(array), -1)
            sums[index] = sums[index] + channels.mean(axis=2, dtype=np.float64).sum(axis=1)
    return [total / count for total in sums]
