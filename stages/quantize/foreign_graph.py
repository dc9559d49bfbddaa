"""Anyone's ONNX graph, brought into a form that can be quantized, and proven to compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper, version_converter

from edge_demo.errors import Error, InputError
from stages import onnx_graph

OLDEST = 13  # QuantizeLinear per channel begins there
CONVERTED = 17
OLDEST_IR = 8
QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}


def readable(path: Path) -> ModelProto:
    """The model of a file that holds all its weights.

    Raises:
        InputError: no model, quantized already, weights in other files, or weights that are NaN or infinite.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such model file", "check the path")
    model = onnx_graph.load(path)
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise InputError(f"{path.name}: {tensor.name} is kept in another file", "save it as one file first")
        if tensor.data_type == TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise InputError(f"{path.name}: {tensor.name} holds NaN or infinity", "is the model whole?")
    _refuse_quantized(model, path.name)
    return model


def _refuse_quantized(model: ModelProto, name: str) -> None:
    """A second rounding on top of the first helps nobody; signed activations, a usual fault, are named."""
    if not QUANTIZED & set(onnx_graph.operators(model)):
        return
    kinds = {tensor.name: tensor.data_type for tensor in _tensors(model)}
    rounding = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "QLinearConv")]
    activations = [node for node in rounding if node.input[0] not in kinds and len(node.input) > 2]
    signed = TensorProto.INT8 in {kinds.get(node.input[2]) for node in activations}
    why = ": its activations are signed (S8S8), which leaves convolutions in float on x86" if signed else ""
    raise InputError(f"{name}: is quantized already{why}", "give the FP32 model that it was made from")


def normalized(model: ModelProto, name: str) -> tuple[ModelProto, list[str]]:
    """The same network as the quantizer wants it, and what had to be changed, in sentences.

    Weights become initializers (not Constant nodes, not inputs), and the operator set one that knows per-channel
    quantization.

    Raises:
        Error: the operator set cannot be converted.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    notes: list[str] = []
    constants = _constants_to_initializers(changed)
    if constants:
        notes.append(f"{constants} weights were Constant nodes")
    weights = {tensor.name for tensor in changed.graph.initializer}
    inputs = [value for value in changed.graph.input if value.name not in weights]
    if len(inputs) < len(changed.graph.input):
        notes.append(f"{len(changed.graph.input) - len(inputs)} weights were listed as inputs")
        del changed.graph.input[:]
        changed.graph.input.extend(inputs)
    changed.ir_version = max(changed.ir_version, OLDEST_IR)
    before = onnx_graph.opset(changed)
    if before < OLDEST:
        try:
            changed = version_converter.convert_version(changed, CONVERTED)
        except Exception as error:  # a C++ exception of whatever adapter is missing
            detail = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise Error(f"{name}: opset {before} cannot be converted to {CONVERTED}: {detail}") from error
        notes.append(f"opset {before} was converted to {CONVERTED}")
    if any(not value.type.tensor_type.HasField("shape") for value in changed.graph.output):
        changed = onnx.shape_inference.infer_shapes(changed)
        notes.append("shapes of outputs were not declared")
    return onnx_graph.clean(changed), notes


def _constants_to_initializers(model: ModelProto) -> int:
    kept, weights = [], 0
    for node in model.graph.node:
        value = next((item for item in node.attribute if item.name == "value"), None)
        if node.op_type != "Constant" or value is None:
            kept.append(node)
            continue
        tensor = value.t
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        weights += tensor.data_type == TensorProto.FLOAT
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return weights


def _tensors(model: ModelProto) -> list[TensorProto]:
    inline = [item.t for node in model.graph.node for item in node.attribute if item.type == onnx.AttributeProto.TENSOR]
    return [*model.graph.initializer, *inline]
