"""Parts of a graph: the head (what the last layers do) and the tail (what comes after them)."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def heavy_nodes(model: ModelProto) -> list[NodeProto]:
    """Convolutions and matrix products, in the graph's order."""
    return [node for node in model.graph.node if node.op_type in HEAVY]


def tail(model: ModelProto) -> frozenset[str]:
    """Names of the nodes after the last convolution or matrix product on every way to an output.

    Walking back from the outputs to the first of those finds them: box decoding, softmax, concatenation of heads.
    """
    feeds_heavy = _feeding_heavy(model)
    return frozenset(
        node.name for node in model.graph.node if node.op_type not in HEAVY and node.name not in feeds_heavy
    )


def head(model: ModelProto) -> frozenset[str]:
    """The tail, and the last convolutions or matrix products themselves."""
    feeds_heavy = _feeding_heavy(model)
    last = {node.name for node in heavy_nodes(model) if node.name not in feeds_heavy}
    return tail(model) | last


def _feeding_heavy(model: ModelProto) -> set[str]:
    """Names of the nodes some convolution or matrix product depends on."""
    wanted: set[str] = set()
    names: set[str] = set()
    for node in reversed(model.graph.node):  # ONNX graphs are in topological order
        if wanted & set(node.output):
            names.add(node.name)
            wanted.update(node.input)
        elif node.op_type in HEAVY:
            wanted.update(node.input)
    return names
