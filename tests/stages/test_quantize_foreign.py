"""Models of others: the graphs found in the wild, what they are fed with, and what cannot be quantized."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_static

from edge_demo.errors import Error, InputError
from edge_demo.image import write_png
from edge_demo.runtime import TensorSpec
from pipeline.cli import call
from stages.quantize import foreign_compare
from stages.quantize.calibration import Reader
from stages.quantize.foreign import quantize_file
from stages.quantize.foreign_compare import inaccurate, top_agreement, worst_sqnr_db
from stages.quantize.foreign_graph import normalized, readable
from stages.quantize.foreign_input import Pictures, facts, read_feeds
from stages.quantize.target import host_target
from stages.spec import Candidate, QuantizeConfig

ELSEWHERE: Any = "arm64" if host_target() != "arm64" else "x86-vnni"  # speed is not judged there
CONFIG = QuantizeConfig(images=32, target=ELSEWHERE)
EXAMPLES = 48
SIDE = 12


def network(
    shape: Sequence[Any] = ("n", 3, SIDE, SIDE),
    *,
    opset: int = 17,
    ir_version: int = 8,
    width: int = 48,
    weights: str = "initializers",
    declared: Sequence[Any] | None = ("n", 10),
    edit: Callable[[list[Any], dict[str, np.ndarray]], None] = lambda nodes, tensors: None,
) -> ModelProto:
    """Two convolutions and a matrix product with random weights, stored as asked."""
    rng = np.random.default_rng(0)
    tensors = {
        "w1": rng.normal(0, 0.3, (width, 3, 3, 3)).astype(np.float32),
        "b1": rng.normal(0, 0.1, width).astype(np.float32),
        "w2": rng.normal(0, 0.05, (width, width, 3, 3)).astype(np.float32),
        "b2": rng.normal(0, 0.1, width).astype(np.float32),
        "w3": rng.normal(0, 0.3, (width, 10)).astype(np.float32),
        "b3": rng.normal(0, 0.1, 10).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "second", kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["y"], "last"),
    ]
    edit(nodes, tensors)
    stored = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))]
    if weights == "constants":
        nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in stored] + nodes
    if weights == "inputs":
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in tensors.items()]
    graph = helper.make_graph(
        nodes,
        "someone's",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, declared)],
        [] if weights == "constants" else stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def saved(folder: Path, model: ModelProto) -> Path:
    path = folder / "someones.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def examples(folder: Path, shape: Sequence[int] = (3, SIDE, SIDE), n: int = EXAMPLES) -> Path:
    (folder / "calib").mkdir(exist_ok=True)
    np.save(folder / "calib" / "x.npy", np.random.default_rng(1).normal(0, 1, (n, *shape)).astype(np.float32))
    return folder / "calib"


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": x[i : i + 1]})[0] for i in range(len(x))])


def channels_last(nodes: list[Any], tensors: dict[str, np.ndarray]) -> None:
    nodes.insert(0, helper.make_node("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2]))
    nodes[1].input[0] = "nchw"


# --- graphs found in the wild ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "note"),
    [
        (network(), (3, SIDE, SIDE), None),
        (network(weights="constants"), (3, SIDE, SIDE), "6 weights were Constant nodes"),
        (network(weights="inputs", ir_version=3, opset=9), (3, SIDE, SIDE), "6 weights were listed as inputs"),
        (network(opset=8, ir_version=4), (3, SIDE, SIDE), "opset 8 was converted to 17"),
        (network(opset=9, ir_version=4), (3, SIDE, SIDE), "opset 9 was converted to 17"),
        (network((1, 3, SIDE, SIDE), declared=[1, 10]), (3, SIDE, SIDE), None),
        (network(declared=None), (3, SIDE, SIDE), "shapes of outputs were not declared"),
        (network(("n", SIDE, SIDE, 3), edit=channels_last), (SIDE, SIDE, 3), None),
        (network(("n", 3, "h", "w")), (3, SIDE, SIDE), None),
    ],
    ids=["plain", "constants", "inputs", "opset-8", "opset-9", "batch-1", "no-shape", "nhwc", "open-size"],
)
def test_graphs_of_others_become_int8_with_the_same_answers(
    model: ModelProto, shape: tuple[int, ...], note: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, calib, output = saved(tmp_path, model), examples(tmp_path, shape), tmp_path / "out.onnx"
    before = set(tmp_path.iterdir())
    result = quantize_file(path, calib, output, CONFIG)
    assert set(tmp_path.iterdir()) == before | {output}
    assert note is None or note in result.notes
    (chosen,) = (row for row in result.candidates if row.verdict == "chosen")
    assert result.chosen == chosen.name
    assert result.held_out == 12
    assert result.calibration["n"] == EXAMPLES - 12
    assert output.stat().st_size == chosen.size_bytes < 0.4 * path.stat().st_size
    fresh = np.random.default_rng(9).normal(0, 1, (20, *shape)).astype(np.float32)
    want, got = outputs(path, fresh), outputs(output, fresh)
    assert np.square(want).sum() > 10**2.5 * np.square(want - got).sum()
    assert [value.name for value in onnx.load(output).graph.input] == ["x"]


def test_metadata_of_the_model_is_kept(tmp_path: Path) -> None:
    model = network()
    model.metadata_props.add(key="labels", value="cat,dog")
    quantize_file(saved(tmp_path, model), examples(tmp_path), tmp_path / "out.onnx", CONFIG)
    kept = {item.key: item.value for item in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert kept == {"labels": "cat,dog"}


def test_a_file_that_grows_ends_in_rows_and_a_reason(tmp_path: Path) -> None:
    path = saved(tmp_path, network(width=2))
    result = quantize_file(path, examples(tmp_path), tmp_path / "out.onnx", CONFIG)
    assert not (tmp_path / "out.onnx").exists()
    assert (result.chosen, result.output) == ("FP32", "")
    assert "makes the file larger" in result.reason
    measured = [row for row in result.candidates[1:] if row.size_bytes]
    assert measured
    assert all("makes the file larger" in row.reason for row in measured)
    assert result.candidates[0].verdict == "chosen"


def test_outputs_that_int8_destroys_keep_fp32(tmp_path: Path) -> None:
    def far_apart(nodes: list[Any], tensors: dict[str, np.ndarray]) -> None:
        """The answer is in a channel a millionth as wide as its neighbour."""
        tensors["w1"][0] *= 1e6
        tensors["w2"][:, 0] = 0

    path = saved(tmp_path, network(edit=far_apart))
    result = quantize_file(path, examples(tmp_path), tmp_path / "out.onnx", CONFIG)
    rows = {row.name: row for row in result.candidates}
    assert "changes the outputs too much" in rows["every operator, minmax"].reason
    assert rows["every operator, minmax"].sqnr_db is not None
    assert rows["every operator, minmax"].sqnr_db < 20
    if result.output:
        assert "sensitive node" in result.chosen
    assert result.sensitivity
    assert {result.sensitivity[0].node, result.sensitivity[1].node} == {"first", "second"}


def test_nothing_to_quantize_is_an_error_with_the_reason(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    path = saved(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(Error, match=r"no INT8 recipe works: someones\.onnx: nothing in this network can be quantized"):
        quantize_file(path, examples(tmp_path, (3,)), tmp_path / "out.onnx", CONFIG)


def test_a_graph_the_preparation_fails_on_is_quantized_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("stages.quantize.recipes.quant_pre_process", fails)
    result = quantize_file(saved(tmp_path, network()), examples(tmp_path), tmp_path / "out.onnx", CONFIG)
    assert result.output
    assert any("was left out" in note and "AssertionError" in note for note in result.notes)


def test_a_model_openvino_does_not_run_is_measured_in_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = foreign_compare.open_runtime

    def refusing(name: str, *args: Any, **options: Any) -> Any:
        if name == "openvino":
            raise InputError("x.onnx: openvino does not load it: no rule for Blub")
        return opened(name, *args, **options)

    monkeypatch.setattr(foreign_compare, "open_runtime", refusing)
    result = quantize_file(saved(tmp_path, network()), examples(tmp_path), tmp_path / "out.onnx", CONFIG)
    assert any("not measured in openvino" in note and "Blub" in note for note in result.notes)
    assert list(result.candidates[1].speed) == ["onnxruntime"]


def broken(tmp_path: Path, what: str) -> Path:
    if what == "text":
        (tmp_path / "someones.onnx").write_text("not a model")
        return tmp_path / "someones.onnx"
    model = network()
    first = model.graph.initializer[0]
    if what == "nan":
        first.CopyFrom(numpy_helper.from_array(np.full((48, 3, 3, 3), np.nan, dtype=np.float32), "w1"))
    else:
        first.data_location = TensorProto.EXTERNAL
        first.external_data.add(key="location", value="../weights.bin")
    return saved(tmp_path, model)


@pytest.mark.parametrize(
    ("what", "message"),
    [("text", "not an ONNX model"), ("nan", "w1 holds NaN or infinity"), ("external", "w1 is kept in another file")],
)
def test_broken_models_are_refused(what: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        quantize_file(broken(tmp_path, what), examples(tmp_path), tmp_path / "out.onnx", CONFIG)


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        (QuantType.QInt8, r"someones\.onnx: is quantized already: its activations are signed \(S8S8\)"),
        (QuantType.QUInt8, r"someones\.onnx: is quantized already$"),
    ],
)
def test_a_quantized_model_is_refused_and_signed_activations_are_named(
    activations: QuantType, message: str, tmp_path: Path
) -> None:
    """S8S8 is what ONNX Runtime's `quantize_static` makes by default."""
    rng = np.random.default_rng(0)
    reader = Reader("x", rng.normal(size=(4, 3, SIDE, SIDE)).astype(np.float32))
    quantize_static(
        saved(tmp_path, network()), tmp_path / "int8.onnx", reader, activation_type=activations, per_channel=True
    )
    (tmp_path / "int8.onnx").rename(tmp_path / "someones.onnx")
    with pytest.raises(InputError) as caught:
        quantize_file(tmp_path / "someones.onnx", examples(tmp_path), tmp_path / "out.onnx", CONFIG)
    assert re.match(message, caught.value.message)
    assert caught.value.hint == "give the FP32 model that it was made from"


def test_a_batch_size_the_graph_does_not_keep_to_is_told(tmp_path: Path) -> None:
    def reshaped(nodes: list[Any], tensors: dict[str, np.ndarray]) -> None:
        tensors["shape"] = np.array([1, 48], dtype=np.int64)
        nodes[5] = helper.make_node("Reshape", ["pooled", "shape"], ["flat"])

    path = saved(tmp_path, network((2, 3, SIDE, SIDE), declared=[2, 10], edit=reshaped))
    with pytest.raises((InputError, Error), match=r"someones\.onnx"):
        quantize_file(path, examples(tmp_path), tmp_path / "out.onnx", CONFIG)
    assert not (tmp_path / "out.onnx").exists()


def test_an_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("mine")
    with pytest.raises(InputError, match=r"out\.onnx: exists"):
        quantize_file(saved(tmp_path, network()), examples(tmp_path), tmp_path / "out.onnx", CONFIG)
    assert (tmp_path / "out.onnx").read_text() == "mine"


def test_a_graph_without_a_known_conversion_is_named() -> None:
    model = network(opset=9, ir_version=4)
    model.graph.node[0].op_type = "Upsample2"
    with pytest.raises(Error, match="opset 9 cannot be converted to 17"):
        normalized(model, "m.onnx")


def test_reading_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = readable(saved(tmp_path, network(weights="constants")))
    before = model.SerializeToString(deterministic=True)
    normalized(model, "m.onnx")
    assert model.SerializeToString(deterministic=True) == before


# --- what they are fed with ------------------------------------------------------------------------------------------


def spec(shape: Sequence[int], kind: str = "float32") -> tuple[TensorSpec, ...]:
    return (TensorSpec("x", np.dtype(kind), tuple(shape)),)


def pictures(folder: Path, n: int = 5) -> Path:
    rng = np.random.default_rng(3)
    for index in range(n):
        (folder / f"{index}.png").write_bytes(write_png(rng.integers(0, 255, (8, 6, 3), dtype=np.uint8)))
    return folder


def test_pictures_become_what_the_model_takes(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    folder = pictures(tmp_path)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    frames = {np.asarray(cv2.imread(str(file))).tobytes(): cv2.imread(str(file)) for file in folder.iterdir()}
    for feed in read_feeds(folder, spec((-1, 3, 8, 6)), Pictures(mean, std), 9, 0):
        rgb = (feed["x"][0] * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))) * 255
        assert np.rint(rgb[::-1]).astype(np.uint8).transpose(1, 2, 0).tobytes() in frames
    for feed in read_feeds(folder, spec((-1, 8, 6, 3), "uint8"), Pictures(), 9, 0):
        assert feed["x"][0].tobytes() in frames
    for feed in read_feeds(folder, spec((-1, 1, -1, -1)), Pictures((0.0,), (1.0,), (6, 8)), 9, 0):
        gray = [frame @ np.array([0.114, 0.587, 0.299]) / 255 for frame in frames.values()]
        assert any(np.allclose(feed["x"][0, 0], one, atol=1e-6) for one in gray)


def test_feeds_are_seeded_limited_and_of_the_declared_batch(tmp_path: Path) -> None:
    folder = examples(tmp_path, (3,), 20)
    first, again, other = (read_feeds(folder, spec((-1, 3)), Pictures(), 6, seed) for seed in (0, 0, 1))
    assert len(first) == 6
    assert facts(first, "x")["sha256"] == facts(again, "x")["sha256"] != facts(other, "x")["sha256"]
    assert [feed["x"].shape for feed in read_feeds(folder, spec((3, 3)), Pictures(), 9, 0)] == [(3, 3)] * 6


def test_several_inputs_come_from_npz(tmp_path: Path) -> None:
    both = (*spec((-1, 3)), TensorSpec("k", np.dtype("int64"), (-1,)))
    np.savez(tmp_path / "a.npz", x=np.ones((4, 3), dtype=np.float32), k=np.arange(4))
    feeds = read_feeds(tmp_path, both, Pictures(), 9, 0)
    assert sorted(int(feed["k"][0]) for feed in feeds) == [0, 1, 2, 3]
    np.save(tmp_path / "b.npy", np.ones((4, 3), dtype=np.float32))
    with pytest.raises(InputError, match=r"b\.npy: holds \['x'\], the model takes \['x', 'k'\]"):
        read_feeds(tmp_path, both, Pictures(), 9, 0)


@pytest.mark.parametrize(
    ("inputs", "how", "message"),
    [
        (spec((-1, 3, 8, 6)), Pictures(), "how its pictures were normalized is not in the file"),
        (spec((-1, 3, 8, 6)), Pictures((0.5,), (0.5,)), r"give --mean and --std as in training, 3 value\(s\)"),
        (spec((-1, 3, 8, 6)), Pictures((0.5,) * 3, (0.0,) * 3), "give --mean and --std"),
        (spec((-1, 8, 6, 3), "uint8"), Pictures((0.5,) * 3, (0.5,) * 3), "--mean and --std have no effect"),
        (spec((-1, 3, -1, -1)), Pictures((0.5,) * 3, (0.5,) * 3), "give --size WxH"),
        (spec((-1, 3, 8, 6)), Pictures((0.5,) * 3, (0.5,) * 3, (9, 9)), "--size has no effect: the model takes 6x8"),
        (spec((-1, 7, 8, 6)), Pictures(), "no axis of 1 or 3 channels"),
        (spec((-1, 3, 8, 6), "int64"), Pictures(), "pictures become float32 or uint8"),
        (spec((-1, 12)), Pictures(), "pictures cannot be fed"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(
    inputs: tuple[TensorSpec, ...], how: Pictures, message: str, tmp_path: Path
) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(InputError, match=message):
        read_feeds(pictures(tmp_path), inputs, how, 9, 0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 5), dtype=np.float32), r"x is float32 \[4, 5\], the model takes float32 \[-1, 3\]"),
        (np.ones((4, 3)), "x is float64"),
        (np.full((4, 3), np.nan, dtype=np.float32), "holds NaN or infinity"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=message):
        read_feeds(tmp_path, spec((-1, 3)), Pictures(), 9, 0)


def test_too_few_examples_no_examples_and_no_folder_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, network())
    with pytest.raises(InputError, match="--calib: 23 examples are too few; 24 at least"):
        quantize_file(path, examples(tmp_path, n=23), tmp_path / "out.onnx", CONFIG)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no picture, \.npy or \.npz file in it"):
        quantize_file(path, tmp_path / "empty", tmp_path / "out.onnx", CONFIG)
    with pytest.raises(InputError, match="no such folder"):
        quantize_file(path, tmp_path / "nowhere", tmp_path / "out.onnx", CONFIG)


# --- judging without labels ------------------------------------------------------------------------------------------


def test_noise_and_agreement_by_hand() -> None:
    want = [{"y": np.array([[3.0, 4.0]]), "ids": np.array([1])}, {"y": np.array([[0.0, 5.0]]), "ids": np.array([2])}]
    got = [{"y": np.array([[3.0, 4.5]]), "ids": np.array([1])}, {"y": np.array([[5.0, 0.0]]), "ids": np.array([9])}]
    assert worst_sqnr_db(want, got) == pytest.approx(10 * np.log10(50 / (0.25 + 25 + 25)))
    assert top_agreement(want, got) == 0.5
    assert worst_sqnr_db(want, want) == 200.0
    assert worst_sqnr_db(want, [{"y": np.zeros((1, 3))}] * 2) == -200.0
    assert top_agreement([{"boxes": np.zeros((1, 9, 4))}], [{"boxes": np.zeros((1, 9, 4))}]) is None


@pytest.mark.parametrize(
    ("sqnr", "agreement", "message"),
    [(20.0, 0.98, ""), (19.9, 1.0, "changes the outputs too much"), (30.0, 0.97, "another answer for 3.0%")],
)
def test_the_gates_without_labels(sqnr: float, agreement: float, message: str) -> None:
    row = Candidate(name="r", sqnr_db=sqnr, agreement={"openvino": agreement}, verdict="rejected", reason="")
    assert inaccurate(row).startswith(message) if not message else message in inaccurate(row)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_file_and_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, calib = saved(tmp_path, network()), examples(tmp_path)
    sets = ["--set", "quantize.images=32", "--set", f'quantize.target="{ELSEWHERE}"']
    assert call(["quantize", str(path), "--calib", str(calib), "--json", *sets]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == str(tmp_path / "someones.int8.onnx")
    assert (tmp_path / "someones.int8.onnx").is_file()
    small = saved(tmp_path, network(width=2))
    assert call(["quantize", str(small), "--calib", str(calib), "--output", str(tmp_path / "s.onnx"), *sets]) == 3
    told = capsys.readouterr()
    assert "every operator, minmax" in told.out
    assert "no INT8 file is worth having" in told.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.onnx"], "give --calib DIR"),
        (["m.onnx", "--calib", ".", "--run", "r"], "--run: has no effect on a model file"),
        (["m.onnx", "--calib", ".", "--preset", "digits"], "--preset: has no effect on a model file"),
        (["m.onnx", "--calib", ".", "--set", "quantize.max_drop=1"], "quantize.max_drop: has no effect"),
        (["m.onnx", "--calib", ".", "--mean", "a,b"], "--mean a,b: not numbers"),
        (["m.onnx", "--calib", ".", "--size", "224"], "--size 224: not a width and a height"),
        (["m.onnx", "--calib", "."], "m.onnx: no such model file"),
        (["--calib", "."], "--calib: only for a model file"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["quantize", *arguments]) == 2
    assert message in capsys.readouterr().err
