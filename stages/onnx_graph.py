"""ONNX graphs as data: read, clean, check, compose, save. The same model gives the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, compose

from edge_demo.errors import Error, InputError

RAW = "raw."
"""What the post graph's inputs are called: `raw.logits`, so that it can pass a name through to its output."""


def load(path: Path) -> ModelProto:
    """Read one self-contained ONNX file.

    Raises:
        InputError: no such file, not an ONNX model, or an empty one.
    """
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror})", "type: pipeline export") from error
    except Exception as error:  # protobuf raises its own DecodeError, not a documented type
        raise InputError(f"{path.name}: not an ONNX model", "type: pipeline export") from error
    if not model.graph.node:
        raise InputError(f"{path.name}: an ONNX model without a single node", "type: pipeline export")
    return model


def save(model: ModelProto, path: Path) -> int:
    """Check the model in full and write it; the same model gives the same bytes. Returns the size in bytes.

    Raises:
        Error: the checker refused it.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Error(f"{path.name}: not a valid ONNX graph: {str(error).splitlines()[0]}") from error
    return path.write_bytes(model.SerializeToString(deterministic=True))


def clean(model: ModelProto) -> ModelProto:
    """Remove, in place, what is not the model: notes, metadata and unused opset imports. Returns the same model.

    The exporter writes the training machine's source paths into every node (`pkg.torch.onnx.stack_trace`), and ONNX
    Runtime's pre-processing imports opsets nothing uses, which an older runtime may not know.
    """
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in _graphs(model):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            item.doc_string = ""
            del item.metadata_props[:]
    used = {node.domain for graph in _graphs(model) for node in graph.node} | {""}
    used |= {node.domain for function in model.functions for node in function.node}
    # A set: merging three graphs leaves the same import three times.
    kept = sorted({(imported.domain, imported.version) for imported in model.opset_import if imported.domain in used})
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in kept)
    return model


def opset(model: ModelProto) -> int:
    """Version of the default operator set the model asks for."""
    return max((imported.version for imported in model.opset_import if imported.domain == ""), default=0)


def operators(model: ModelProto) -> Counter[str]:
    """Operator type -> number of nodes, subgraphs included."""
    return Counter(node.op_type for graph in _graphs(model) for node in graph.node)


def input_names(model: ModelProto) -> list[str]:
    """Names of the graph inputs, in order."""
    return [value.name for value in model.graph.input]


def output_names(model: ModelProto) -> list[str]:
    """Names of the graph outputs, in order."""
    return [value.name for value in model.graph.output]


def with_metadata(model: ModelProto, metadata: Mapping[str, str]) -> ModelProto:
    """Set the model's metadata, in place, in a fixed order. Returns the same model."""
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    return model


def joined(pre: ModelProto, core: ModelProto) -> ModelProto:
    """`frames` -> pre -> core -> its raw outputs, under their names.

    Raises:
        Error: the parts do not fit.
    """
    parts = (
        compose.add_prefix(pre, "pre/", rename_inputs=False),
        compose.add_prefix(core, "core/", rename_outputs=False),
    )
    for part in parts:
        del part.graph.value_info[:]
    try:
        model = compose.merge_models(*parts, io_map=[(f"pre/{output_names(pre)[0]}", f"core/{input_names(core)[0]}")])
    except ValueError as error:
        raise Error(f"the graph's parts do not fit together: {error}") from error
    return clean(model)


def composed(
    pre: ModelProto, core: ModelProto, post: ModelProto, outputs: Sequence[str], metadata: Mapping[str, str]
) -> ModelProto:
    """One graph out of three: `frames` -> pre -> core -> post -> `outputs`.

    Args:
        pre: `frames` -> the core's only input.
        core: the bare network, FP32 or INT8.
        post: `raw.<name>` of every core output -> the final outputs.
        outputs: Names the composed graph must have, in order.
        metadata: Written into the file's `metadata_props`; everything else there is dropped.

    Raises:
        Error: the parts do not fit (names, opset, IR version), or the composed graph does not have `outputs`.
    """
    parts = (
        compose.add_prefix(pre, "pre/", rename_inputs=False),
        compose.add_prefix(core, "core/"),
        compose.add_prefix(post, "post/", rename_outputs=False),
    )
    for part in parts:
        # Types of inner tensors are inferred again by the checker; those of the parts would clash on names.
        del part.graph.value_info[:]
    batch_map = [(f"pre/{output_names(pre)[0]}", f"core/{input_names(core)[0]}")]
    raw_map = [(f"core/{name}", f"post/{RAW}{name}") for name in output_names(core)]
    try:
        front = compose.merge_models(parts[0], parts[1], io_map=batch_map)
        model = compose.merge_models(front, parts[2], io_map=raw_map, name="deployed", producer_name="train-to-edge")
    except ValueError as error:
        raise Error(f"the graph's parts do not fit together: {error}") from error
    if output_names(model) != list(outputs):
        raise Error(f"the composed graph returns {output_names(model)}, the task needs {list(outputs)}")
    return with_metadata(clean(model), metadata)


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The model's graph and every graph nested in a node of it (If, Loop, Scan)."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting.extend(inner for node in graph.node for inner in _inner_graphs(node))


def _inner_graphs(node: NodeProto) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
