"""Models as other makers leave them: every one gives rows, or a row that says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_demo.errors import InputError
from edge_demo.image import write_png
from edge_demo.runtime import TensorSpec
from stages.bench import stage
from stages.bench.document import BenchDocument
from stages.bench.inputs import asked_shapes, picture_samples, shrink
from stages.bench.method import Plan
from stages.bench.model_file import read_model_file
from stages.bench.pictures import SIDE, keep_pictures
from stages.bench.target import open_targets
from stages.spec import BenchConfig

ONE = Plan(launches=1, rounds=2, slice_s=0.005, rewarm_s=0.001, min_runs=2, warm_cap_s=0.01, warm_window_s=0.005)
Shape = tuple[int | str, ...]


def conv_weights(dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.ones((4, 3, 3, 3), dtype), "w")


def save(
    file: Path,
    nodes: list[Any],
    given: dict[str, Shape],
    out: Shape,
    weights: tuple[Any, ...] = (),
    *,
    opset: int = 17,
    ir: int = 8,
    listed: bool = False,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """`listed`: every weight is a graph input, too, as files up to IR version 3 have it."""
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in given.items()]
    if listed:
        inputs += [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", kind, out)], list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir), file)
    return file


def nhwc(file: Path) -> Path:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["y"]),
    ]
    return save(file, nodes, {"x": ("N", 32, 32, 3)}, ("N", 4, 30, 30), (conv_weights(),))


def old_opset(file: Path) -> Path:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Dropout", ["c"], ["y"], ratio=0.5)]
    return save(file, nodes, {"x": (1, 3, 16, 16)}, (1, 4, 14, 14), (conv_weights(),), opset=8, ir=3, listed=True)


def constant_weights(file: Path) -> Path:
    nodes = [helper.make_node("Constant", [], ["w"], value=conv_weights()), helper.make_node("Conv", ["x", "w"], ["y"])]
    return save(file, nodes, {"x": (1, 3, 16, 16)}, (1, 4, 14, 14))


def all_dynamic(file: Path) -> Path:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["y"])]
    return save(file, nodes, {"x": ("b", 3, "h", "w_")}, ("b", 4, 1, 1), (conv_weights(),))


def batch_of_four(file: Path) -> Path:
    return save(
        file, [helper.make_node("Conv", ["x", "w"], ["y"])], {"x": (4, 3, 16, 16)}, (4, 4, 14, 14), (conv_weights(),)
    )


def half(file: Path) -> Path:
    return save(
        file, [helper.make_node("Conv", ["x", "w"], ["y"])], {"x": (1, 3, 16, 16)}, (1, 4, 14, 14),
        (conv_weights(np.float16),), kind=TensorProto.FLOAT16,
    )  # fmt: skip


def two_inputs(file: Path) -> Path:
    return save(file, [helper.make_node("Add", ["a", "b"], ["y"])], {"a": ("N", 8), "b": ("N", 8)}, ("N", 8))


def not_a_number(file: Path) -> Path:
    nodes = [helper.make_node("Sub", ["x", "x"], ["zero"]), helper.make_node("Div", ["zero", "zero"], ["y"])]
    return save(file, nodes, {"x": (1, 8)}, (1, 8))


MAKERS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "nhwc": (nhwc, ["ort-fp32-t1", "ov-fp32-t1"]),
    "opset8": (old_opset, ["ort-fp32-t1", "ov-fp32-t1"]),
    "constants": (constant_weights, ["ort-fp32-t1", "ov-fp32-t1"]),
    "dynamic": (all_dynamic, ["ort-fp32-t1", "ov-fp32-t1"]),
    "batch4": (batch_of_four, ["ort-fp32-t1", "ov-fp32-t1"]),
    "fp16": (half, ["ort-fp16-t1", "ov-fp16-t1"]),
    "two": (two_inputs, ["ort-fp32-t1", "ov-fp32-t1"]),
}


def measured(target: Path | list[Path], **config: Any) -> BenchDocument:
    return stage.bench_target(target, BenchConfig(precisions=("fp32",), **config), plan=ONE)


QUICK = ("opset8", "dynamic", "batch4")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MAKERS])
def test_odd_graphs_give_rows(name: str, tmp_path: Path) -> None:
    make, want = MAKERS[name]
    document = measured(make(tmp_path / f"{name}.onnx"))
    assert [(row.id, row.status == "failed", row.reason) for row in document.variants] == [(i, False, "") for i in want]
    if name == "batch4":
        row = document.variants[0]
        assert row.batch == 4
        assert row.fps
        assert row.fps.uncontended_est == pytest.approx(4e6 / (row.cpu_us_per_inf or 0))
    if name == "dynamic":
        assert any("measured at 1x3x224x224" in warning for warning in document.warnings)
        asked = measured(tmp_path / "dynamic.onnx", shapes=("1x3x40x48",), runtimes=("onnxruntime",))
        assert not any("measured at" in warning for warning in asked.warnings)


def test_a_wrongly_declared_output_gives_rows_or_a_reason(tmp_path: Path) -> None:
    """The file says batch 4 of what is batch 1: a runtime may refuse it, but then its row says so."""
    wrong = save(tmp_path / "wrong.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 8)}, (4, 8))
    document = measured(wrong)
    for row in document.variants:
        assert (row.status == "failed") == bool(row.reason)
        assert "\n" not in row.reason


def test_outputs_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    document = measured(not_a_number(tmp_path / "nan.onnx"))
    assert all(row.difference and row.difference.cosine is None for row in document.variants)
    assert any("cannot be compared" in warning for warning in document.warnings)


def test_an_xml_is_measured_on_openvino(tmp_path: Path) -> None:
    import openvino as ov

    ov.save_model(ov.Core().read_model(nhwc(tmp_path / "m.onnx")), tmp_path / "m.xml", compress_to_fp16=False)
    document = measured(tmp_path / "m.xml")
    assert [row.id for row in document.variants] == ["ov-fp32-t1"]
    assert document.models[0].bytes == (tmp_path / "m.xml").stat().st_size + (tmp_path / "m.bin").stat().st_size
    assert any("does not read .xml" in warning for warning in document.warnings)


def test_several_targets_are_compared_in_one_run(tmp_path: Path) -> None:
    document = measured([nhwc(tmp_path / "a.onnx"), constant_weights(tmp_path / "b.onnx")], runtimes=("onnxruntime",))
    assert [row.id for row in document.variants] == ["a-ort-fp32-t1", "b-ort-fp32-t1"]
    assert [model.id for model in document.models] == ["a-fp32", "b-fp32"]
    other = document.variants[1]
    assert other.ratio
    assert other.ratio.baseline == "a-ort-fp32-t1"
    assert other.difference
    assert other.difference.baseline == "b-ort-fp32-t1"
    assert document.recommended.variant == "a-ort-fp32-t1"


def test_names_that_are_alike_get_different_keys_and_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        nhwc(tmp_path / folder / "m.onnx")
    paths = [tmp_path / "x/m.onnx", tmp_path / "y/m.onnx"]
    assert [target.key for target in open_targets(paths, tmp_path)] == ["m.1", "m.2"]
    with pytest.raises(InputError, match="named twice"):
        open_targets([paths[0], paths[0]], tmp_path)


def test_weights_outside_the_file_are_counted_and_have_to_be_there(tmp_path: Path) -> None:
    nhwc(tmp_path / "in.onnx")
    onnx.save(
        onnx.load(tmp_path / "in.onnx"), tmp_path / "out.onnx", save_as_external_data=True, location="out.data",
        size_threshold=0,
    )  # fmt: skip
    inside, outside = read_model_file(tmp_path / "in.onnx"), read_model_file(tmp_path / "out.onnx")
    assert outside.size_bytes == sum((tmp_path / name).stat().st_size for name in ("out.onnx", "out.data"))
    assert (inside.opset, inside.precision, outside.precision) == (17, "fp32", "fp32")
    data = bytearray((tmp_path / "out.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "out.data").write_bytes(bytes(data))
    assert read_model_file(tmp_path / "out.onnx").sha256 != outside.sha256
    (tmp_path / "out.data").unlink()
    with pytest.raises(InputError, match=r"weights are in out\.data, which is not beside it"):
        read_model_file(tmp_path / "out.onnx")


def fixed_inside(file: Path) -> Path:
    """Height and width are open in the file, but only 16 x 16 works."""
    size = numpy_helper.from_array(np.array([1, 768], np.int64), "size")
    return save(file, [helper.make_node("Reshape", ["x", "size"], ["y"])], {"x": (1, 3, "h", "w")}, (1, 768), (size,))


def test_a_guessed_shape_that_fails_says_what_to_type(tmp_path: Path) -> None:
    file = fixed_inside(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"measured at 1x3x224x224: .*choose them: --shape x=") as caught:
        measured(file, runtimes=("onnxruntime",))
    assert "\n" not in str(caught.value)
    document = measured(file, runtimes=("onnxruntime",), shapes=("1x3x16x16",))
    assert [row.reason for row in document.variants] == [""]


# --- --images --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """20 pictures in two folders; the first is red, the others blue."""
    for number in range(20):
        frame = np.zeros((64, 96, 3), np.uint8)
        frame[..., 2 if number == 0 else 0] = 255
        file = tmp_path / f"pictures/{number % 2}/{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(write_png(frame))
    return tmp_path / "pictures"


def test_pictures_are_rgb_and_spread_over_the_folder(pictures: Path, tmp_path: Path) -> None:
    kept = np.load(keep_pictures(pictures, tmp_path / "kept.npy"))
    assert (kept.dtype, kept.shape) == (np.uint8, (10, SIDE, SIDE, 3))
    assert kept[0, 0, 0].tolist() == [255, 0, 0]
    assert kept[1, 0, 0].tolist() == [0, 0, 255]
    assert len(np.load(keep_pictures(pictures / "0/00.png", tmp_path / "one.npy"))) == 1


def test_shrinking_is_opencv_s_area_mean_where_the_sides_divide() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    want = cv2.resize(picture.astype(np.float32), (64, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(shrink(picture, 128, 64) - want).max() < 1e-3
    # Where they do not, every pixel counts once.
    assert shrink(picture, 224, 300).shape == (224, 300, 3)
    assert shrink(np.full((512, 512, 3), 7, np.uint8), 224, 600).tolist() == np.full((224, 600, 3), 7.0).tolist()


@pytest.mark.parametrize(
    ("shape", "dtype", "channel", "top"),
    [((2, 3, 8, 8), "float32", 1, 1.0), ((1, 8, 8, 3), "uint8", 3, 255), ((1, 1, 8, 8), "float16", 1, 1 / 3)],
)
def test_a_picture_input_is_filled_whatever_its_layout(
    shape: tuple[int, ...], dtype: str, channel: int, top: float, pictures: Path, tmp_path: Path
) -> None:
    specs = [TensorSpec("x", np.dtype(dtype), shape), TensorSpec("n", np.dtype("int64"), (1,))]
    samples = picture_samples(specs, keep_pictures(pictures, tmp_path / "kept.npy"), 0)
    feeds = samples.at(0)
    assert (feeds["x"].shape, feeds["x"].dtype, feeds["x"].flags.c_contiguous) == (shape, np.dtype(dtype), True)
    assert feeds["n"].shape == (1,)
    assert np.take(feeds["x"], 0, axis=channel).ravel() == pytest.approx(top, rel=1e-3)
    assert np.take(feeds["x"], range(1, shape[channel]), axis=channel).max(initial=0) == 0
    assert "run on 10 pictures" in samples.notes[0]


def test_a_plain_model_runs_on_pictures(pictures: Path, tmp_path: Path) -> None:
    document = stage.bench_target(
        old_opset(tmp_path / "m.onnx"),
        BenchConfig(precisions=("fp32",), runtimes=("onnxruntime",)),
        plan=ONE,
        images=pictures,
    )
    row = document.variants[0]
    assert row.difference
    assert (row.reason, row.accuracy, row.difference.n) == ("", None, 10)
    assert any("the scaling its maker used is not known" in warning for warning in document.warnings)
    assert document.command[-2:] == ("--images", "pictures")


def test_pictures_that_are_none_are_wrong_input(tmp_path: Path) -> None:
    model = two_inputs(tmp_path / "m.onnx")
    for images, why in ((tmp_path / "no", "no such file"), (tmp_path, "no pictures"), (model, "not a picture")):
        with pytest.raises(InputError, match=why):
            stage.bench_target(model, BenchConfig(precisions=("fp32",)), plan=ONE, images=images)
    (tmp_path / "p.png").write_bytes(write_png(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(InputError, match="no input of the model looks like a picture"):
        stage.bench_target(model, BenchConfig(precisions=("fp32",)), plan=ONE, images=tmp_path / "p.png")


# --- --shape ---------------------------------------------------------------------------------------------------------

SPECS = [TensorSpec("a", np.dtype("float32"), (-1, 3, -1, -1)), TensorSpec("b", np.dtype("float32"), (1, 8))]


def test_shapes_as_typed() -> None:
    assert asked_shapes(SPECS, ("a=2x3x8x9", "b=1x8")) == {"a": (2, 3, 8, 9), "b": (1, 8)}
    assert asked_shapes(SPECS[:1], ("1x3x8x8",)) == {"a": (1, 3, 8, 8)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1x3x8x8", "the model has 2 inputs"),
        ("c=1x8", "no input 'c'"),
        ("a=1x3x8", "takes ?x3x?x?"),
        ("a=1x4x8x8", "takes ?x3x?x?"),
        ("a=1x3x0x8", "is no shape"),
        ("a=1x3x-8x8", "is no shape"),
        ("a=", "is no shape"),
    ],
)
def test_shapes_that_do_not_fit(text: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        asked_shapes(SPECS, (text,))
    assert why in str(caught.value)


def test_a_shape_that_does_not_fit_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only its \\? can be chosen"):
        measured(all_dynamic(tmp_path / "m.onnx"), shapes=("1x5x8x8",))


def test_absurd_thread_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1000000 is absurd"):
        measured(nhwc(tmp_path / "m.onnx"), threads=(1_000_000,))
