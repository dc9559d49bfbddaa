"""Evaluate: the intervals, the rows, the recommendation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from sklearn.metrics import accuracy_score, log_loss

from edge_demo.errors import Error, InputError
from stages import evaluate
from stages.evaluate import recommend
from stages.spec import DataResult, EvaluateConfig, EvaluateResult, ExportResult, QuantizeResult, TrainResult
from stages.trained import load_trained


@pytest.fixture(scope="module")
def result(
    small_data: DataResult,
    small_train: TrainResult,
    small_export: ExportResult,
    small_quantize: QuantizeResult,
    tmp_path_factory: pytest.TempPathFactory,
) -> EvaluateResult:
    config = EvaluateConfig(max_int8_drop=0.02, min_accuracy=0.5)
    out_dir = tmp_path_factory.mktemp("evaluate")
    return evaluate.run(config, small_data, small_train, small_export, small_quantize, out_dir=out_dir)


def test_there_is_one_row_per_engine_on_the_whole_test_split(result: EvaluateResult) -> None:
    assert [(row.runtime, row.precision, row.n) for row in result.rows] == [
        ("torch", "fp32", 397),
        ("onnxruntime", "fp32", 397),
        ("openvino", "fp32", 397),
        ("onnxruntime", "int8", 397),
        ("openvino", "int8", 397),
    ]
    assert all(row.ci95[0] < row.metrics["accuracy"] < row.ci95[1] for row in result.rows)


def test_fp32_is_torch_in_every_runtime(result: EvaluateResult) -> None:
    for row in result.rows[:3]:
        assert row.agreement == 1.0
        assert row.max_abs_logits < 1e-3
    assert min(row.max_abs_logits for row in result.rows[3:]) > 1e-3


def test_torch_row_is_what_sklearn_says(
    result: EvaluateResult, small_data: DataResult, small_train: TrainResult
) -> None:
    truth = np.load(small_data.folder / "test.truth.npy")
    deployed = load_trained(small_data, small_train)
    with torch.inference_mode():
        scores = deployed(torch.from_numpy(np.load(small_data.folder / "test.frames.npy")))[0].numpy()
    metrics = result.rows[0].metrics
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, scores.argmax(1)))
    assert metrics["nll"] == pytest.approx(log_loss(truth, scores), abs=1e-4)


def test_predictions_are_those_of_what_is_recommended(result: EvaluateResult, small_data: DataResult) -> None:
    saved = np.load(result.folder / "predictions.npz", allow_pickle=False)
    truth = np.load(small_data.folder / "test.truth.npy")
    row = next(row for row in result.rows if (row.runtime, row.precision) == ("onnxruntime", result.recommended))
    np.testing.assert_array_equal(saved["truth"], truth)
    assert (saved["answer"] == truth).mean() == pytest.approx(row.metrics["accuracy"])
    assert saved["ids"][:2].tolist() == ["test/0", "test/1"]
    assert {name: saved[name].dtype for name in ("truth", "answer", "score")} == {
        "truth": np.int64,
        "answer": np.int64,
        "score": np.float32,
    }


def test_drop_is_fp32_minus_int8(result: EvaluateResult) -> None:
    accuracy = {(row.runtime, row.precision): row.metrics["accuracy"] for row in result.rows}
    for runtime, drop in result.int8_drop.items():
        assert drop == accuracy[runtime, "fp32"] - accuracy[runtime, "int8"]
    assert result.recommended == "int8"
    assert result.gates[0].passed


@pytest.mark.parametrize(
    ("passed", "drops", "precision", "reason"),
    [
        (True, (0.0, 0.003), "int8", "INT8 loses at most 0.30 points of accuracy on test in openvino"),
        (True, (-0.002, -0.001), "int8", "INT8 gains at least 0.10 points of accuracy on test in openvino"),
        (True, (0.0, 0.0031), "fp32", "INT8 loses 0.31 points of accuracy on test in openvino"),
        (False, (0.0, 0.0), "fp32", "INT8 loses 4.00 points of accuracy on val"),
    ],
)
def test_int8_is_recommended_only_when_it_holds_on_val_and_in_both_runtimes(
    passed: bool, drops: tuple[float, float], precision: str, reason: str, small_quantize: QuantizeResult
) -> None:
    quantized = small_quantize.model_copy(update={"passed": passed, "drop": 0.0 if passed else 0.04})
    by_runtime = dict(zip(("onnxruntime", "openvino"), drops, strict=True))
    chosen, why = recommend(quantized, by_runtime, 0.003, "accuracy", 10000)
    assert chosen == precision
    assert why.startswith(reason)
    assert "n = " in why


def test_fp32_stays_where_the_search_kept_it(small_quantize: QuantizeResult) -> None:
    kept = small_quantize.model_copy(update={"chosen": "FP32", "reason": "INT8 is slower than FP32 in both runtimes"})
    assert recommend(kept, {"onnxruntime": 0.0}, 0.003, "accuracy", 100) == ("fp32", kept.reason)


def test_the_accuracy_gate_takes_the_worst_runtime_of_what_ships(
    small_data: DataResult,
    small_train: TrainResult,
    small_export: ExportResult,
    small_quantize: QuantizeResult,
    tmp_path: Path,
) -> None:
    config = EvaluateConfig(min_accuracy=1.0, max_int8_drop=0.02)
    result = evaluate.run(config, small_data, small_train, small_export, small_quantize, out_dir=tmp_path)
    shipped = [r.metrics["accuracy"] for r in result.rows if r.precision == result.recommended and r.runtime != "torch"]
    (gate,) = result.gates
    assert (gate.passed, gate.value, gate.stop) == (False, min(shipped), False)
    assert "n = 397" in gate.message


def test_a_model_of_nan_is_an_error(
    small_data: DataResult,
    small_train: TrainResult,
    small_export: ExportResult,
    small_quantize: QuantizeResult,
    tmp_path: Path,
) -> None:
    core = onnx.load(small_export.folder / "core.onnx")
    bias = next(tensor for tensor in core.graph.initializer if tensor.name == core.graph.node[-1].input[2])
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, dtype=np.float32), bias.name))
    onnx.save(core, tmp_path / "core.onnx")
    broken = small_export.model_copy(update={"core": str(tmp_path / "core.onnx")})
    with pytest.raises(Error, match="NaN or infinity"):
        evaluate.run(EvaluateConfig(), small_data, small_train, broken, small_quantize, out_dir=tmp_path)


def test_a_missing_model_is_named(
    small_data: DataResult,
    small_train: TrainResult,
    small_export: ExportResult,
    small_quantize: QuantizeResult,
    tmp_path: Path,
) -> None:
    gone = small_quantize.model_copy(update={"folder": tmp_path})
    with pytest.raises(InputError, match=r"int8\.onnx"):
        evaluate.run(EvaluateConfig(), small_data, small_train, small_export, gone, out_dir=tmp_path)
