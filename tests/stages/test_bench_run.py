"""Real runs, in both runtimes, of a model whose answers are known: the class is the brightest colour of the frame."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError
from rich.console import Console

from edge_demo.bundle import pack, write_bundle
from edge_demo.errors import InputError
from edge_demo.image import write_png
from stages.bench import run, stage, table, to_json
from stages.bench.document import BenchDocument
from stages.bench.method import Plan
from stages.bench.model_file import QUANTIZED_ONNX, scan
from stages.bench.render import cells
from stages.bench.target import open_target
from stages.spec import BenchConfig, BundleResult, Step

SHORT = Plan(launches=1, rounds=6, slice_s=0.01, rewarm_s=0.001, min_runs=3, warm_cap_s=0.02, warm_window_s=0.005)
LABELS = ("blue", "green", "red")
N_EVAL, N_WRONG = 40, 2


def brightest(*, quantized: bool = False, width: str | int = 16, extra: list[Any] | None = None) -> onnx.ModelProto:
    """uint8 (N, 16, W, 3) BGR -> scores (N, 3), softmax of the channel means; `quantized`: QDQ around Conv."""
    weights = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    nodes = [
        helper.make_node("Transpose", ["frames"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["nchw"], ["batch"], to=TensorProto.FLOAT),
    ]
    constants = [numpy_helper.from_array(weights, "weights")]
    names = ("batch", "weights")
    if quantized:
        constants = [
            numpy_helper.from_array(np.array(1.0, np.float32), "a_scale"),
            numpy_helper.from_array(np.array(0, np.uint8), "a_zero"),
            numpy_helper.from_array((weights * 127).astype(np.int8), "weights"),
            numpy_helper.from_array(np.full(3, 1 / 127, np.float32), "w_scale"),
            numpy_helper.from_array(np.zeros(3, np.int8), "w_zero"),
        ]
        nodes += [
            helper.make_node("QuantizeLinear", ["batch", "a_scale", "a_zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "a_scale", "a_zero"], ["dq"]),
            helper.make_node("DequantizeLinear", ["weights", "w_scale", "w_zero"], ["dw"], axis=0),
        ]
        names = ("dq", "dw")
    nodes.append(helper.make_node("Conv", list(names), ["mixed"]))
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["mixed", "a_scale", "a_zero"], ["q2"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q2", "a_scale", "a_zero"], ["dq2"]))
    nodes += [
        helper.make_node("GlobalAveragePool", ["dq2" if quantized else "mixed"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
        helper.make_node("Softmax", ["embedding"], ["scores"]),
        *(extra or []),
    ]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 3]),
    ]
    if extra:
        outputs.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["N", 3]))
    inputs = [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 16, width, 3])]
    graph = helper.make_graph(nodes, "brightest", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets if extra else opsets[:1], ir_version=10)
    onnx.checker.check_model(model)
    return model


def coloured(n: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Noisy frames (n, 16, 16, 3), the brightest channel of each known."""
    rng, truths = np.random.default_rng(0), [i % 3 for i in range(n)]
    frames = rng.integers(0, 100, (n, 16, 16, 3), dtype=np.uint8)
    for frame, truth in zip(frames, truths, strict=True):
        frame[..., truth] += 60
    return frames, truths


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with both precisions; 2 of the 40 eval labels are wrong on purpose."""
    folder = tmp_path_factory.mktemp("bench") / "bundle"
    for name in ("model", "golden", "eval"):
        (folder / name).mkdir(parents=True)
    outputs = [{"name": name, "dtype": "float32", "shape": (-1, 3)} for name in ("scores", "embedding")]
    variants = []
    for precision in ("fp32", "int8"):
        onnx.save(brightest(quantized=precision == "int8"), folder / f"model/{precision}.onnx")
        facts = {"precision": precision, "file": f"model/{precision}.onnx", "opset": 20, "tolerances": ()}
        variants.append({**facts, "outputs": outputs})
        for name in ("npz", "json"):
            (folder / f"golden/{precision}.{name}").write_text("[]")
    frames, truths = coloured(N_EVAL)
    for i, frame in enumerate(frames):
        (folder / f"eval/{i}.png").write_bytes(write_png(frame))
    (folder / "golden/0.png").write_bytes(write_png(frames[0]))
    stated = [(truth + 1) % 3 if i < N_WRONG else truth for i, truth in enumerate(truths)]
    (folder / "eval/truth.json").write_text(json.dumps(stated))
    both = ("fp32", "int8")
    write_bundle(
        folder,
        {
            "min_runner": "0.1.0", "name": "colours", "version": "1.0.0", "task": "classify", "labels": LABELS,
            "input": {"size_wh": (16, 16), "colour": "rgb", "mean": (0.0,) * 3, "std": (1.0,) * 3},
            "variants": variants,
            "golden": {
                "frames": ("golden/0.png",), "pixels_sha256": ("0" * 64,), "batch_sha256": "0" * 64,
                "outputs": {precision: f"golden/{precision}.npz" for precision in both},
                "decoded": {precision: f"golden/{precision}.json" for precision in both},
            },
            "eval": {"frames": [f"eval/{i}.png" for i in range(N_EVAL)], "truth": "eval/truth.json", "of": 500},
            "recommended": "int8", "reason": "as accurate as FP32",
        },
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def measured(bundle: Path) -> tuple[BenchDocument, list[Step]]:
    """One real benchmark of the bundle."""
    steps: list[Step] = []
    return stage.bench_target(bundle, BenchConfig(), on_step=steps.append, plan=SHORT), steps


def test_every_variant_is_measured(measured: tuple[BenchDocument, list[Step]]) -> None:
    document, _ = measured
    assert [row.id for row in document.variants] == ["ort-fp32-t1", "ov-fp32-t1", "ort-int8-t1", "ov-int8-t1"]
    assert [row.reason for row in document.variants] == [""] * 4
    for row in document.variants:
        assert len(row.rounds) == SHORT.launches * SHORT.rounds
        assert row.cold
        assert min(row.cold.import_ms, row.cold.load_ms, row.cold.first_ms) > 0
        assert row.memory
        assert row.memory.rss_base is not None
        assert row.memory.vmhwm is not None
        assert 1e6 < row.memory.rss_base < row.memory.vmhwm
        assert row.latency_us
        assert row.latency_us.n == sum(entry.n for entry in row.rounds)
        assert row.latency_us.min <= row.latency_us.p50 <= row.latency_us.max
        assert row.fps
        assert (row.fps.median is None) == (row.fps.clean_slices < 5) == bool(row.fps.reason)
        assert row.ratio
        assert row.ratio.baseline == document.baseline == "ort-fp32-t1"
        assert row.config_effective["precision"] == "f32"
        assert row.config_effective["threads"] == 1


def test_accuracy_is_that_of_the_labels_with_its_interval(measured: tuple[BenchDocument, list[Step]]) -> None:
    document, _ = measured
    for row in document.variants:
        assert row.accuracy
        assert row.accuracy.value == pytest.approx((N_EVAL - N_WRONG) / N_EVAL)
        assert (row.accuracy.n, row.accuracy.of) == (N_EVAL, 500)
        assert row.accuracy.ci95[0] < row.accuracy.value < row.accuracy.ci95[1] < 1.0
        assert row.accuracy.vs_fp32 == 0.0
        assert row.difference
        assert row.difference.agreement == 1.0
        assert row.difference.max_abs is not None
        assert row.difference.max_abs < (1e-3 if row.precision == "fp32" else 2.0)


def test_what_ran_is_named(measured: tuple[BenchDocument, list[Step]]) -> None:
    executed = {row.id: row.executed for row in measured[0].variants}
    assert executed["ort-fp32-t1"]["Conv:float"] == 1
    assert executed["ov-fp32-t1"]["Convolution:f32"] == 1
    assert any(key.startswith("QLinearConv") for key in executed["ort-int8-t1"])
    assert not any("u8" in key for key in executed["ov-fp32-t1"] if key.startswith("Conv"))


def test_progress_counts_up_to_its_total(measured: tuple[BenchDocument, list[Step]]) -> None:
    _, steps = measured
    assert [step.done for step in steps] == list(range(len(steps)))
    assert {step.total for step in steps} == {len(steps)}


def test_the_document_survives_json_and_refuses_unknown_keys_and_nan(
    measured: tuple[BenchDocument, list[Step]],
) -> None:
    document, _ = measured
    text = to_json(document)
    plain = json.loads(text)
    assert plain["schema"] == "pipeline.bench/1"
    assert BenchDocument.model_validate_json(text) == document
    with pytest.raises(ValidationError):
        BenchDocument.model_validate({**plain, "surprise": 1})
    with pytest.raises(ValidationError):
        BenchDocument.model_validate({**plain, "seconds": math.nan})


def test_no_path_of_this_machine_is_in_the_document(measured: tuple[BenchDocument, list[Step]], bundle: Path) -> None:
    assert str(bundle.parent) not in to_json(measured[0])
    assert measured[0].command[:3] == ("pipeline", "bench", "colours")


def test_the_table_fits_a_pipe_and_shows_every_row(measured: tuple[BenchDocument, list[Step]]) -> None:
    document, _ = measured
    for _ in range(2):
        shown = io.StringIO()
        Console(width=80, file=shown).print(table(document))
        text = shown.getvalue()
        assert all(row.id in text for row in document.variants)
        assert "95.00 %" in text
        assert "…" not in text
        assert document.recommended.reason.split()[0] in text


def test_where_fps_is_null_the_table_says_cpu_time(measured: tuple[BenchDocument, list[Step]]) -> None:
    row = measured[0].variants[0]
    assert row.fps
    busy = row.model_copy(update={"fps": row.fps.model_copy(update={"median": None, "uncontended_est": 1234.5})})
    assert "~1,234\n(CPU time)" in cells(busy, 1, "wall")
    unknown = row.model_copy(update={"fps": row.fps.model_copy(update={"median": None, "uncontended_est": None})})
    assert cells(unknown, 1, "wall")[2] == "-"


def test_the_stage_writes_bench_json_and_its_summary(
    measured: tuple[BenchDocument, list[Step]], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def instead(
        target: Path, config: BenchConfig, *, json_file: Path, on_step: Callable[[Step], None]
    ) -> BenchDocument:
        assert target == bundle
        json_file.write_text(to_json(measured[0]))
        return measured[0]

    monkeypatch.setattr(stage, "bench_target", instead)
    result = BundleResult(folder=bundle, name="colours", manifest_sha256="0" * 64, size_bytes=1)
    summary = run(BenchConfig(), result, out_dir=tmp_path, on_step=lambda step: None)
    assert BenchDocument.model_validate_json((tmp_path / summary.file).read_text()) == measured[0]
    assert [row.id for row in summary.rows] == [row.id for row in measured[0].variants]
    first, theirs = summary.rows[0], measured[0].variants[0]
    assert theirs.latency_us
    assert first.p50_ms == pytest.approx(theirs.latency_us.p50 / 1000)
    assert first.accuracy == pytest.approx(0.95)
    assert first.size_mb == pytest.approx((bundle / "model/fp32.onnx").stat().st_size / 1e6)
    assert summary.recommended in {row.id for row in summary.rows}


# --- other targets ---------------------------------------------------------------------------------------------------

ONE = Plan(launches=1, rounds=2, slice_s=0.005, rewarm_s=0.001, min_runs=2, warm_cap_s=0.01, warm_window_s=0.005)


def test_a_zipped_bundle_and_a_run_folder_are_targets_too(bundle: Path, tmp_path: Path) -> None:
    zipped = pack(bundle, tmp_path / "colours.edge")
    config = BenchConfig(runtimes=("onnxruntime",), precisions=("fp32",))
    document = stage.bench_target(zipped, config, plan=ONE, json_file=tmp_path / "out.json")
    assert document.variants[0].accuracy
    assert BenchDocument.model_validate_json((tmp_path / "out.json").read_text()) == document
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(InputError, match="no bundle yet"):
        stage.bench_target(tmp_path / "run", config)
    (tmp_path / "run/bundle").symlink_to(bundle)
    assert open_target(tmp_path / "run", tmp_path).name == "colours"


def test_a_plain_model_has_no_accuracy_and_a_runtime_that_refuses_it_one_failed_row(tmp_path: Path) -> None:
    binarizer = helper.make_node("Binarizer", ["embedding"], ["extra"], domain="ai.onnx.ml", threshold=0.5)
    onnx.save(brightest(width="W", extra=[binarizer]), tmp_path / "ml.onnx")
    document = stage.bench_target(tmp_path / "ml.onnx", BenchConfig(), plan=ONE)
    good, bad = document.variants
    assert good.accuracy is None
    assert good.difference
    assert good.difference.max_abs == 0.0
    assert good.difference.cosine == pytest.approx(1.0)
    assert (bad.id, bad.status) == ("ov-fp32-t1", "failed")
    assert "openvino does not load it" in bad.reason
    assert "int8 left out: ml.onnx has only fp32" in document.warnings
    assert any("measured at 1x16x224x3" in warning for warning in document.warnings)
    assert "accuracy was not measured" in document.recommended.reason


def test_a_quantized_plain_model_is_called_int8(tmp_path: Path) -> None:
    onnx.save(brightest(quantized=True), tmp_path / "q.onnx")
    onnx.save(brightest(), tmp_path / "f.onnx")
    assert list(open_target(tmp_path / "q.onnx", tmp_path).models) == ["int8"]
    assert list(open_target(tmp_path / "f.onnx", tmp_path).models) == ["fp32"]


def test_a_quantized_operator_is_found_across_the_chunks_of_a_big_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.bench.model_file.CHUNK", 8)
    (tmp_path / "m").write_bytes(b"x" * 29 + QUANTIZED_ONNX[0] + b"x" * 5)
    assert scan(tmp_path / "m", QUANTIZED_ONNX, hashlib.sha256())
    (tmp_path / "m").write_bytes(b"QuantizeLinear")
    assert not scan(tmp_path / "m", QUANTIZED_ONNX, hashlib.sha256())


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x08\x08garbage"])
def test_a_file_that_is_no_model_is_wrong_input(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.onnx") as caught:
        stage.bench_target(tmp_path / "bad.onnx", BenchConfig(), plan=ONE)
    assert "\n" not in str(caught.value)


def test_other_wrong_targets(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for target, why in ((tmp_path / "absent", "no such file"), (tmp_path / "notes.txt", "not a model or bundle")):
        with pytest.raises(InputError, match=why):
            stage.bench_target(target, BenchConfig())
    with pytest.raises(InputError, match="no such folder"):
        stage.bench_target(tmp_path, BenchConfig(), json_file=tmp_path / "absent/out.json")


def test_the_parent_imports_no_runtime_and_no_training_stack(tmp_path: Path) -> None:
    onnx.save(brightest(), tmp_path / "f.onnx")
    script = f"""
import sys
from pathlib import Path
from stages.bench import stage, table, to_json
from stages.bench.method import Plan
from stages.spec import BenchConfig
plan = Plan(launches=1, rounds=1, slice_s=0.005, rewarm_s=0.0, min_runs=1, warm_cap_s=0.01)
document = stage.bench_target(Path({str(tmp_path / "f.onnx")!r}), BenchConfig(runtimes=("onnxruntime",)), plan=plan)
table(document)
heavy = {{"torch", "onnx", "onnxruntime", "openvino", "nncf", "cv2"}} & set(sys.modules)
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_worker_imports_nothing_a_device_does_not_need(runtime: str, tmp_path: Path) -> None:
    onnx.save(brightest(), tmp_path / "f.onnx")
    script = f"""
import sys
from stages.bench.worker import census, load
request = dict.fromkeys(("jobs", "frames", "pictures", "task", "params", "contract"))
request |= {{"runtime": {runtime!r}, "model": {str(tmp_path / "f.onnx")!r}, "precision": "f32", "threads": 1,
            "spinning": False, "scenario": "single", "fps": 30.0, "shapes": [], "seed": 0}}
census(request)
load(request)
heavy = {{"torch", "onnx", "nncf", "cv2", "pydantic", "rich", "subprocess"}} & set(sys.modules)
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_throughput_and_end_to_end_run_on_real_runtimes(bundle: Path) -> None:
    """Two launches: the second one has the number of jobs the first one found."""
    plan = Plan(launches=2, rounds=3, slice_s=0.01, rewarm_s=0.0, min_runs=8, warm_cap_s=0.0, warm_window_s=0.002)
    config = BenchConfig(scenarios=("throughput", "e2e"), precisions=("fp32",))
    document = stage.bench_target(bundle, config, plan=plan)
    assert [row.reason for row in document.variants] == [""] * 4
    for row in document.variants:
        assert row.accuracy
        assert row.accuracy.value == pytest.approx((N_EVAL - N_WRONG) / N_EVAL)
        assert all(entry.n >= 8 for entry in row.rounds)
    queued, whole = document.variants[1], document.variants[3]
    assert queued.call_path == "async_queue"
    assert str(queued.config_effective["jobs"]) in queued.config_effective["jobs_sweep"]
    assert whole.call_path == "demo_predictor"
    assert whole.stage_us
    assert list(whole.stage_us) == ["decode", "resize", "infer", "result"]
    assert whole.latency_us
    assert sum(whole.stage_us.values()) == pytest.approx(
        sum(entry.wall_s / entry.n for entry in whole.rounds) / len(whole.rounds) * 1e6, rel=0.5
    )


def test_accuracy_alone_times_nothing_and_claims_no_speed(bundle: Path) -> None:
    """The host's state is that of starting up: cold starts and accuracy have no rounds to tell it by."""
    config = BenchConfig(scenarios=("accuracy",), runtimes=("onnxruntime",))
    document = stage.bench_target(bundle, config, plan=SHORT)
    assert [row.id for row in document.variants] == ["ort-fp32-t1-accuracy", "ort-int8-t1-accuracy"]
    for row in document.variants:
        assert row.accuracy
        assert row.accuracy.value == pytest.approx((N_EVAL - N_WRONG) / N_EVAL)
        assert row.difference
        assert row.difference.agreement == 1.0
        assert (row.rounds, row.ratio, row.fps, row.latency_us) == ((), None, None, None)
    assert (document.aa.median, document.aa.ci95) == (None, None)
    assert document.interference is not None
    assert "speeds were not compared" in document.recommended.reason
    assert not any("does not say how long" in warning for warning in document.warnings)


def test_a_shape_or_pictures_for_a_bundle_are_refused(bundle: Path) -> None:
    for given in ({"config": BenchConfig(shapes=("1x16x16x3",))}, {"config": BenchConfig(), "images": bundle}):
        with pytest.raises(InputError, match="has no effect on a bundle"):
            stage.bench_target(bundle, plan=SHORT, **given)  # type: ignore[arg-type]
