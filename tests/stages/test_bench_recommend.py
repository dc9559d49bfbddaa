from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stages.bench import rows
from stages.bench.document import Accuracy, Difference, VariantRow
from stages.bench.method import Lab, Plan, Record, measure
from stages.bench.model_file import ModelFile
from stages.bench.recommend import recommend
from stages.bench.variants import Variant
from stages.spec import ignore

FAKE = (sys.executable, str(Path(__file__).with_name("bench_fake_worker.py")))
PLAN = Plan(launches=1, rounds=6, slice_s=0.01, rewarm_s=0.0, min_runs=1, warm_cap_s=0.1)
COST_US = {"ort-fp32": 30, "ov-fp32": 20, "ov-bf16": 15, "ort-int8": 29.9, "ov-int8": 10}

Measured = tuple[dict[str, Record], dict[str, VariantRow], rows.Host]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Rows whose true costs are known: `COST_US` per inference."""
    variants = []
    for name, cost in COST_US.items():
        model = ModelFile(Path(f"ok-{cost}.onnx"), "m.onnx", "0" * 64, 1, "fp32")
        runtime = "openvino" if name.startswith("ov") else "onnxruntime"
        variants.append(Variant(name, runtime, name.split("-")[1], "f32", 1, model))
    records, duplicate = measure(variants, Lab(tmp_path_factory.mktemp("recommend"), 0, PLAN, ignore, FAKE))
    base = records["ort-fp32"]
    host = rows.judge_host(list(records.values()), rows.duplicate_ratios(duplicate, base, 1, 0), 0)
    return records, {name: rows.row(record, base, 1, host) for name, record in records.items()}, host


def _with_drop(row: VariantRow, drop: float) -> VariantRow:
    value = 0.99 - drop
    accuracy = Accuracy(
        metric="accuracy", value=value, n=1000, of=10000, ci95=(value - 0.01, value + 0.005), metrics={}, vs_fp32=-drop
    )
    return row.model_copy(update={"accuracy": accuracy})


def _recommend(measured: Measured, drops: dict[str, float], because: str = "") -> tuple[str, str]:
    records, made, host = measured
    chosen = recommend({n: _with_drop(made[n], drop) for n, drop in drops.items()}, records, 1, host, because)
    return chosen.variant, chosen.reason


def test_the_fastest_that_is_as_accurate(measured: Measured) -> None:
    variant, reason = _recommend(measured, {"ort-fp32": 0.0, "ov-fp32": 0.0, "ort-int8": 0.001, "ov-int8": 0.003})
    assert variant == "ov-int8"
    assert "OpenVINO INT8" in reason
    assert "3.00x [3.00, 3.00] the speed of ort-fp32" in reason
    assert "accuracy 0.9870 [0.9770, 0.9920], n=1000" in reason


def test_int8_that_loses_accuracy_means_keep_fp32(measured: Measured) -> None:
    variant, reason = _recommend(measured, {"ort-fp32": 0.0, "ov-fp32": 0.0, "ov-int8": 0.008})
    assert variant == "ov-fp32"
    assert reason.startswith("keep FP32. OpenVINO FP32")
    assert "accuracy -0.8 points against FP32 (n=1000, limit -0.3)" in reason


def test_int8_that_is_not_faster_beyond_the_noise_floor_means_keep_fp32(measured: Measured) -> None:
    variant, reason = _recommend(measured, {"ort-fp32": 0.0, "ort-int8": 0.0})
    assert variant == "ort-fp32"
    assert "INT8 (ort-int8): 1.00x, noise floor 1.0 %; not faster than ort-fp32 beyond the noise floor" in reason


def test_the_bundle_s_own_verdict_on_int8_is_kept(measured: Measured) -> None:
    variant, reason = _recommend(measured, {"ort-fp32": 0.0, "ov-int8": 0.0}, because="INT8 dropped 0.9 points on test")
    assert variant == "ort-fp32"
    assert "the bundle recommends FP32: INT8 dropped 0.9 points on test" in reason


def test_a_row_that_failed_is_never_recommended(measured: Measured) -> None:
    records, made, host = measured
    failed = made["ov-int8"].model_copy(update={"status": "failed", "ratio": None})
    chosen = recommend({"ort-fp32": made["ort-fp32"], "ov-int8": failed}, records, 1, host, "")
    assert chosen.variant == "ort-fp32"
    assert "accuracy was not measured" in chosen.reason


@pytest.mark.parametrize("cosine", [0.6, None])
def test_a_fast_row_with_other_outputs_is_out(measured: Measured, cosine: float | None) -> None:
    records, made, host = measured
    wrong = Difference(baseline="ort-fp32", n=4, agreement=None, max_abs=None, cosine=cosine)
    broken = made["ov-bf16"].model_copy(update={"difference": wrong})
    assert recommend({"ort-fp32": made["ort-fp32"], "ov-bf16": broken}, records, 1, host, "").variant == "ort-fp32"


def test_speeds_that_were_not_compared_decide_nothing(measured: Measured) -> None:
    records, made, host = measured
    unpaired = {name: row.model_copy(update={"ratio": None}) for name, row in made.items()}
    chosen = recommend(unpaired, records, 1, host, "")
    assert chosen.variant == "ort-fp32"
    assert "speeds were not compared" in chosen.reason
    assert "nothing measured here is faster" not in chosen.reason
    assert "keep FP32" not in chosen.reason
