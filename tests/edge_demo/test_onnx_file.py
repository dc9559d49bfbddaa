from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_demo.onnx_file import OnnxFile, Value, inspect

onnx = pytest.importorskip("onnx")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


def external(name, location):
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), name)
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    return tensor


def model_of(nodes, initializers=(), **options):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, ["N", 4])], [value("y", FLOAT, None)], initializers)
    return helper.make_model(graph, **options)


def field(number, content):
    """One length-delimited protobuf field."""
    out, length = bytearray([number << 3 | 2]), len(content)
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(out) + bytes([length]) + content


def test_inspect_reads_what_onnx_wrote(make_tiny_model):
    told = inspect(make_tiny_model().onnx(metadata={"task": "classify", "name": "Käfer"}))
    assert told == OnnxFile(
        inputs=(Value("frames", "uint8", (-1, 8, 10, 3)),),
        outputs=(Value("scores", "float32", (-1, 4)), Value("embedding", "float32", (-1, 5))),
        opset=20,
        metadata={"task": "classify", "name": "Käfer"},
        external=(),
    )


def test_opset_of_the_default_domain_only():
    model = model_of([], opset_imports=[helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("", 17)])
    assert inspect(model.SerializeToString()).opset == 17


def test_external_data_is_found_wherever_it_hides():
    branch = helper.make_graph([], "then", [], [], [external("w", "in_branch.bin")])
    sparse = onnx.SparseTensorProto(values=external("v", "in_sparse.bin"), dims=[4])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=external("c", "in_constant.bin")),
        helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
    ]
    model = model_of(nodes, [external("w", "in_initializer.bin")])
    model.functions.append(
        helper.make_function(
            "local",
            "F",
            [],
            ["o"],
            [helper.make_node("Constant", [], ["o"], value=external("o", "in_function.bin"))],
            [],
        )
    )
    assert set(inspect(model.SerializeToString()).external) == {
        "in_branch.bin",
        "in_sparse.bin",
        "in_constant.bin",
        "in_initializer.bin",
        "in_function.bin",
    }


def test_endless_nesting_is_refused():
    # Written by hand, since protobuf itself refuses to: graph -> node (1) -> attribute (5) -> graph (6) -> ...
    graph = b""
    for depth in range(2000):
        for number in (6, 5, 1):
            graph = field(number, graph)
        if depth == 20:
            inspect(field(7, graph))
    with pytest.raises(ValueError, match="nested too deeply"):
        inspect(field(7, graph))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_model_or_a_value_error(data):
    try:
        inspect(data)
    except ValueError:
        return


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_model_is_a_model_or_a_value_error(make_tiny_model, data):
    model = bytearray(make_tiny_model().onnx())
    start = data.draw(st.integers(0, len(model) - 1))
    model[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        inspect(bytes(model))
    except ValueError:
        return
