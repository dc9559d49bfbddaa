"""Export: the graph contract, the parity ladder, and every way they can be broken."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edge_demo.errors import Error, GateError, InputError
from edge_demo.runtime import import_openvino
from stages import export, onnx_graph
from stages.export.graphs import export_parts
from stages.graph import Preprocess
from stages.pixels import fault, reference_batch, tinted
from stages.spec import DataResult, ExportConfig, ExportResult, TrainResult
from stages.trained import load_trained

QUICK = ExportConfig(parity_images=16)


def infer_onnx(path: Path, feed: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})


def bgr(data: DataResult, split: str = "test") -> np.ndarray:
    frames = np.load(data.folder / f"{split}.frames.npy")
    return np.repeat(frames, 3, axis=3) if frames.shape[3] == 1 else frames


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_deployed_graph_keeps_the_contract(small_export: ExportResult, small_data: DataResult) -> None:
    model = onnx.load(small_export.folder / "model.fp32.onnx")
    frames = model.graph.input[0]
    shape = [dim.dim_param or dim.dim_value for dim in frames.type.tensor_type.shape.dim]
    assert (frames.name, frames.type.tensor_type.elem_type) == ("frames", onnx.TensorProto.UINT8)
    assert isinstance(shape[0], str)
    assert shape[1:] == [16, 16, 3]
    assert [value.name for value in model.graph.output] == ["scores", "embedding"]
    assert [(imported.domain, imported.version) for imported in model.opset_import] == [("", 20)]
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["task"] == "classify"
    assert json.loads(metadata["labels"]) == list(small_data.labels)
    assert json.loads(metadata["input"])["size_wh"] == [16, 16]
    assert small_export.size_bytes == (small_export.folder / "model.fp32.onnx").stat().st_size


def test_the_core_takes_a_normalized_batch_and_has_no_batch_normalization(small_export: ExportResult) -> None:
    core = onnx.load(small_export.folder / "core.onnx")
    assert [value.name for value in core.graph.input] == ["batch"]
    assert [value.name for value in core.graph.output] == ["logits", "embedding"]
    assert "BatchNormalization" not in {node.op_type for node in core.graph.node}


def test_no_file_tells_where_it_was_made(small_export: ExportResult) -> None:
    for file in small_export.folder.iterdir():
        content = file.read_bytes()
        for trace in (b"stack_trace", b"site-packages", b".py", str(Path.cwd()).encode(), str(Path.home()).encode()):
            assert trace not in content, (file.name, trace)
    assert sorted(file.suffix for file in small_export.folder.iterdir()) == [".onnx"] * 4


@pytest.mark.parametrize("batch", [1, 3, 31])
def test_scores_equal_numpy_preprocessing_and_torch(
    small_export: ExportResult, small_data: DataResult, small_train: TrainResult, batch: int
) -> None:
    frames = bgr(small_data)[:batch]
    core = load_trained(small_data, small_train).core
    gray = frames.astype(np.float64) @ [0.114, 0.587, 0.299] / 255
    normalized = ((gray - small_data.mean[0]) / small_data.std[0])[:, np.newaxis].astype(np.float32)
    with torch.inference_mode():
        want = torch.softmax(core(torch.from_numpy(normalized))[0], dim=1).numpy()
    scores, _ = infer_onnx(small_export.folder / "model.fp32.onnx", frames)
    np.testing.assert_allclose(scores, want, atol=1e-5)


def test_every_rung_of_the_ladder_holds(small_export: ExportResult) -> None:
    assert [row.name for row in small_export.parity[:-1]] == [
        "numpy -> onnxruntime pre.onnx",
        "numpy -> openvino pre.onnx",
        "torch -> onnxruntime core.onnx",
        "torch -> openvino core.onnx",
        "torch -> onnxruntime model.fp32.onnx",
        "torch -> openvino model.fp32.onnx",
    ]
    assert all(row.passed and row.agreement == 1.0 and row.max_rel < 1e-5 for row in small_export.parity[:-1])
    assert small_export.gates[0].passed


def test_the_default_precision_is_named_for_what_it_is_and_not_gated(small_export: ExportResult) -> None:
    row = small_export.parity[-1]
    compiled = import_openvino().Core().compile_model(small_export.folder / "model.fp32.onnx", "CPU")
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    assert row.name == f"torch -> openvino model.fp32.onnx, by default {precision}"
    assert not row.required
    assert row.passed
    far = [*small_export.parity[:-1], row.model_copy(update={"passed": False, "max_rel": 0.9})]
    gate = export._gate(tuple(far), ExportConfig())
    assert gate.passed
    assert gate.value < 1e-4


def test_colour_graph_wants_bgr(colour_data: DataResult, colour_train: TrainResult, tmp_path: Path) -> None:
    result = export.run(QUICK, colour_data, colour_train, out_dir=tmp_path)
    frames, truth = bgr(colour_data), np.load(colour_data.folder / "test.truth.npy")
    assert (infer_onnx(tmp_path / "model.fp32.onnx", frames)[0].argmax(1) == truth).mean() > 0.8
    batch = infer_onnx(tmp_path / "pre.onnx", frames[:4])[0]
    rgb = (frames[:4, ..., ::-1] / 255.0 - colour_data.mean) / colour_data.std
    np.testing.assert_allclose(batch, rgb.transpose(0, 3, 1, 2), atol=1e-5)
    assert result.gates[0].passed


@pytest.mark.slow
def test_the_same_weights_give_the_same_bytes_in_another_process(
    small_export: ExportResult, small_data: DataResult, small_train: TrainResult, tmp_path: Path
) -> None:
    script = """
import sys
from pathlib import Path
from stages import export
from stages.spec import DataResult, ExportConfig, TrainResult
data, train = (kind.model_validate_json(Path(name).read_text()).model_copy(update={"folder": Path(folder)})
    for kind, name, folder in ((DataResult, sys.argv[1], sys.argv[2]), (TrainResult, sys.argv[3], sys.argv[4])))
export.run(ExportConfig(parity_images=10), data, train, out_dir=Path(sys.argv[5]))
"""
    (tmp_path / "data.json").write_text(small_data.model_dump_json())
    (tmp_path / "train.json").write_text(small_train.model_dump_json())
    (out := tmp_path / "out").mkdir()
    places = [tmp_path / "data.json", small_data.folder, tmp_path / "train.json", small_train.folder, out]
    done = subprocess.run([sys.executable, "-c", script, *map(str, places)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    for file in out.iterdir():
        assert digest(file) == digest(small_export.folder / file.name), file.name


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- planted faults --------------------------------------------------------------------------------------------------


class Swapped(Preprocess):
    def forward(self, frames: Tensor) -> Tensor:
        return super().forward(frames.flip(3))


class NoStatistics(Preprocess):
    def __init__(self, colour: str, mean: Any, std: Any) -> None:
        super().__init__(colour, [0.0] * len(mean), [1.0] * len(std))


class NoScale(Preprocess):
    def __init__(self, colour: str, mean: Any, std: Any) -> None:
        super().__init__(colour, [value / 255 for value in mean], [value / 255 for value in std])


FAULTS = {
    Swapped: r"channels are swapped \(RGB/BGR\)",
    NoStatistics: "mean and std are missing",
    NoScale: "wrong scale: 0..255 normalized with statistics of 0..1",
}


@pytest.mark.parametrize(
    ("colour", "planted"),
    [
        ("gray", NoScale),
        ("rgb", Swapped),
        # The rest says nothing new about export; `fault` itself is tested on every mistake below.
        pytest.param("gray", Swapped, marks=pytest.mark.slow),
        pytest.param("gray", NoStatistics, marks=pytest.mark.slow),
        pytest.param("rgb", NoStatistics, marks=pytest.mark.slow),
        pytest.param("rgb", NoScale, marks=pytest.mark.slow),
    ],
)
def test_a_preprocessing_fault_is_named(
    planted: type[Preprocess],
    colour: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = "small" if colour == "gray" else "colour"
    data, train = (request.getfixturevalue(f"{kind}_{part}") for part in ("data", "train"))
    monkeypatch.setattr("stages.trained.Preprocess", planted)
    with pytest.raises(GateError, match="numpy -> onnxruntime pre.onnx: " + FAULTS[planted]):
        export.run(QUICK, data, train, out_dir=tmp_path)


def test_a_core_that_is_not_the_trained_one_misses_the_gate(
    small_data: DataResult, small_train: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(deployed: Any, *rest: Any) -> Any:
        changed = copy.deepcopy(deployed)
        with torch.no_grad():
            next(p for name, p in changed.core.named_parameters() if name.endswith("head.bias"))[3] += 0.5
        return export_parts(changed, *rest)

    monkeypatch.setattr("stages.export.export_parts", shifted)
    result = export.run(QUICK, small_data, small_train, out_dir=tmp_path)
    (gate,) = result.gates
    assert (gate.passed, gate.stop) == (False, True)
    assert "torch -> onnxruntime core.onnx" in gate.message
    assert [row.passed for row in result.parity[:-1]] == [True, True, False, False, False, False]
    assert result.parity[2].max_abs == pytest.approx(0.5, rel=1e-4)


class NormFirst(nn.Module):
    """A batch norm no convolution stands before: it cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu, self.conv = nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 10, 3)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.conv(self.relu(self.norm(batch))).mean((2, 3))
        return logits, logits + 0.0


def test_a_batch_normalization_left_over_is_an_error(
    small_data: DataResult, small_train: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.trained.build", lambda *args, **kwargs: NormFirst())
    save_file(NormFirst().state_dict(), tmp_path / "best.safetensors")
    train = small_train.model_copy(update={"folder": tmp_path})
    with pytest.raises(Error, match="BatchNormalization was not folded"):
        export.run(QUICK, small_data, train, out_dir=tmp_path)


@pytest.mark.parametrize(("version", "message"), [(13, "13 is older than"), (99, "asked for 99, torch wrote 18")])
def test_an_opset_the_exporter_does_not_write_is_refused(
    version: int,
    message: str,
    small_data: DataResult,
    small_train: TrainResult,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(InputError, match=f"export.opset: {message}"):
        export.run(ExportConfig(opset=version), small_data, small_train, out_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


# --- damaged input ---------------------------------------------------------------------------------------------------


def damaged(train: TrainResult, folder: Path, content: bytes | dict[str, Tensor] | None) -> TrainResult:
    if isinstance(content, dict):
        save_file(content, folder / "best.safetensors")
    elif content is not None:
        (folder / "best.safetensors").write_bytes(content)
    return train.model_copy(update={"folder": folder})


def test_damaged_weights_are_named(small_data: DataResult, small_train: TrainResult, tmp_path: Path) -> None:
    whole = small_train.folder / "best.safetensors"
    weights = load_file(whole)
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    not_finite = weights | {name: torch.full_like(weights[name], torch.nan)}
    for content, message in (
        (None, "cannot be read"),
        (whole.read_bytes()[:-40], "cannot be read"),
        (not_finite, f"{name} holds NaN or infinity"),
        ({name: weights[name]}, "weights of another network"),
    ):
        with pytest.raises(Error, match=message) as caught:
            load_trained(small_data, damaged(small_train, tmp_path, content))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"labels": ("a", "b")}, "labels"), ({"size_wh": (28, 28)}, "size_wh"), ({"in_channels": 3}, "channels")],
)
def test_data_of_another_problem_is_refused(
    changed: dict[str, Any], what: str, small_data: DataResult, small_train: TrainResult
) -> None:
    with pytest.raises(InputError, match=f"{what} of the data"):
        load_trained(small_data, small_train.model_copy(update=changed))


# --- the parts -------------------------------------------------------------------------------------------------------

FRAMES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.just(3)))
SHARE = st.floats(0.05, 0.95)


@settings(max_examples=40, deadline=None)
@given(frames=FRAMES, mean=SHARE, std=SHARE, colour=st.sampled_from(["gray", "rgb"]))
def test_preprocess_equals_the_numpy_reference(frames: np.ndarray, mean: float, std: float, colour: str) -> None:
    channels = 1 if colour == "gray" else 3
    means, stds = [mean * (i + 1) / channels for i in range(channels)], [std] * channels
    batch = Preprocess(colour, means, stds)(torch.from_numpy(frames)).numpy()
    np.testing.assert_allclose(batch, reference_batch(frames, colour, means, stds), atol=3e-5)


@pytest.mark.parametrize("colour", ["gray", "rgb"])
def test_every_known_mistake_gets_its_own_name(colour: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    mean, std = ((0.3,), (0.2,)) if colour == "gray" else ((0.5, 0.4, 0.3), (0.3, 0.25, 0.2))
    as_rgb = frames[..., ::-1] / 255.0
    unit = (as_rgb @ [0.299, 0.587, 0.114])[..., np.newaxis] if colour == "gray" else as_rgb
    bgr_unit = (as_rgb[..., ::-1] @ [0.299, 0.587, 0.114])[..., np.newaxis] if colour == "gray" else as_rgb[..., ::-1]
    m, s = np.array(mean), np.array(std)
    cases = {
        None: (unit - m) / s,
        "channels are swapped (RGB/BGR)": (bgr_unit - m) / s,
        "mean and std are missing": unit,
        "the mean is missing": unit / s,
        "the std is missing": unit - m,
        "wrong scale: 0..255 normalized with statistics of 0..1": (unit * 255 - m) / s,
        "wrong scale: 0..1 normalized with statistics of 0..255": (unit - m * 255) / (s * 255),
        "wrong scale: raw 0..255, neither scaled nor normalized": unit * 255,
        "the batch is not what the input contract says (no known mistake)": (unit - m) / s + 0.1,
    }
    if colour == "rgb":
        cases["mean and std are in the wrong channel order"] = (unit - m[::-1]) / s[::-1]
    for name, batch in cases.items():
        assert fault(frames, np.moveaxis(batch, 3, 1), colour, mean, std) == name


def test_tinted_frames_show_a_swap_that_grey_ones_hide() -> None:
    grey = np.full((1, 2, 2, 3), 200, dtype=np.uint8)
    assert tinted(grey)[0, 0, 0].tolist() == [100, 150, 200]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for name, content in (("text.onnx", b"not a model, " * 9), ("empty.onnx", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            onnx_graph.load(tmp_path / name)
    with pytest.raises(InputError, match=r"missing\.onnx: cannot be read"):
        onnx_graph.load(tmp_path / "missing.onnx")


def copying(inputs: list[str], outputs: list[str], version: int = 20) -> onnx.ModelProto:
    def value(name: str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 2])

    nodes = [onnx.helper.make_node("Identity", [i], [o]) for i, o in zip(inputs, outputs, strict=True)]
    graph = onnx.helper.make_graph(nodes, "g", [value(i) for i in inputs], [value(o) for o in outputs])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)], ir_version=10)


def test_compose_joins_by_name_and_keeps_the_order_of_outputs(tmp_path: Path) -> None:
    post = copying(["raw.b", "raw.a"], ["y", "a"])
    model = onnx_graph.composed(
        copying(["frames"], ["batch"]), core_of("batch", "a", "b"), post, ["y", "a"], {"task": "t"}
    )
    onnx_graph.save(model, tmp_path / "m.onnx")
    y, a = infer_onnx(tmp_path / "m.onnx", np.array([[1.0, 2.0]], dtype=np.float32))
    np.testing.assert_array_equal(y, [[2, 4]])
    np.testing.assert_array_equal(a, [[1, 2]])
    assert [(item.key, item.value) for item in model.metadata_props] == [("task", "t")]


def core_of(name: str, *outputs: str) -> onnx.ModelProto:
    """Output i is (i + 1) times the input, so that an exchange of outputs shows."""
    model = copying([name], [outputs[0]])
    for before, output in itertools.pairwise(outputs):
        model.graph.node.append(onnx.helper.make_node("Add", [before, name], [output]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch", 2]))
    return model


def test_parts_that_do_not_fit_are_an_error() -> None:
    pre, core, post = copying(["frames"], ["batch"]), core_of("batch", "a"), copying(["raw.a"], ["y"])
    with pytest.raises(Error, match="do not fit together"):
        onnx_graph.composed(copying(["frames"], ["batch"], 19), core, post, ["y"], {})
    with pytest.raises(Error, match="the task needs"):
        onnx_graph.composed(pre, core, post, ["scores"], {})


def test_clean_removes_notes_at_every_depth_and_unused_opsets() -> None:
    inner = copying(["x"], ["y"]).graph
    inner.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/somebody/net.py")
    model = copying(["frames"], ["batch"])
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("then_branch", inner))
    model.graph.doc_string = model.graph.input[0].doc_string = "/home/somebody"
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.preview", 1))
    onnx_graph.clean(model)
    assert b"somebody" not in model.SerializeToString()
    assert [imported.domain for imported in model.opset_import] == [""]


def test_save_refuses_a_graph_that_is_not_valid(tmp_path: Path) -> None:
    model = copying(["frames"], ["batch"])
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(Error, match=r"bad\.onnx: not a valid ONNX graph"):
        onnx_graph.save(model, tmp_path / "bad.onnx")
    assert not (tmp_path / "bad.onnx").exists()
