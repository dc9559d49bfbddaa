from __future__ import annotations

import json
import time

import numpy as np
import pytest

from edge_demo.bundle import open_bundle
from edge_demo.errors import Error, InputError
from edge_demo.manifest import InputContract, Resize
from edge_demo.verify import golden_outputs, verify
from stages.bundle import run
from stages.bundle.golden import CANDIDATES, Deployment, choose, enlarged, list_candidates, measure, tolerance
from stages.bundle.samples import npz
from stages.spec import (
    BundleConfig,
    DataResult,
    EvaluateResult,
    EvaluateRow,
    ExportResult,
    ModelConfig,
    ParityRow,
    QuantizeResult,
    TrainResult,
)

LABELS = ("ant", "bee", "cat", "dog")
SIZE_WH = (10, 8)
COUNTS = {"train": 8, "val": 12, "test": 40}


def write_data(folder, channels):
    rng = np.random.default_rng(11)
    folder.mkdir()
    class_counts = {}
    for split, count in COUNTS.items():
        truth = rng.permutation(np.arange(count) % len(LABELS))
        np.save(folder / f"{split}.frames.npy", rng.integers(0, 256, (count, 8, 10, channels), np.uint8))
        np.save(folder / f"{split}.truth.npy", truth.astype(np.int64))
        class_counts[split] = tuple(np.bincount(truth, minlength=4).tolist())
    colour = "gray" if channels == 1 else "rgb"
    return DataResult(
        folder=folder,
        name="insects",
        task="classify",
        labels=LABELS,
        size_wh=SIZE_WH,
        resize=Resize(),
        colour=colour,
        counts=COUNTS,
        class_counts=class_counts,
        digests=dict.fromkeys(COUNTS, "0" * 64),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        dropped={},
    )


def stage_results(root, data, fp32, int8):
    """Results of the earlier stages, with hand-made models in place of trained ones."""
    contract = InputContract(size_wh=data.size_wh, resize=data.resize, colour=data.colour, mean=data.mean, std=data.std)
    metadata = {"task": "classify", "labels": json.dumps(LABELS), "input": contract.model_dump_json()}
    for stage in ("train", "export", "quantize"):
        (root / stage).mkdir()
    (root / "train/best.safetensors").write_bytes(b"weights")
    (root / "export/model.fp32.onnx").write_bytes(fp32.onnx(metadata=metadata))
    (root / "quantize/model.int8.onnx").write_bytes(int8.onnx(metadata=metadata))
    train = TrainResult(
        folder=root / "train",
        task="classify",
        model=ModelConfig(),
        labels=LABELS,
        in_channels=1,
        size_wh=SIZE_WH,
        metric="accuracy",
        val=0.9,
        train=0.95,
        best_epoch=3,
        epochs=4,
        parameters=1220,
        macs=1220,
        seconds=time.perf_counter(),
        cpu_seconds=1.0,
        precision="32-true",
        accelerator="cpu",
        sources={"train.teacher": "7e" * 32},
    )
    parity = ParityRow(
        name="torch -> onnxruntime", n=4, max_abs=0.0, max_rel=0.0, agreement=1.0, tolerance=1e-4, passed=True
    )
    export = ExportResult(folder=root / "export", opset=20, size_bytes=1, parity=(parity,))
    quantize = QuantizeResult(
        folder=root / "quantize",
        metric="accuracy",
        val_fp32={"onnxruntime": 0.9},
        val_int8={"onnxruntime": 0.89},
        drop=0.01,
        max_drop=0.003,
        passed=False,
        sqnr_db=30.0,
        agreement={"onnxruntime": 0.99},
        fused={},
        size_bytes=1,
        calibration={"n": 8},
    )
    rows = tuple(
        EvaluateRow(
            runtime=runtime,
            precision=precision,
            n=40,
            metrics={"accuracy": 0.875, "nll": 0.25},
            ci95=(0.74, 0.9454),
            agreement=1.0,
            max_abs_logits=0.0,
        )
        for runtime, precision in (("torch", "fp32"), ("onnxruntime", "fp32"), ("openvino", "int8"))
    )
    evaluate = EvaluateResult(
        folder=root, metric="accuracy", rows=rows, int8_drop={}, recommended="fp32", reason="INT8 drops 1 point."
    )
    return data, train, export, quantize, evaluate


@pytest.fixture
def inputs(tmp_path, make_tiny_model):
    data = write_data(tmp_path / "data", channels=3)
    return stage_results(tmp_path, data, make_tiny_model(0), make_tiny_model(1))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CONFIG = BundleConfig(name="bugs", golden=5, eval_images=16, decode={"roi": 0.5}, licence="Apache-2.0")


def test_the_stage_writes_a_bundle_that_verifies(inputs, tmp_path, make_tiny_model):
    out = tmp_path / "bundle"
    out.mkdir()
    result = run(CONFIG, *inputs, out_dir=out)
    assert verify(out).ok
    bundle = open_bundle(out)
    manifest = bundle.manifest
    assert result.manifest_sha256 == bundle.manifest_sha256
    assert result.size_bytes == sum(len(data) for data in contents(out).values())
    assert (manifest.name, manifest.labels, manifest.decode) == ("bugs", LABELS, {"roi": 0.5})
    assert manifest.recommended == "fp32"
    assert manifest.provenance["train"]["sources"] == {"train.teacher": "7e" * 32}
    assert manifest.variant("int8").metrics == {"openvino.accuracy": 0.875, "openvino.nll": 0.25}
    batch = bundle.batch(bundle.frames(manifest.golden.frames))
    for precision, seed in (("fp32", 0), ("int8", 1)):
        for name, want in make_tiny_model(seed).reference(batch).items():
            np.testing.assert_allclose(golden_outputs(bundle, precision)[name], want, rtol=1e-4, atol=1e-5)


def test_the_sample_is_stratified_test_data_with_its_truth(inputs, tmp_path):
    out = tmp_path / "bundle"
    run(CONFIG, *inputs, out_dir=out)
    batch, truths = open_bundle(out).eval_sample()
    data = inputs[0]
    frames, truth = np.load(data.folder / "test.frames.npy"), np.load(data.folder / "test.truth.npy")
    assert np.bincount(truths).tolist() == [4, 4, 4, 4]
    for frame, label in zip(batch, truths, strict=True):
        (where,) = np.flatnonzero((frames == frame).all(axis=(1, 2, 3)))
        assert truth[where] == label
    assert open_bundle(out).manifest.eval.of == 40


def test_golden_frames_cover_classes_and_exercise_the_resize(inputs, tmp_path):
    out = tmp_path / "bundle"
    run(CONFIG, *inputs, out_dir=out)
    bundle = open_bundle(out)
    frames = bundle.frames(bundle.manifest.golden.frames)
    assert [frame.shape for frame in frames] == [(8, 10, 3), (24, 35, 3), (8, 10, 3), (24, 35, 3), (8, 10, 3)]
    data = inputs[0]
    val, truth = np.load(data.folder / "val.frames.npy"), np.load(data.folder / "val.truth.npy")
    seen = [truth[np.flatnonzero((val == frame).all(axis=(1, 2, 3)))[0]] for frame in frames[::2]]
    assert seen[0] == 0
    assert seen[-1] == 3


def test_gray_frames_become_bgr_on_the_device(tmp_path, make_tiny_model):
    data = write_data(tmp_path / "data", channels=1)
    out = tmp_path / "bundle"
    run(CONFIG, *stage_results(tmp_path, data, make_tiny_model(0), make_tiny_model(0)), out_dir=out)
    batch, _ = open_bundle(out).eval_sample()
    assert batch.shape == (16, 8, 10, 3)
    assert (batch[..., 0] == batch[..., 2]).all()


def test_writing_twice_gives_the_same_bytes_and_no_machine_paths(inputs, tmp_path):
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    run(CONFIG, *inputs, out_dir=first)
    data, train, *rest = inputs
    later = train.model_copy(update={"seconds": train.seconds + 100})
    run(CONFIG, data, later, *rest, out_dir=second)
    assert contents(first) == contents(second)
    for name, content in contents(first).items():
        assert str(tmp_path).encode() not in content, name


def test_the_card_tells_metrics_with_n_and_interval(inputs, tmp_path):
    out = tmp_path / "bundle"
    run(CONFIG, *inputs, out_dir=out)
    card = (out / "README.md").read_text()
    assert "| onnxruntime | fp32 | 0.8750 | 0.7400 .. 0.9454 | 40 | 100.00% |" in card
    assert "Recommended: **fp32**. INT8 drops 1 point." in card
    assert "Licence of the model: Apache-2.0. Licence of the data: unstated." in card
    assert "composed" not in card


def test_composed_data_is_called_composed(inputs, tmp_path):
    data, *rest = inputs
    run(CONFIG, data.model_copy(update={"composed": True}), *rest, out_dir=tmp_path / "bundle")
    assert "data is composed" in (tmp_path / "bundle/README.md").read_text()


def test_a_name_is_taken_from_the_data_when_none_is_given(inputs, tmp_path):
    result = run(BundleConfig(eval_images=4), *inputs, out_dir=tmp_path / "bundle")
    assert result.name == "insects"


def test_more_eval_images_than_test_has_takes_them_all(inputs, tmp_path):
    run(BundleConfig(eval_images=1000), *inputs, out_dir=tmp_path / "bundle")
    assert len(open_bundle(tmp_path / "bundle").manifest.eval.frames) == 40


# --- refusals --------------------------------------------------------------------------------------------------------


def test_decode_parameters_out_of_range_are_refused(inputs, tmp_path):
    with pytest.raises(InputError, match=r"decode\.roi: 3"):
        run(BundleConfig(decode={"roi": 3}), *inputs, out_dir=tmp_path / "bundle")


def test_a_model_of_other_labels_is_refused(inputs, tmp_path):
    data, train, *rest = inputs
    other = train.model_copy(update={"labels": ("a", "b", "c", "d")})
    with pytest.raises(InputError, match="trained on other labels"):
        run(CONFIG, data, other, *rest, out_dir=tmp_path / "bundle")


def test_a_model_that_gives_nan_is_not_shipped(inputs, tmp_path, make_tiny_model):
    broken = make_tiny_model(0)
    broken.b[:] = np.nan
    (tmp_path / "export/model.fp32.onnx").write_bytes(broken.onnx())
    with pytest.raises(Error, match="the fp32 model's output scores is not finite"):
        run(CONFIG, *inputs, out_dir=tmp_path / "bundle")


def test_a_model_of_other_normalization_is_not_shipped(inputs, tmp_path):
    data, *rest = inputs
    with pytest.raises(InputError, match="its metadata 'input' is"):
        run(CONFIG, data.model_copy(update={"mean": (0.1, 0.1, 0.1)}), *rest, out_dir=tmp_path / "bundle")


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "precision", "want"),
    [
        (0.0, "fp32", 2e-5),  # the floor: 1e-5 of the largest value, 2
        (1e-7, "fp32", 2e-5),
        (3.21e-3, "fp32", 3.3e-2),  # ten times, rounded up to two digits
        (0.0, "int8", 4e-2),
        (0.1234, "int8", 1.3),
    ],
)
def test_tolerance_is_ten_times_the_measured_or_the_floor(difference, precision, want):
    expected = np.array([2.0, -1.0, 0.5])
    got = expected + np.array([0, difference, 0])
    assert tolerance(got, expected, precision) == pytest.approx(want, rel=1e-9)


def test_tolerance_of_an_output_of_zeros_is_above_zero():
    assert tolerance(np.zeros(3), np.zeros(3), "fp32") > 0


def deployment():
    return Deployment(models={}, task="classify", labels=LABELS, params={"roi": 1.0})


def raw_of(scores):
    return {"scores": np.array(scores, np.float32), "embedding": np.zeros((len(scores), 2), np.float32)}


def test_candidates_are_spread_over_classes_and_slots(tmp_path):
    data = write_data(tmp_path / "data", channels=3)
    candidates = list_candidates(data, 4)
    slots = [candidate.slot for candidate in candidates]
    assert slots == sorted(slots)
    assert set(slots) == {0, 1, 2, 3}
    assert max(slots.count(slot) for slot in slots) <= CANDIDATES
    assert len(list_candidates(data, 100)) == COUNTS["val"]


def test_a_frame_on_the_border_between_two_answers_is_not_chosen(tmp_path):
    candidates = list_candidates(write_data(tmp_path / "data", channels=3), 1)[:3]
    border, clear, clearer = [0.41, 0.40, 0.1, 0.09], [0.0, 0.8, 0.2, 0.0], [0.0, 0.0, 0.0, 1.0]
    reference = raw_of([border, clear, clearer])
    other = raw_of([[0.40, 0.41, 0.1, 0.09], clear, clearer])
    got = {"fp32": {"onnxruntime": reference, "openvino": other}}
    tolerances = {"fp32": measure(got["fp32"], "fp32", "classify")}
    assert choose(candidates, deployment(), got, tolerances) == [candidates[1]]


def test_a_frame_within_the_tolerance_of_another_answer_is_not_chosen(tmp_path):
    candidates = list_candidates(write_data(tmp_path / "data", channels=3), 1)[:2]
    close, clear = (
        raw_of([[0.41, 0.40, 0.1, 0.09], [0.0, 0.8, 0.2, 0.0]]),
        raw_of([[0.42, 0.39, 0.1, 0.09], [0, 0.8, 0.2, 0]]),
    )
    got = {"fp32": {"onnxruntime": close, "openvino": clear}}
    tolerances = {"fp32": measure(got["fp32"], "fp32", "classify")}
    assert next(row.atol for row in tolerances["fp32"] if row.runtime == "openvino") == pytest.approx(0.1, rel=0.1)
    assert choose(candidates, deployment(), got, tolerances) == [candidates[1]]


def test_npz_reads_back_and_does_not_state_the_time(tmp_path, monkeypatch):
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1, 2], np.int64)}
    first = npz(arrays)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))
    assert npz(dict(reversed(arrays.items()))) == first
    (tmp_path / "x.npz").write_bytes(first)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array)


def test_enlarged_repeats_pixels_and_the_last_column():
    frame = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = enlarged(frame)
    assert large.shape == (6, 11, 3)
    np.testing.assert_array_equal(large[::3, :6:3], frame)
    assert (large[:3, 6:] == frame[0, 1]).all()
