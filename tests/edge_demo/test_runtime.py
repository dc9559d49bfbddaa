from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_demo.errors import InputError
from edge_demo.runtime import RUNTIMES, open_runtime

HEIGHT, WIDTH = 8, 10


def frames(n, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (n, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(params=sorted(RUNTIMES))
def runtime_name(request):
    return request.param


@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_runtime_gives_numpys_answer_for_any_batch_size(runtime_name, make_tiny_model, n):
    model = make_tiny_model()
    runtime = open_runtime(runtime_name, model.onnx())
    got, want = runtime.infer({"frames": frames(n)}), model.reference(frames(n))
    assert set(got) == set(want)
    for name in want:
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)


def test_specs_tell_names_dtypes_and_dynamic_dimensions(runtime_name, make_tiny_model, tmp_path):
    file = tmp_path / "tiny.onnx"
    file.write_bytes(make_tiny_model().onnx())
    runtime = open_runtime(runtime_name, file)
    assert [(spec.name, spec.dtype, spec.shape) for spec in runtime.inputs] == [
        ("frames", np.dtype("uint8"), (-1, HEIGHT, WIDTH, 3))
    ]
    assert [(spec.name, spec.dtype, spec.shape) for spec in runtime.outputs] == [
        ("scores", np.dtype("float32"), (-1, 4)),
        ("embedding", np.dtype("float32"), (-1, 5)),
    ]


def test_infer_returns_arrays_that_a_later_run_leaves_alone(runtime_name, make_tiny_model):
    runtime = open_runtime(runtime_name, make_tiny_model().onnx())
    first = runtime.infer({"frames": frames(2, seed=1)})
    kept = {name: array.copy() for name, array in first.items()}
    runtime.infer({"frames": frames(2, seed=2)})
    for name in kept:
        np.testing.assert_array_equal(first[name], kept[name])


def test_infer_takes_read_only_and_strided_frames(runtime_name, make_tiny_model):
    model = make_tiny_model()
    wide = np.random.default_rng(3).integers(0, 256, (4, HEIGHT, WIDTH * 2, 3), np.uint8)
    view = wide[::2, :, ::2]
    view.setflags(write=False)
    got = open_runtime(runtime_name, model.onnx()).infer({"frames": view})
    np.testing.assert_allclose(got["scores"], model.reference(view)["scores"], atol=1e-5)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_bound_buffers_are_live(runtime_name, make_tiny_model, batch):
    model = make_tiny_model()
    runtime = open_runtime(runtime_name, model.onnx(), batch=batch)
    buffer = frames(3, seed=1)
    bound = runtime.bind({"frames": buffer})
    for seed in (4, 5, 6):
        buffer[:] = frames(3, seed)
        bound.run()
        for name, want in model.reference(buffer).items():
            np.testing.assert_allclose(bound.outputs[name], want, rtol=1e-4, atol=1e-5)
    assert runtime.infer({"frames": frames(2)})["scores"].shape == (2, 4)


def test_binding_a_strided_or_read_only_buffer_is_refused(runtime_name, make_tiny_model):
    runtime = open_runtime(runtime_name, make_tiny_model().onnx())
    strided = np.zeros((2, HEIGHT, WIDTH * 2, 3), np.uint8)[:, :, ::2]
    read_only = frames(2)
    read_only.setflags(write=False)
    for buffer in (strided, read_only):
        with pytest.raises(ValueError, match="C-contiguous, writeable"):
            runtime.bind({"frames": buffer})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"pictures": np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)}, "takes"),
        ({"frames": np.zeros((1, HEIGHT, WIDTH + 1, 3), np.uint8)}, r"\[1, 8, 11, 3\] given"),
        ({"frames": np.zeros((HEIGHT, WIDTH, 3), np.uint8)}, r"\[8, 10, 3\] given"),
        ({"frames": np.zeros((1, HEIGHT, WIDTH, 3), np.float32)}, "float32 .* given, the model takes uint8"),
    ],
)
def test_wrong_feeds_are_refused_in_the_same_words(runtime_name, make_tiny_model, feeds, message):
    runtime = open_runtime(runtime_name, make_tiny_model().onnx())
    with pytest.raises(InputError, match=message):
        runtime.infer(feeds)
    with pytest.raises(InputError, match=message):
        runtime.bind(feeds)


def test_effective_settings_are_read_back(runtime_name, make_tiny_model):
    runtime = open_runtime(runtime_name, make_tiny_model().onnx(), threads=1)
    assert runtime.effective["threads"] == 1
    assert runtime.effective["precision"] == "f32"
    assert runtime.effective["spinning"] is False
    assert runtime.effective["device"] == "CPU"
    assert runtime.effective["version"]
    assert list(runtime.effective["load_ms"]) == ["dynamic"]


def test_openvino_says_what_each_compile_cost(make_tiny_model):
    opened = open_runtime("openvino", make_tiny_model().onnx())
    opened.bind({"frames": frames(1)})
    assert list(opened.effective["load_ms"]) == ["dynamic", "frames 1x8x10x3"]
    fixed = open_runtime("openvino", make_tiny_model().onnx(), batch=1)
    fixed.bind({"frames": frames(1)})
    assert list(fixed.effective["load_ms"]) == ["frames 1x8x10x3"]


def test_onnxruntime_bind_learns_shapes_the_model_does_not_tell(tmp_path):
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("NonZero", ["x"], ["where"])],
        "nonzero",
        [value("x", onnx.TensorProto.FLOAT, ["N", 2])],
        [value("where", onnx.TensorProto.INT64, [2, "count"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    x = np.array([[1, 0], [0, 2], [3, 0]], np.float32)
    bound = open_runtime("onnxruntime", model.SerializeToString()).bind({"x": x})
    bound.run()
    np.testing.assert_array_equal(bound.outputs["where"], np.array(np.nonzero(x)))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_an_output_of_another_rank_than_its_file_says_is_bound_all_the_same(runtime_name, tmp_path, known):
    """`known`: the runtime sees the contradiction when it loads the file, else only when it runs the model."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    given = [helper.make_tensor_value_info("x", kind, [1, 3, 5] if known else [1, 15])]
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 3, 5) if known else (1, 15)).astype(np.float32)}
    if not known:
        given.append(helper.make_tensor_value_info("s", onnx.TensorProto.INT64, [3]))
        nodes[0] = helper.make_node("Relu", ["shaped"], ["y"])
        nodes.insert(0, helper.make_node("Reshape", ["x", "s"], ["shaped"]))
        feeds["s"] = np.array([1, 3, 5])
    told = [helper.make_tensor_value_info("y", kind, ["N", "length"]), helper.make_tensor_value_info("z", kind, None)]
    graph = helper.make_graph(nodes, "g", given, told)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    bound = open_runtime(runtime_name, tmp_path / "m.onnx").bind(feeds)
    for _ in range(3):
        feeds["x"] *= -1
        bound.run()
        assert np.array_equal(bound.outputs["y"], np.maximum(feeds["x"], 0).reshape(1, 3, 5))
        assert np.array_equal(bound.outputs["z"], -feeds["x"])


def test_a_scalar_input_has_no_batch(runtime_name, tmp_path):
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    given = [helper.make_tensor_value_info("x", kind, ["N", 4]), helper.make_tensor_value_info("rate", kind, [])]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "rate"], ["y"])],
        "g",
        given,
        [helper.make_tensor_value_info("y", kind, ["N", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    x = np.arange(4, dtype=np.float32)[None]
    bound = open_runtime(runtime_name, tmp_path / "m.onnx", batch=1).bind({"x": x, "rate": np.array(3, np.float32)})
    bound.run()
    assert np.array_equal(bound.outputs["y"], 3 * x)


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x00" * 64])
def test_no_model_is_one_line_naming_the_file(runtime_name, tmp_path, content, capfd):
    file = tmp_path / "broken.onnx"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.onnx") as caught:
        open_runtime(runtime_name, file)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_truncated_model_is_refused(runtime_name, make_tiny_model):
    data = make_tiny_model().onnx()
    with pytest.raises(InputError, match="not an ONNX model"):
        open_runtime(runtime_name, data[: len(data) // 2])


def test_missing_file_is_refused(runtime_name, tmp_path):
    with pytest.raises(InputError, match="no such model file"):
        open_runtime(runtime_name, tmp_path / "absent.onnx")


def test_unknown_operator_is_refused(runtime_name, make_tiny_model):
    model = make_tiny_model().proto()
    model.graph.node[-1].op_type = "Warp"
    with pytest.raises(InputError, match="does not load it"):
        open_runtime(runtime_name, model.SerializeToString())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tflite", {}, "runtime 'tflite' is unknown; known: onnxruntime, openvino"),
        ("onnxruntime", {"precision": "int4"}, "precision 'int4' is unknown"),
        ("onnxruntime", {"precision": "bf16"}, "computes in f32 on CPU, not bf16"),
        ("onnxruntime", {"threads": 0}, "threads: 0"),
        ("openvino", {"spinning": True}, "no spinning"),
        ("openvino", {"threads": 4096}, "uses threads"),
    ],
)
def test_settings_that_cannot_be_had_are_errors(make_tiny_model, name, options, message):
    with pytest.raises(InputError, match=message):
        open_runtime(name, make_tiny_model().onnx(), **options)


def test_onnxruntime_does_not_read_openvino_files(tmp_path):
    file = tmp_path / "model.xml"
    file.write_text("<net/>")
    with pytest.raises(InputError, match=r"reads \.onnx"):
        open_runtime("onnxruntime", file)


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_openvino_low_precision_is_used_or_refused(make_tiny_model, precision):
    from edge_demo.runtime import import_openvino

    model = make_tiny_model()
    capability = {"bf16": "BF16", "f16": "FP16"}[precision]
    if capability not in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(InputError, match=f"not {precision}"):
            open_runtime("openvino", model.onnx(), precision=precision)
        return
    runtime = open_runtime("openvino", model.onnx(), precision=precision)
    assert runtime.effective["precision"] == precision
    np.testing.assert_allclose(
        runtime.infer({"frames": frames(3)})["scores"], model.reference(frames(3))["scores"], atol=0.1
    )


def test_openvino_default_precision_is_recorded(make_tiny_model):
    runtime = open_runtime("openvino", make_tiny_model().onnx(), precision="default")
    assert runtime.effective["precision"] in ("f32", "bf16", "f16")


def test_openvino_is_imported_without_its_telemetry():
    code = (
        "from edge_demo.runtime import import_openvino; import sys; ov = import_openvino(); ov.Core();"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_module_loads_no_runtime():
    code = (
        "import edge_demo.runtime, edge_demo.verify, sys;"
        "print({'onnxruntime', 'openvino', 'cv2', 'onnx', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_models_with_weights_beside_them_run_from_a_path(runtime_name, make_tiny_model, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = make_tiny_model()
    file = tmp_path / "split.onnx"
    onnx.save(model.proto(), file, save_as_external_data=True, location="split.data", size_threshold=0)
    assert Path(tmp_path / "split.data").is_file()
    got = open_runtime(runtime_name, file).infer({"frames": frames(2)})
    np.testing.assert_allclose(got["scores"], model.reference(frames(2))["scores"], atol=1e-5)
