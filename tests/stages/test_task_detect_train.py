"""Detection while training: targets, IoU, who answers for a box, the loss, peaks; and a whole small run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edge_demo.errors import InputError
from edge_demo.manifest import Resize
from edge_demo.tasks.detect import check_params, decode
from stages import evaluate, export, quantize, train
from stages.models import build
from stages.spec import (
    AugmentConfig,
    DataResult,
    EvaluateConfig,
    ExportConfig,
    ModelConfig,
    QuantizeConfig,
    Step,
    TrainConfig,
    TrainResult,
)
from stages.tasks import TASKS, detect
from stages.train.examples import check_config, load_examples

SIDE, LABELS = 64, ("dark", "light")
COUNTS = {"train": 96, "val": 24, "test": 24}
MODEL = ModelConfig(name="detector", width=4, depth=1, last_side=4)


def write_boxes(folder: Path, counts: dict[str, int] = COUNTS, **changes: Any) -> DataResult:
    """Grey frames with up to two squares that are darker or lighter than the ground; every sixth has none."""
    rng = np.random.default_rng(0)
    class_counts = {}
    for split, n in counts.items():
        frames = rng.integers(110, 140, (n, SIDE, SIDE, 1), np.uint8)
        boxes, items, classes = [], [], []
        for item in range(n):
            for left in (0, 32) if item % 6 else ():
                side, kind = int(rng.integers(12, 26)), int(rng.integers(2))
                x, y = left + int(rng.integers(1, 32 - side)), int(rng.integers(0, SIDE - side))
                frames[item, y : y + side, x : x + side] = (30, 225)[kind]
                boxes.append((x, y, x + side, y + side))
                items.append(item)
                classes.append(kind)
        parts = {
            "frames": frames, "boxes": np.array(boxes, np.float32).reshape(-1, 4), "box_items": np.array(items),
            "box_classes": np.array(classes, np.int64), "box_flags": np.zeros(len(items), np.uint8),
            "original_wh": np.full((n, 2), SIDE),
        }  # fmt: skip
        for name, values in parts.items():
            np.save(folder / f"{split}.{name}.npy", values)
        class_counts[split] = tuple(np.bincount(classes, minlength=2).tolist())
    ids = {split: [f"{split}/{i}" for i in range(n)] for split, n in counts.items()}
    items = {
        split: [{"id": i, "sha256": hashlib.sha256(i.encode()).hexdigest()} for i in of] for split, of in ids.items()
    }
    (folder / "items.json").write_text(json.dumps(items), encoding="utf-8")
    made: dict[str, Any] = {
        "folder": folder, "name": "squares", "task": "detect", "labels": LABELS, "size_wh": (SIDE, SIDE),
        "resize": Resize(), "colour": "gray", "counts": counts, "class_counts": class_counts,
        "digests": {split: hashlib.sha256(split.encode()).hexdigest() for split in counts}, "mean": (0.5,),
        "std": (0.2,), "dropped": {},
    }  # fmt: skip
    return DataResult(**{**made, **changes})


def settings(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "task": "detect", "model": MODEL, "epochs": 14, "batch_size": 16, "lr": 0.01, "precision": "32-true",
        "accelerator": "cpu", "augment": AugmentConfig(flip=0.5, mosaic=0.3), "clip_norm": 5.0,
    }  # fmt: skip
    return TrainConfig(**{**defaults, **changes})


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> DataResult:
    return write_boxes(tmp_path_factory.mktemp("squares"))


def raw_of(boxes: list[tuple[float, float, float, float, int]], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Raw outputs that say exactly these boxes, in cells, at the cell that holds each one's middle; two classes."""
    logits, sides = torch.full((1, 2, height, width), -9.0), torch.zeros(1, 4, height, width)
    for x0, y0, x1, y1, kind in boxes:
        column, row = int((x0 + x1) / 2), int((y0 + y1) / 2)
        logits[0, kind, row, column] = 9.0
        distances = torch.tensor([column + 0.5 - x0, row + 0.5 - y0, x1 - column - 0.5, y1 - row - 0.5])
        sides[0, :, row, column] = distances.expm1().log()  # the inverse of softplus
    return logits, sides


# --- targets ---------------------------------------------------------------------------------------------------------


def test_targets_are_the_boxes_of_the_picked_frames(squares: DataResult) -> None:
    examples = load_examples(squares, "train", torch.device("cpu"))
    truths = TASKS["detect"].truths(squares, "train")
    picked = torch.tensor([7, 0, 95, 7])
    _, rows = examples.batch(picked)
    for row, index in zip(rows, picked.tolist(), strict=True):
        own = row[row[:, 4] >= 0]
        np.testing.assert_allclose(own[:, :4] * SIDE, np.reshape(truths[index]["boxes"], (-1, 4)), atol=1e-4)
        assert own[:, 4].tolist() == truths[index]["classes"]
    assert len(examples) == COUNTS["train"]
    assert examples.batch(slice(0, 1))[1].shape == (1, 1, 6)  # a frame without boxes


def test_thousands_of_boxes_in_one_frame_cost_the_others_nothing(tmp_path: Path) -> None:
    data = write_boxes(tmp_path)
    many = np.tile(np.array([[1, 1, 9, 9]], np.float32), (5000, 1))
    np.save(tmp_path / "train.boxes.npy", many)
    np.save(tmp_path / "train.box_items.npy", np.full(5000, 3))
    np.save(tmp_path / "train.box_classes.npy", np.zeros(5000, np.int64))
    np.save(tmp_path / "train.box_flags.npy", np.zeros(5000, np.uint8))
    targets = TASKS["detect"].targets(data, "train")
    assert targets[torch.tensor([0, 1])].shape == (2, 1, 6)
    batch = targets[torch.tensor([3, 1])]
    assert batch.shape == (2, 5000, 6)
    raw = (torch.zeros(2, 2, 8, 8, requires_grad=True), torch.zeros(2, 4, 8, 8, requires_grad=True))
    assert math.isfinite(float(detect.loss(raw, batch, settings()).detach()))


@pytest.mark.parametrize(
    ("file", "values", "match"),
    [
        ("box_classes", [5], "class 5 of a box is not one of the 2"),
        ("box_items", [400], "boxes of frames that are not there"),
    ],
)
def test_damaged_boxes_are_named(tmp_path: Path, file: str, values: list[int], match: str) -> None:
    data = write_boxes(tmp_path)
    changed = np.load(tmp_path / f"train.{file}.npy")
    changed[-1:] = values
    np.save(tmp_path / f"train.{file}.npy", changed)
    with pytest.raises(InputError, match=match):
        load_examples(data, "train", torch.device("cpu"))


def test_strata_are_rare_classes_first_and_empty_frames_last(squares: DataResult, tmp_path: Path) -> None:
    strata = detect.strata(squares, "train")
    assert set(strata[::6].tolist()) == {2}  # no boxes
    truths = TASKS["detect"].truths(squares, "train")
    rarest = int(np.argmin(squares.class_counts["train"]))
    for index, truth in enumerate(truths):
        assert (strata[index] == rarest) == (rarest in truth["classes"])


def test_settings_without_effect_are_refused(squares: DataResult) -> None:
    for changes, match in (
        ({"label_smoothing": 0.1}, "label_smoothing: has no effect on detect"),
        ({"loss": "binary"}, "loss: binary is for classify"),
        ({"augment": AugmentConfig(mixup=0.2)}, "mixup: joins classes"),
        ({"model": ModelConfig(name="resnet")}, "resnet is no network for detect; known: detector"),
        ({"task": "classify"}, "the data is for detect"),
    ):
        with pytest.raises(InputError) as caught:
            check_config(settings(**changes), squares)
        assert match in f"{caught.value.message}; {caught.value.hint}"


# --- loss ------------------------------------------------------------------------------------------------------------


def test_iou_and_giou_by_hand() -> None:
    """Two 2 x 2 squares that share 1 of 7; the square around both is 9. Apart: 8 of 25 are covered."""
    a, b, c = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[3.0, 3, 5, 5]])
    assert detect.iou(a, b).item() == pytest.approx(1 / 7)
    assert detect.giou(a, b).item() == pytest.approx(1 / 7 - 2 / 9)
    assert detect.giou(a, c).item() == pytest.approx(0 - 17 / 25)
    assert detect.giou(a, a).item() == pytest.approx(1)


def test_softplus_of_sides_are_distances_from_the_middle_of_a_cell() -> None:
    truth = [(1.25, 0.5, 4.0, 3.75, 0), (5.0, 4.0, 7.0, 5.5, 1)]
    _, sides = raw_of(truth, 6, 8)
    found = detect.boxes_of(sides).view(6, 8, 4)
    for x0, y0, x1, y1, _ in truth:
        np.testing.assert_allclose(found[int((y0 + y1) / 2), int((x0 + x1) / 2)], (x0, y0, x1, y1), atol=1e-5)


def test_the_best_fitting_cells_answer_for_a_box_and_each_for_one() -> None:
    """Two boxes over the left and right half; cells say the exact box of their half, but the middle column differs."""
    truth = torch.tensor([[[0.0, 0, 4, 4], [4.0, 0, 8, 4], [0, 0, 0, 0]]])
    is_box = torch.tensor([[True, True, False]])
    middles = detect.middles_of(4, 8, truth.device)
    found = torch.where(middles[:, :1] < 4, truth[0, 0], truth[0, 1])[None].clone()
    found[0, 5] = torch.tensor([4.0, 0, 7, 4])  # of the right half, but too narrow
    scores = torch.full((1, 32, 2), 0.5)
    owner, share, quality = detect.answering(scores, found, truth, torch.tensor([[0, 1, 0]]), is_box, middles)
    answers = share[0] > 0
    assert int(answers.sum()) == 2 * detect.CELLS_PER_BOX
    assert torch.equal(owner[0][answers] == 1, middles[answers][:, 0] > 4)
    torch.testing.assert_close(quality[0][answers], torch.ones(20))
    # cell 5 of the first row says a box with IoU 0.75: its fit is 0.75 ** 6 of the best, and its quality as well
    few = torch.full((1, 32, 2), 1e-8)
    few[0, 5] = 0.5
    owner, share, _ = detect.answering(few, found, truth, torch.tensor([[0, 1, 0]]), is_box, middles)
    assert share[0, 5].item() == pytest.approx(1.0)
    others = share[0][(share[0] > 0) & (owner[0] == 1) & (torch.arange(32) != 5)]
    assert len(others) == detect.CELLS_PER_BOX - 1
    np.testing.assert_allclose(others, 1e-8**0.5 / (0.5**0.5 * 0.75**6), rtol=1e-3)


def test_a_box_smaller_than_a_cell_has_an_answer() -> None:
    truth = torch.tensor([[[3.9, 3.9, 4.1, 4.1]]])  # between four middles
    middles = detect.middles_of(8, 8, truth.device)
    found = torch.cat([middles - 0.6, middles + 0.6], dim=1)[None]
    _, share, _ = detect.answering(
        torch.full((1, 64, 1), 0.1), found, truth, torch.zeros(1, 1, dtype=torch.long), torch.tensor([[True]]), middles
    )
    assert int((share > 0).sum()) == 4


def test_the_loss_of_a_right_answer_is_small_and_its_gradient_leads_there() -> None:
    boxes = [(1.0, 1.0, 3.0, 3.0, 0), (5.0, 2.0, 7.0, 6.0, 1)]
    target = torch.tensor([[(*(value / 8 for value in box[:4]), box[4], 0.0) for box in boxes]])
    right = detect.loss(raw_of(boxes, 8, 8), target, settings())
    wrong = detect.loss(raw_of([(*box[:4], 1 - box[4]) for box in boxes], 8, 8), target, settings())
    blind = detect.loss((torch.full((1, 2, 8, 8), -4.6), torch.full((1, 4, 8, 8), 1.0)), target, settings())
    assert right < 0.2 * blind < 0.2 * wrong
    logits, sides = (torch.full((1, n, 8, 8), v, requires_grad=True) for n, v in ((2, -4.6), (4, 1.0)))
    optimizer = torch.optim.Adam([logits, sides], lr=0.2)
    for _ in range(120):
        optimizer.zero_grad()
        detect.loss((logits, sides), target, settings()).backward()
        optimizer.step()
    raw = (part.numpy() for part in detect.Post((64, 64))(logits.detach(), sides.detach()))
    (result,) = decode(dict(zip(TASKS["detect"].outputs, raw, strict=True)), check_params({}, LABELS))
    assert int(result.shown.sum()) == 2
    np.testing.assert_allclose(result.scores[:2], 1, atol=0.2)
    order = result.class_ids[:2].argsort()
    np.testing.assert_allclose(result.xyxy[:2][order] / 8, [box[:4] for box in boxes], atol=0.2)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_and_a_crowd_counts_for_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = tuple(torch.randn(4, n, 8, 8, generator=generator) for n in (2, 4))
    target = torch.zeros(4, 3, 6)
    target[..., :2] = torch.rand(4, 3, 2, generator=generator) * 0.5
    target[..., 2:4] = target[..., :2] + 0.3
    target[:, 2, 4] = -1
    whole = detect.loss(raw, target, settings())
    parts = [detect.loss(tuple(r[i : i + 1] for r in raw), target[i : i + 1], settings()) for i in range(4)]
    assert whole.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)
    everywhere = torch.tensor([[[-0.1, -0.1, 1.1, 1.1, 0.0, 1.0]]]).expand(4, -1, -1)
    assert detect.loss(raw, everywhere, settings()).item() == 0
    none = torch.full((4, 1, 6), -1.0)
    assert detect.loss(raw, none, settings()).item() > 0
    doubled = detect.loss(raw, target, settings(), torch.tensor([2.0, 2.0]))
    assert whole < doubled < 2 * whole


# --- peaks -----------------------------------------------------------------------------------------------------------


def test_peaks_are_the_cells_no_neighbour_beats() -> None:
    """Against loops in numpy, on random scores."""
    generator = torch.Generator().manual_seed(0)
    logits, sides = (torch.randn(2, n, 7, 9, generator=generator) for n in (3, 4))
    boxes, scores, classes = (part.numpy() for part in detect.Post((72, 56))(logits, sides))
    assert (boxes.shape, scores.shape, classes.dtype) == ((2, 63, 4), (2, 63), np.int64)
    values = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
    distances = np.log1p(np.exp(sides.numpy().astype(np.float64)))
    for item in range(2):
        best = values[item].max(axis=0)
        wanted = []
        for y in range(7):
            for x in range(9):
                if best[y, x] == best[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max():
                    left, top, right, bottom = distances[item, :, y, x]
                    box = np.array([x + 0.5 - left, y + 0.5 - top, x + 0.5 + right, y + 0.5 + bottom]) * 8
                    wanted.append((best[y, x], int(values[item, :, y, x].argmax()), box))
        wanted.sort(key=lambda row: -row[0])
        for row, (score, kind, box) in enumerate(wanted):
            assert scores[item, row] == pytest.approx(score, abs=1e-6)
            assert classes[item, row] == kind
            np.testing.assert_allclose(boxes[item, row], box, atol=1e-4)
        assert not scores[item, len(wanted) :].any()


# --- network, and a whole run ----------------------------------------------------------------------------------------


def test_the_network_takes_odd_maps_and_names_what_it_cannot_take() -> None:
    model = build(ModelConfig(name="detector", width=4, last_side=10), 3, (320, 240), 5).eval()
    logits, sides = model(torch.zeros(1, 3, 240, 320))
    assert (logits.shape, sides.shape) == ((1, 5, 30, 40), (1, 4, 30, 40))
    np.testing.assert_allclose(logits.sigmoid().detach().mean(), 0.01, atol=0.005)
    np.testing.assert_allclose(torch.nn.functional.softplus(sides).detach().mean(), 2.0, atol=0.2)
    with pytest.raises(InputError, match="last_side: 8 is no less than an eighth of 64x64"):
        build(ModelConfig(name="detector"), 1, (64, 64), 2)
    with pytest.raises(InputError, match="dropout"):
        build(ModelConfig(name="detector", dropout=0.1, last_side=4), 1, (64, 64), 2)


def test_a_classifier_lends_its_body(
    squares: DataResult,
    small_data: DataResult,
    tmp_path: Path,
    write_run: Callable[[Path, DataResult, TrainResult], Path],
) -> None:
    for name in ("fits", "other", "out"):
        (tmp_path / name).mkdir()
    body = ModelConfig(name="fast", width=4, depth=1, last_side=4, pool_stem=True)
    other = ModelConfig(name="mlp", width=4)
    runs = []
    for folder, model in (("fits", body), ("other", other)):
        classify = TrainConfig(model=model, epochs=1, precision="32-true")
        result = train.run(classify, small_data, out_dir=tmp_path / folder)
        runs.append(write_run(tmp_path / f"run-{folder}", small_data, result))
    config = settings(init_from=str(runs[0]), epochs=1, lr=1e-9, weight_decay=0.0)
    result = train.run(config, squares, out_dir=tmp_path / "out")
    assert any("tensors of the body are those of" in note for note in result.notes)
    assert set(result.sources) == {"train.init_from"}
    got, want = load_file(result.folder / result.weights), load_file(runs[0] / "train" / "best.safetensors")
    stem = "body.stem.layers.conv.weight"
    np.testing.assert_allclose(got[stem], want[stem], atol=1e-6)
    for run, match in ((tmp_path / "none", "is not a run folder"), (runs[1], "nothing in .* fits")):
        with pytest.raises(InputError, match=match):
            train.run(settings(init_from=str(run)), squares, out_dir=tmp_path / "again")


def test_a_small_set_goes_the_whole_way(squares: DataResult, tmp_path: Path) -> None:
    """Trained, exported at parity, quantized, scored on test in both runtimes."""
    folders = {name: tmp_path / name for name in ("train", "export", "quantize", "evaluate")}
    for folder in folders.values():
        folder.mkdir()
    trained = train.run(settings(), squares, out_dir=folders["train"])
    assert trained.metric == "map50_95"
    assert trained.val > 0.5
    header = (trained.folder / "curves.csv").read_text().splitlines()[0].split(",")
    assert {"train_loss", "val_loss", "val_map50_95", "val_map50"} <= set(header)
    assert "train_map50_95" not in header
    exported = export.run(ExportConfig(parity_images=8), squares, trained, out_dir=folders["export"])
    assert all(gate.passed for gate in exported.gates)
    config = QuantizeConfig(images=24, max_drop=0.05)
    int8 = quantize.run(config, squares, trained, exported, out_dir=folders["quantize"])
    scored = evaluate.run(EvaluateConfig(), squares, trained, exported, int8, out_dir=folders["evaluate"])
    rows = {(row.runtime, row.precision): row for row in scored.rows}
    fp32 = rows["torch", "fp32"].metrics["map50_95"]
    assert fp32 > 0.5
    for runtime in ("onnxruntime", "openvino"):
        assert rows[runtime, "fp32"].metrics["map50_95"] == pytest.approx(fp32, abs=0.002)
        assert rows[runtime, "int8"].metrics["map50_95"] > fp32 - 0.08
    with np.load(scored.folder / scored.predictions) as arrays:
        assert len(arrays["true_xyxy"]) == sum(squares.class_counts["test"])
        assert arrays["found_xyxy"].shape == (len(arrays["found_score"]), 4)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_class_or_all_boxes_missing_in_val_stop_nothing(tmp_path: Path, kept: int) -> None:
    """Their average precision is no part of the mean; without a true box it is 0."""
    data = write_boxes(tmp_path, {"train": 16, "val": 8, "test": 8})
    names = ("boxes", "box_items", "box_classes", "box_flags")
    is_kept = (np.load(tmp_path / "val.box_classes.npy") == 0) & (kept == 1)
    for name in names:
        np.save(tmp_path / f"val.{name}.npy", np.load(tmp_path / f"val.{name}.npy")[is_kept])
    (tmp_path / "out").mkdir()
    result = train.run(settings(epochs=1), data, out_dir=tmp_path / "out")
    assert 0 <= result.val <= 1
    assert kept or result.val == 0


def test_a_class_without_training_boxes_has_no_weight(tmp_path: Path) -> None:
    data = write_boxes(tmp_path, {"train": 16, "val": 8, "test": 8})
    data = data.model_copy(update={"class_counts": {**data.class_counts, "train": (9, 0)}})
    with pytest.raises(InputError, match=r"train\.class_weights: no training images of class light"):
        train.run(settings(class_weights="balanced"), data, out_dir=tmp_path)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Interrupted between two epochs, with mosaic and a moving average."""
    for name in ("data", "whole", "parts"):
        (tmp_path / name).mkdir()
    data = write_boxes(tmp_path / "data", {"train": 32, "val": 8, "test": 8})
    config = settings(epochs=2, ema=0.9)

    def stop(step: Step) -> None:
        if step.values.get("epoch") == 1 and "val_map50_95" in step.values:
            raise KeyboardInterrupt

    whole = train.run(config, data, out_dir=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.run(config, data, out_dir=tmp_path / "parts", on_step=stop)
    parts = train.run(config, data, out_dir=tmp_path / "parts")
    assert parts.resumed_from_step == 2
    assert (whole.folder / whole.weights).read_bytes() == (parts.folder / parts.weights).read_bytes()
