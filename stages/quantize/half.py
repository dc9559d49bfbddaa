"""Weights stored in 16 bits: half the file, the same arithmetic."""

from __future__ import annotations

import copy

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_demo.errors import Error

SMALLEST = 64  # values; below it the Cast node takes more room than it saves
HALVED = 0.6  # of the FP32 file: what counts as half, the graph itself taken into account


def halved(model: ModelProto) -> ModelProto:
    """A copy with float16 weights, each cast back to float32 before use; runtimes do that once, when they load it.

    Raises:
        Error: a weight float16 cannot hold.
    """
    made = copy.deepcopy(model)
    casts = []
    for tensor in made.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALLEST:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise Error(f"{tensor.name}: values up to {np.abs(values).max():.3g} do not fit into float16")
        name, stored = tensor.name, f"{tensor.name}_float16"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], f"{name}_to_float32", to=TensorProto.FLOAT))
    nodes = [*casts, *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made
