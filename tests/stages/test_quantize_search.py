"""The rungs of the INT8 search: which recipes are tried, which one is taken, and what each rung does to a network."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from edge_demo.errors import Error
from stages import data as data_stage
from stages import export, quantize
from stages.quantize import speed
from stages.quantize.bias import corrected
from stages.quantize.calibration import collect, preprocessed
from stages.quantize.fine_tune import fine_tuned, written_back
from stages.quantize.half import halved
from stages.quantize.probe import probed
from stages.quantize.recipes import Recipe, Source, quantized
from stages.quantize.regions import head, tail
from stages.quantize.search import Found, Tools, search
from stages.quantize.sensitivity import sensitivity
from stages.quantize.target import caveat, host_target, reduce_range, resolved
from stages.quantize.torch_graph import OPERATORS, QdqNetwork
from stages.quantize.verdict import inaccurate, slow
from stages.spec import Candidate, DataConfig, DataResult, ExportConfig, QuantizeConfig, ignore

PLAIN = "every operator, minmax"
HEAD = "float from the last layers on, minmax"
ROOT = Path(__file__).parents[2]


def run(model: ModelProto, batch: np.ndarray) -> np.ndarray:
    """Logits as the file says them: unfused, since the fused 16-bit sums of a CPU without VNNI would saturate."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"batch": batch})[0]
    return logits


@pytest.fixture(scope="module")
def batch(small_data: DataResult) -> np.ndarray:
    return collect(QuantizeConfig(images=64), small_data).batch


@pytest.fixture(scope="module")
def val(small_data: DataResult) -> np.ndarray:
    return preprocessed(small_data, np.load(small_data.folder / "val.frames.npy"))


# --- which recipe is taken -------------------------------------------------------------------------------------------


def row(name: str, drop: float = 0.0, times: float = 2.0, sqnr: float = 30.0, spread: float = 0.1) -> Candidate:
    return Candidate(
        name=name,
        metric={"onnxruntime": 0.9 - drop, "openvino": 0.9 - drop},
        paired={"onnxruntime": (0, 0), "openvino": (0, 0)},
        p_value={"onnxruntime": 0.0, "openvino": 0.0},
        sqnr_db=sqnr,
        speed=dict.fromkeys(("onnxruntime", "openvino"), (times, times - spread, times + spread)),
        rounds=15,
        verdict="rejected",
        reason="",
    )


def searched(
    source: Source,
    batch: np.ndarray,
    measure: Callable[[str], Candidate],
    *,
    thorough: bool = False,
    tune: bool = True,
) -> Found:
    fp32 = {"onnxruntime": 0.9, "openvino": 0.9}

    def learn(int8: ModelProto, recipe: Recipe) -> ModelProto:
        changed = copy.deepcopy(int8)
        changed.producer_name = "tuned"
        return changed

    return search(
        Tools(
            source=source,
            measure=lambda name, core: measure(name),
            inaccurate=lambda candidate: inaccurate(candidate, fp32, 0.003, 1000),
            slow=slow,
            loss=lambda candidate: 0.9 - min(candidate.metric.values()) - 1e-6 * (candidate.sqnr_db or 0),
            calibration=batch,
            val=batch,
            fine_tune=learn if tune else None,
            reduce_range=False,
            on_step=ignore,
        ),
        thorough,
    )


def verdicts(found: Found) -> dict[str, str]:
    return {candidate.name: candidate.verdict for candidate in found.rows}


def test_quick_takes_the_first_recipe_that_holds(small_source: Source, batch: np.ndarray) -> None:
    found = searched(small_source, batch, row)
    assert found.chosen is not None
    assert found.chosen.row.name == PLAIN
    assert verdicts(found) == {
        PLAIN: "chosen",
        f"{PLAIN}, bias corrected": "not needed",
        "sensitive nodes float": "not needed",
        "fine-tuned (QAT)": "not needed",
    }
    assert "2.00 times the speed of FP32 in onnxruntime" in found.reason


@pytest.mark.parametrize(
    ("sqnr", "drop", "chosen"), [(32.0, 0.0, ", bias corrected"), (29.0, 0.0, ""), (32.0, 0.02, "")]
)
def test_bias_correction_of_the_recipe_that_holds_is_taken_if_it_has_less_noise_and_holds(
    sqnr: float, drop: float, chosen: str, small_source: Source, batch: np.ndarray
) -> None:
    def measure(name: str) -> Candidate:
        return row(name, drop=drop, sqnr=sqnr) if name.endswith("bias corrected") else row(name)

    found = searched(small_source, batch, measure)
    assert found.chosen is not None
    assert found.chosen.row.name == PLAIN + chosen


def test_a_slow_recipe_makes_way_for_a_faster_one(small_source: Source, batch: np.ndarray) -> None:
    found = searched(small_source, batch, lambda name: row(name, times=0.8 if name == PLAIN else 1.5))
    assert found.chosen is not None
    assert found.chosen.row.name == HEAD
    rejected = next(candidate for candidate in found.rows if candidate.name == PLAIN)
    assert (rejected.verdict, "slower than FP32" in rejected.reason) == ("rejected", True)
    same = next(candidate for candidate in found.rows if candidate.name.startswith("convolutions"))
    assert same.reason == f"the same file as: {PLAIN}"


def test_fp32_stays_when_no_recipe_is_faster_and_nothing_else_is_tried(small_source: Source, batch: np.ndarray) -> None:
    found = searched(small_source, batch, lambda name: row(name, times=0.8))
    assert found.chosen is None
    assert found.reason.startswith(
        "INT8 is slower than FP32 here: 0.80 times the speed of FP32 in onnxruntime and 0.80 in openvino (15 rounds)"
    )
    assert len(found.rows) == 3


def test_one_faster_runtime_is_enough() -> None:
    mixed = row("r").model_copy(update={"speed": {"onnxruntime": (0.9, 0.8, 1.0), "openvino": (1.1, 1.0, 1.2)}})
    assert slow(mixed) == ""


@pytest.mark.parametrize(
    ("good", "ends"),
    [
        ("every operator, minmax, bias corrected", "bias corrected"),
        ("every operator, percentile", "percentile"),
        ("every operator, minmax, 2 sensitive nodes float", "2 sensitive nodes float"),
        ("every operator, minmax, fine-tuned", "fine-tuned"),
    ],
)
def test_the_ladder_climbs_until_accuracy_holds(good: str, ends: str, small_source: Source, batch: np.ndarray) -> None:
    def measure(name: str) -> Candidate:
        return row(name, drop=0.0 if name == good else 0.02 if name == PLAIN else 0.03)

    found = searched(small_source, batch, measure)
    assert found.chosen is not None
    assert found.chosen.row.name == good
    assert found.rows[0].name == PLAIN
    assert "loses 2.00 points" in found.rows[0].reason
    assert [name for name, verdict in verdicts(found).items() if verdict == "chosen"] == [good]
    assert any(name.endswith(ends) for name in verdicts(found))


def test_sensitive_nodes_go_back_to_float_worst_first(small_source: Source, batch: np.ndarray) -> None:
    found = searched(small_source, batch, lambda name: row(name, drop=0.0 if "3 sensitive" in name else 0.03))
    assert found.chosen is not None
    assert found.chosen.recipe.float_nodes == {layer.node for layer in found.sensitivity[:3]}


def test_float_nodes_that_cost_the_speed_end_that_rung(small_source: Source, batch: np.ndarray) -> None:
    found = searched(
        small_source, batch, lambda name: row(name, drop=0.03, times=0.9 if "sensitive" in name else 2), tune=False
    )
    assert found.chosen is None
    assert sum("sensitive" in candidate.name and bool(candidate.metric) for candidate in found.rows) == 1
    assert "no INT8 recipe that is fast keeps the accuracy: the best loses 3.00 points" in found.reason


def test_thorough_takes_the_fastest_and_among_equals_the_least_noise(small_source: Source, batch: np.ndarray) -> None:
    figures = {PLAIN: (2.0, 30.0), HEAD: (1.95, 40.0), "every operator, entropy": (1.2, 60.0)}
    found = searched(
        small_source,
        batch,
        lambda name: row(name, times=figures.get(name, (1.0, 0))[0], sqnr=figures.get(name, (0, 9))[1]),
        thorough=True,
    )
    assert found.chosen is not None
    assert found.chosen.row.name == HEAD
    assert verdicts(found)[PLAIN] == "not needed"
    assert len([candidate for candidate in found.rows if candidate.metric]) == 12  # 2 coverages, 3 methods, bias or not


def test_a_recipe_that_fails_is_a_row(small_source: Source, batch: np.ndarray) -> None:
    def measure(name: str) -> Candidate:
        if name == PLAIN:
            raise Error("model.int8.onnx: openvino does not load it")
        return row(name)

    found = searched(small_source, batch, measure)
    assert found.rows[0].reason == "model.int8.onnx: openvino does not load it"
    assert found.chosen is not None
    with pytest.raises(Error, match="no INT8 recipe works: nope"):
        searched(small_source, batch, lambda name: (_ for _ in ()).throw(Error("nope")))


# --- when a drop is allowed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "p_value", "allowed"),
    [(0.003, 0.0, True), (0.004, 0.5, True), (0.006, 0.06, True), (0.006, 0.05, False), (0.0061, 0.9, False)],
)
def test_a_drop_that_could_be_chance_may_be_twice_the_limit(drop: float, p_value: float, allowed: bool) -> None:
    candidate = row("r", drop=drop).model_copy(update={"p_value": {"onnxruntime": p_value, "openvino": p_value}})
    told = inaccurate(candidate, {"onnxruntime": 0.9, "openvino": 0.9}, 0.003, 500)
    assert (told == "") is allowed
    assert allowed or f"loses {100 * drop:.2f} points on val in onnxruntime (limit 0.30, n = 500" in told


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "flags", "target"),
    [
        ("x86_64", "fpu sse avx2 avx512_vnni", "x86-vnni"),
        ("AMD64", "avx2 avx_vnni", "x86-vnni"),
        ("x86_64", "avx2 avx512f", "x86-avx2"),
        ("x86_64", None, "x86-avx2"),
        ("aarch64", "asimddp", "arm64"),
        ("arm64", None, "arm64"),
    ],
)
def test_the_target_is_what_the_machine_multiplies_with(
    machine: str, flags: str | None, target: str, tmp_path: Path
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    assert host_target(machine, tmp_path / "cpuinfo") == target
    assert resolved("arm64", lambda: target) == "arm64"
    assert resolved("auto", lambda: target) == target


def test_without_vnni_weights_have_seven_bits(small_source: Source) -> None:
    assert [reduce_range(target) for target in ("x86-vnni", "x86-avx2", "arm64")] == [False, True, False]
    for narrow, limit in ((False, 127), (True, 64)):
        model = quantized(small_source, Recipe(reduce_range=narrow))
        weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8]
        assert max(int(np.abs(w.astype(int)).max()) for w in weights) == limit


def test_a_file_for_another_cpu_says_what_was_not_measured() -> None:
    assert caveat("x86-vnni", "x86-vnni") == ""
    assert caveat("x86-avx2", "x86-vnni") == "; speed on x86-avx2 was not measured here"
    assert caveat("arm64", "x86-avx2").endswith("its 8-bit weights may saturate here but not there")


# --- regions ---------------------------------------------------------------------------------------------------------


def test_head_and_tail_of_a_detector() -> None:
    """Two heads on one trunk; the boxes are decoded after their convolution, the scores are not."""
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["a"], "trunk"),
        make("Relu", ["a"], ["b"], "relu"),
        make("Conv", ["b", "w"], ["scores"], "scores"),
        make("Conv", ["b", "w"], ["c"], "boxes"),
        make("Sigmoid", ["c"], ["d"], "sigmoid"),
        make("Mul", ["d", "anchors"], ["boxes"], "decode"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert tail(model) == {"sigmoid", "decode"}
    assert head(model) == {"sigmoid", "decode", "scores", "boxes"}


def test_head_of_the_digits_network_is_its_last_layer(small_source: Source) -> None:
    assert tail(small_source.model) == frozenset()
    (last,) = head(small_source.model)
    assert next(node for node in small_source.model.graph.node if node.name == last).op_type == "Gemm"


# --- sensitivity -----------------------------------------------------------------------------------------------------


def test_sensitivity_finds_the_planted_layer(small_source: Source, batch: np.ndarray) -> None:
    model = copy.deepcopy(small_source.model)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    planted = convolutions[2]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = numpy_helper.to_array(tensors[planted.input[1]]).copy()
    weight[:, 1:] *= 0.01  # per channel of the output one step: all inputs but the first fall below it
    weight[:, 0] = 3.0
    tensors[planted.input[1]].CopyFrom(numpy_helper.from_array(weight, planted.input[1]))
    rows = sensitivity(Source(model, small_source.ranges, "m"), Recipe(), batch)
    assert [layer.sqnr_db for layer in rows] == sorted(layer.sqnr_db for layer in rows)
    assert {layer.node for layer in rows} == {
        node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "Add")
    }


def test_a_node_alone_in_int8_leaves_the_others_float(small_source: Source) -> None:
    node = next(node for node in small_source.model.graph.node if node.op_type == "Conv")
    alone = quantized(small_source, Recipe(), only=node.name)
    assert (
        sum(tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4 for tensor in alone.graph.initializer) == 1
    )


# --- bias correction -------------------------------------------------------------------------------------------------


def test_bias_correction_removes_the_mean_error_of_every_layer(small_source: Source, batch: np.ndarray) -> None:
    int8 = quantized(small_source, Recipe())
    tensors = {tensor.name: tensor for tensor in int8.graph.initializer}
    for name, tensor in tensors.items():
        if tensor.data_type == TensorProto.INT32 and "stem" in name and "zero_point" not in name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 20000, name))
    before, after = (
        means(model, small_source.model, batch) for model in (int8, corrected(int8, small_source.model, batch))
    )
    assert max(before) > 1.0
    assert max(after) < 0.02
    assert [node.op_type for node in int8.graph.node] == [
        node.op_type for node in corrected(int8, small_source.model, batch).graph.node
    ]


def means(int8: ModelProto, fp32: ModelProto, batch: np.ndarray) -> list[float]:
    """Per layer the largest mean error of a channel."""
    found = []
    for node in fp32.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            output = next(other.output[0] for other in int8.graph.node if other.name == node.name)
            want, got = (
                np.concatenate([part for (part,) in probed(model, [name], batch[:64])])
                for model, name in ((fp32, node.output[0]), (int8, output))
            )
            axes = tuple(axis for axis in range(want.ndim) if axis != 1)
            found.append(float(np.abs((want - got).mean(axis=axes)).max()))
    return found


# --- fine-tuning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coverage", ["all", "head-float"])
@pytest.mark.parametrize("narrow", [False, True])
def test_the_torch_reading_of_a_qdq_file_is_the_file(
    coverage: Any, narrow: bool, small_source: Source, batch: np.ndarray, val: np.ndarray
) -> None:
    int8 = corrected(quantized(small_source, Recipe(coverage, reduce_range=narrow)), small_source.model, batch)
    network = QdqNetwork(int8, small_source.model, 64 if narrow else 127)
    with torch.no_grad():
        got = network(torch.from_numpy(val))[0].numpy()
    want = run(int8, val)
    noise = np.square(run(small_source.model, val) - want).mean()
    assert np.square(got - want).mean() < 0.1 * noise  # rounding ties apart, it is INT8's own noise
    again = run(written_back(network, int8), val)
    assert np.square(again - want).mean() < 0.1 * noise


def test_the_torch_reading_of_the_float_file_is_exact(small_source: Source, val: np.ndarray) -> None:
    with torch.no_grad():
        got = QdqNetwork(small_source.model, small_source.model)(torch.from_numpy(val))[0].numpy()
    np.testing.assert_allclose(got, run(small_source.model, val), atol=1e-4)


def test_fine_tuning_brings_a_ruined_file_back(small_source: Source, small_data: DataResult, val: np.ndarray) -> None:
    int8 = quantized(small_source, Recipe())
    tensors = {tensor.name: tensor for tensor in int8.graph.initializer}
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            step = tensors[node.input[1]]
            step.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(step) * np.float32(0.4), step.name))
    frames = np.load(small_data.folder / "train.frames.npy")

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return preprocessed(small_data, frames[rng.choice(len(frames), n, replace=False)])

    def tuned() -> ModelProto:
        return fine_tuned(int8, small_source.model, draw, seed=0, reduce_range=False, on_step=ignore, steps=40)

    first, want = tuned(), run(small_source.model, val)
    before, after = (np.square(run(model, val) - want).mean() for model in (int8, first))
    assert after < 0.3 * before
    assert [node.op_type for node in first.graph.node] == [node.op_type for node in int8.graph.node]
    onnx.checker.check_model(first, full_check=True)
    assert tuned().SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)


def test_an_unknown_operator_cannot_be_fine_tuned() -> None:
    node = helper.make_node("NonMaxSuppression", ["x"], ["y"], "nms")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([node], "g", [value], [value]))
    with pytest.raises(Error, match="operator NonMaxSuppression of nms is not supported"):
        QdqNetwork(model, model)


class Assorted(nn.Module):
    """One of everything the reader of graphs knows, as the exporter writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide = nn.Conv2d(2, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3, bias=False)
        self.linear, self.square = nn.Linear(12, 4), nn.Parameter(torch.randn(12, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.hardswish(self.conv(x))
        x = functional.max_pool2d(functional.relu6(self.wide(x)), 3, 2, 1) - 0.25
        x = x * functional.hardsigmoid(x.mean((2, 3), keepdim=True)) / 1.5
        x = torch.cat([functional.avg_pool2d(x, 2), torch.sigmoid(functional.max_pool2d(x, 2))], dim=1)
        x = torch.relu(x.transpose(2, 3)).amax((2, 3)).reshape(x.shape[0], -1) @ self.square
        return torch.softmax(self.linear(x), dim=1)


def test_every_operator_is_read_as_the_exporter_means_it() -> None:
    torch.manual_seed(0)
    module, x = Assorted().eval(), torch.randn(3, 2, 16, 20)
    program = torch.onnx.export(module, (x,), dynamo=True, opset_version=20, verbose=False)
    assert program is not None
    model = program.model_proto
    assert {node.op_type for node in model.graph.node} <= set(OPERATORS)
    assert len({node.op_type for node in model.graph.node}) >= 14
    with torch.no_grad():
        np.testing.assert_allclose(QdqNetwork(model, model)(x)[0].numpy(), module(x).numpy(), atol=1e-5)


# --- weights in 16 bits ----------------------------------------------------------------------------------------------


def test_weights_in_16_bits_give_the_same_answers_in_half_the_file(small_source: Source, val: np.ndarray) -> None:
    half = halved(small_source.model)
    onnx.checker.check_model(half, full_check=True)
    want, got = run(small_source.model, val), run(half, val)
    assert (want.argmax(1) == got.argmax(1)).all()
    assert 0 < np.abs(want - got).max() < 0.01 * np.abs(want).max()
    assert half.ByteSize() < 0.6 * small_source.model.ByteSize()
    large = copy.deepcopy(small_source.model)
    weight = max(large.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(1e5), weight.name))
    with pytest.raises(Error, match="do not fit into float16"):
        halved(large)


# --- speed -----------------------------------------------------------------------------------------------------------


def test_speed_is_the_median_of_paired_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]

    def takes(ns: int) -> Callable[[], None]:
        def call() -> None:
            # The whole machine slows down by half, for all alike, in the second half of the measurement.
            now[0] += ns if now[0] < 300_000_000 else 2 * ns

        return call

    monkeypatch.setattr(speed, "CLOCK", lambda: now[0])
    assert speed.paired_speed(takes(300_000), takes(100_000)) == pytest.approx((3.0, 3.0, 3.0), rel=0.05)


# --- a network that plain quantization breaks ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hostile_network_ends_within_half_a_point_or_in_fp32_with_the_reason(
    tmp_path: Path,
) -> None:
    spec = importlib.util.spec_from_file_location("hostile", ROOT / "benchmarks" / "hostile.py")
    assert spec is not None
    assert spec.loader is not None
    hostile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hostile)
    for name in ("data", "train", "export", "quantize", "elsewhere"):
        (tmp_path / name).mkdir()
    data = data_stage.run(DataConfig(), out_dir=tmp_path / "data", on_step=ignore)
    data = data.model_copy(update={"folder": tmp_path / "data"})
    train = hostile.trained(data, tmp_path / "train", seed=0, epochs=5)
    exported = export.run(ExportConfig(parity_images=64), data, train, out_dir=tmp_path / "export")
    elsewhere: Any = "arm64" if host_target() != "arm64" else "x86-vnni"
    for folder, target in (("quantize", "auto"), ("elsewhere", elsewhere)):
        config = QuantizeConfig(images=128, target=target)
        result = quantize.run(config, data, train, exported, out_dir=tmp_path / folder)
        plain = next(candidate for candidate in result.candidates if candidate.name == PLAIN)
        assert max(result.val_fp32[name] - value for name, value in plain.metric.items()) > 0.03
        if result.chosen == "FP32":
            assert "slower than FP32" in result.reason or "keeps the accuracy" in result.reason
        else:
            assert result.drop <= 0.0061
