"""Masks the whole way, small: composed scenes -> trained, exported, INT8, evaluated, bundled; negatives and void."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import jaccard_score
from torch import nn

from edge_demo.bundle import open_bundle
from edge_demo.errors import InputError
from edge_demo.runtime import open_runtime
from edge_demo.verify import verify
from pipeline import report_segment
from stages import bundle, evaluate, export, quantize, train
from stages.arrays import load_frames, load_masks
from stages.data import run as run_data
from stages.data.annotated import VOID
from stages.models import MODELS, build
from stages.spec import (
    BundleConfig,
    DataConfig,
    DataResult,
    EvaluateConfig,
    EvaluateResult,
    ExportConfig,
    ExportResult,
    ModelConfig,
    QuantizeConfig,
    QuantizeResult,
    ScenesConfig,
    TrainConfig,
    TrainResult,
)

SIZE = 64
MODEL = ModelConfig(name="segmenter", width=4)
TRAIN = TrainConfig(task="segment", model=MODEL, epochs=2, batch_size=8, lr=0.01)


@dataclass(frozen=True)
class Shipped:
    data: DataResult
    train: TrainResult
    export: ExportResult
    quantize: QuantizeResult
    evaluate: EvaluateResult
    bundle: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataResult:
    """Scenes; the first training mask is void, the second without an object."""
    folder = tmp_path_factory.mktemp("data")
    scenes = ScenesConfig(train_frames=96, val_frames=16, test_frames=20, objects=(1, 3), size=(0.4, 0.6))
    config = DataConfig(name="scenes-segment", size_wh=(SIZE, SIZE), colour="rgb", scenes=scenes)
    result = run_data(config, out_dir=folder)
    masks = np.load(folder / "train.masks.npy")
    masks[0], masks[1] = VOID, 0
    np.save(folder / "train.masks.npy", masks)
    test = np.load(folder / "test.masks.npy")
    test[:, :7] = VOID
    np.save(folder / "test.masks.npy", test)
    return result


@pytest.fixture(scope="module")
def shipped(data: DataResult, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    folders = [tmp_path_factory.mktemp(name) for name in ("train", "export", "quantize", "evaluate", "bundle")]
    trained = train.run(TRAIN, data, out_dir=folders[0])
    exported = export.run(ExportConfig(parity_images=8), data, trained, out_dir=folders[1])
    int8 = quantize.run(QuantizeConfig(images=32), data, trained, exported, out_dir=folders[2])
    scored = evaluate.run(EvaluateConfig(), data, trained, exported, int8, out_dir=folders[3])
    bundle.run(BundleConfig(eval_images=12, golden=2), data, trained, exported, int8, scored, out_dir=folders[4])
    return Shipped(data, trained, exported, int8, scored, folders[4])


def jaccard(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """scikit-learn's, over the classes that the truth shows."""
    known = truth != VOID
    labels = np.unique(truth[known])
    return float(jaccard_score(truth[known], found[known], labels=labels, average="macro"))


def test_the_test_metric_is_scikit_learns_on_the_saved_file(shipped: Shipped) -> None:
    frames, truth = load_frames(shipped.data, "test"), load_masks(shipped.data, "test")
    for file, precision in (
        (shipped.export.folder / shipped.export.model, "fp32"),
        (shipped.quantize.folder / shipped.quantize.model, "int8"),
    ):
        runtime = open_runtime("onnxruntime", file, threads=1)
        (classes,) = runtime.infer({"frames": np.array(frames)}).values()
        runtime.close()
        assert (classes.dtype, classes.shape) == (np.dtype(np.uint8), truth.shape)
        (row,) = [row for row in shipped.evaluate.rows if (row.runtime, row.precision) == ("onnxruntime", precision)]
        assert row.metrics["miou"] == pytest.approx(jaccard(classes, truth), abs=1e-9)


def test_training_learns_something_and_says_how_good_it_is(shipped: Shipped) -> None:
    assert shipped.train.metric == "miou"
    assert 0 < shipped.train.val < 1
    assert shipped.export.gates[0].passed
    assert shipped.quantize.fused["onnxruntime"].endswith("convolutions INT8")
    curves = (shipped.train.folder / shipped.train.curves_csv).read_text().splitlines()
    losses = [float(dict(zip(curves[0].split(","), row.split(","), strict=True))["train_loss"]) for row in curves[1:]]
    assert losses[-1] < losses[0]
    assert np.isfinite(losses).all()


def test_the_bundle_verifies_and_scores_its_own_sample(shipped: Shipped) -> None:
    assert verify(shipped.bundle).ok
    opened = open_bundle(shipped.bundle)
    frames, truths = opened.eval_sample()
    assert opened.manifest.task == "segment"
    assert opened.manifest.labels[0] == "background"
    assert len(frames) == len(truths)
    assert set(truths[0]) == {"size", "runs"}


def test_the_report_tells_pixels_by_class(shipped: Shipped) -> None:
    with np.load(shipped.evaluate.folder / shipped.evaluate.predictions) as saved:
        arrays = {name: saved[name] for name in saved.files}
    assert report_segment.is_told_by(arrays)
    facts = report_segment.facts_of(shipped.data, arrays)
    truth = load_masks(shipped.data, "test")
    assert facts.pixels == int((truth != VOID).sum())
    assert facts.void == pytest.approx(7 / SIZE)
    assert [row.pixels for row in facts.classes] == [int((truth == index).sum()) for index in range(11)]
    means = [row.iou for row in facts.classes if row.iou is not None]
    row = next(row for row in shipped.evaluate.rows if row.runtime == "onnxruntime" and row.precision == "fp32")
    if shipped.evaluate.recommended == "fp32":
        assert np.mean(means) == pytest.approx(row.metrics["miou"])
    worst, others = report_segment.frames_shown(shipped.data, arrays, 9)
    assert (len(worst), len(others)) == (6, 3)
    assert [frame.quality for frame in worst] == sorted(arrays["quality"])[:6]
    assert all(frame.size_wh == (3 * SIZE, SIZE) and frame.uri.startswith("data:image/jpeg") for frame in worst)


@settings(max_examples=10, deadline=None)
@given(
    width=st.integers(1, 4),
    depth=st.integers(1, 2),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.sampled_from([1, 3]),
    labels=st.integers(2, 7),
    pool_stem=st.booleans(),
)
def test_every_pixel_gets_logits_of_every_class(
    width: int, depth: int, size: tuple[int, int], channels: int, labels: int, pool_stem: bool
) -> None:
    size_wh = (32 * size[0], 32 * size[1])
    config = ModelConfig(name="segmenter", width=width, depth=depth, pool_stem=pool_stem, last_side=4 * max(size))
    model = build(config, channels, size_wh, labels).eval()
    step = 4 if pool_stem else 2
    (logits,) = model(torch.zeros(2, channels, size_wh[1], size_wh[0]))
    assert logits.shape == (2, labels * step * step, size_wh[1] // step, size_wh[0] // step)


def test_a_segmenter_is_made_of_what_int8_likes() -> None:
    model = build(MODEL, 3, (SIZE, SIZE), 4)
    kinds = {type(module) for module in model.modules() if not list(module.children())}
    assert kinds <= {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d}
    assert MODELS["segmenter"].tasks == ("segment",)


def test_the_body_has_the_names_and_shapes_of_fast() -> None:
    """So that `train.init_from` finds them."""
    own = build(MODEL, 3, (SIZE, SIZE), 4).state_dict()
    lent = build(ModelConfig(name="fast", width=4), 3, (SIZE, SIZE), 10).state_dict()
    shared = {name for name in own if name.startswith("body.")}
    assert shared == {name for name in lent if name.startswith("body.")}
    assert all(own[name].shape == lent[name].shape for name in shared)


def test_joined_maps_by_hand() -> None:
    """Each join sees the small map with every pixel four times, and the body's map beside it."""
    model = build(MODEL, 1, (32, 32), 2).eval()
    batch = torch.randn(1, 1, 32, 32)
    body, joins = model.get_submodule("body"), list(model.get_submodule("joins").children())
    stem, stages = body.children()
    maps = [stem(batch)]
    for stage in stages.children():
        maps.append(stage(maps[-1]))
    top = maps[-1]
    for join, seen in zip(joins, (maps[index] for index in range(len(maps) - 3, -1, -1)), strict=True):
        assert seen.shape[2] == 2 * top.shape[2]
        enlarged = top.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        top = join.get_submodule("layers")(torch.cat([enlarged, seen], dim=1))
    head = model.get_submodule("head")
    expected = F.conv2d(top, head.get_parameter("weight"), head.get_parameter("bias"), padding=1)
    torch.testing.assert_close(model(batch)[0], expected)


def test_sides_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(InputError, match=r"data\.size_wh: 100x64 cannot be halved 4 times without a rest") as caught:
        build(MODEL, 3, (100, 64), 3)
    assert "multiples of 16" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "binary"}, "train.loss: binary is for classify"),
        ({"augment": {"mixup": 0.2}}, "train.augment.mixup: joins the classes of pictures"),
        ({"model": {"name": "resnet"}}, "train.model.name: resnet is no network for segment"),
        ({"model": {"name": "segmenter", "dropout": 0.1}}, "train.model.dropout: has no effect on segmenter"),
    ],
)
def test_settings_that_do_not_suit_masks(
    data: DataResult, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = TrainConfig.model_validate({"task": "segment", "model": {"name": "segmenter"}} | changes)
    with pytest.raises(InputError, match=message):
        train.run(config, data, out_dir=tmp_path)


def test_a_class_that_is_none_is_named_before_training(data: DataResult, tmp_path: Path) -> None:
    for file in data.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    masks = np.load(tmp_path / "train.masks.npy")
    masks[3, 5, 5] = 99
    np.save(tmp_path / "train.masks.npy", masks)
    damaged = data.model_copy(update={"folder": tmp_path})
    with pytest.raises(InputError, match="train: class 99 of a mask is not one of the 11 classes"):
        train.run(TRAIN, damaged, out_dir=tmp_path)
