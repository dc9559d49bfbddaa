"""Short real trainings: what the stage leaves behind, checked against sklearn and its own curves; bad input."""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss

from edge_demo.errors import Error, InputError
from stages import train
from stages.arrays import load_frames, load_truth, to_bgr
from stages.spec import AugmentConfig, DataResult, ModelConfig, Step, TrainConfig, TrainResult
from stages.train import device, epoch
from stages.trained import load_trained

SMALL = ModelConfig(width=4)


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "batch_size": 48, "model": SMALL, "precision": "32-true", **changes})


def rows_of(result: TrainResult) -> list[dict[str, float]]:
    with (result.folder / result.curves_csv).open(encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def scores_of(data: DataResult, result: TrainResult, split: str) -> np.ndarray:
    """Softmax of the saved weights in float32, by the path that export takes."""
    with torch.no_grad():
        return load_trained(data, result)(torch.from_numpy(to_bgr(np.array(load_frames(data, split)))))[0].numpy()


@pytest.fixture(scope="module")
def watched(small_data: DataResult, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, list[Step]]:
    """A training of five epochs in the precision of this machine, and what it told on the way."""
    told: list[Step] = []
    config = settings(epochs=5, precision="auto", augment=AugmentConfig(shift=0.05, noise=0.02), accelerator="cpu")
    return train.run(config, small_data, out_dir=tmp_path_factory.mktemp("train"), on_step=told.append), told


def test_it_learns_and_states_the_truth(small_data: DataResult, watched: tuple[TrainResult, list[Step]]) -> None:
    """Val and train are what sklearn counts on the saved weights; chance is 10 %."""
    result, _ = watched
    assert result.val > 0.85
    for split, value in (("val", result.val), ("train", result.train)):
        answers = scores_of(small_data, result, split).argmax(1)
        assert value == pytest.approx(accuracy_score(load_truth(small_data, split), answers))


def test_kept_epoch_is_the_latest_within_one_standard_error(
    small_data: DataResult, watched: tuple[TrainResult, list[Step]]
) -> None:
    """The error of a share p of n is sqrt(p (1 - p) / n)."""
    result, _ = watched
    rows = rows_of(result)
    values = [row["val_accuracy"] for row in rows]
    good = [i for i, p in enumerate(values) if p >= max(values[: i + 1]) - math.sqrt(p * (1 - p) / 200)]
    assert result.best_epoch == good[-1] + 1
    assert result.val == pytest.approx(values[good[-1]])
    scores = scores_of(small_data, result, "val")
    assert rows[result.best_epoch - 1]["val_loss"] == pytest.approx(log_loss(load_truth(small_data, "val"), scores))


def test_what_it_leaves(watched: tuple[TrainResult, list[Step]]) -> None:
    result, _ = watched
    assert sorted(p.name for p in result.folder.iterdir()) == [
        "best.safetensors",
        "config.json",
        "curves.csv",
        "curves.png",
        "val.png",
    ]
    for picture in (result.curves_png, result.val_png):
        assert (result.folder / picture).read_bytes().startswith(b"\x89PNG")
    assert TrainConfig.model_validate_json((result.folder / result.config_json).read_text()).epochs == 5
    assert result.generalization is not None
    assert (result.generalization.n_train, result.generalization.n_val) == (1200, 200)
    assert result.generalization.gap == pytest.approx(result.train - result.val)
    rows = rows_of(result)
    assert list(rows[0]) == [
        "epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds",
        "cpu_seconds", "images_per_s", "val_nll",
    ]  # fmt: skip
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert result.epochs == 5
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in rows), rel=1e-5)
    weights = load_file(result.folder / result.weights)
    assert result.parameters == sum(v.numel() for name, v in weights.items() if name.endswith(("weight", "bias")))
    assert result.precision in ("bf16-mixed", "32-true")
    assert all(v.dtype == torch.float32 for name, v in weights.items() if not name.endswith("num_batches_tracked"))


def test_what_it_tells(watched: tuple[TrainResult, list[Step]]) -> None:
    result, told = watched
    steps = [step for step in told if not step.note]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert {step.total for step in steps} == {5 * (1200 // 48)}
    assert steps[-1].done == steps[-1].total
    assert {"loss", "accuracy", "images_per_s"} <= set.intersection(*(set(step.values) for step in steps))
    assert [step.values["epoch"] for step in steps if "val_accuracy" in step.values] == [1, 2, 3, 4, 5]
    assert [step.note for step in told if step.note] == list(result.notes)
    assert any(result.precision in note for note in result.notes)


def test_colour_pictures_and_the_convnet(colour_data: DataResult, tmp_path: Path) -> None:
    config = settings(model=ModelConfig(name="convnet", dropout=0.2), optimizer="adam", lr=0.003, weight_decay=0.0)
    result = train.run(config, colour_data, out_dir=tmp_path)
    assert result.in_channels == 3
    answers = scores_of(colour_data, result, "val").argmax(1)
    assert result.val == pytest.approx(accuracy_score(load_truth(colour_data, "val"), answers))
    assert result.val > 0.5


def test_early_stop_counts_epochs_without_a_better_value(small_data: DataResult, tmp_path: Path) -> None:
    result = train.run(settings(epochs=40, patience=2, schedule="constant"), small_data, out_dir=tmp_path)
    values = [row["val_accuracy"] for row in rows_of(result)]
    improved = [i for i, value in enumerate(values) if all(value > other for other in values[:i])]
    assert len(values) == result.epochs < 40
    assert len(values) - 1 - improved[-1] == 2
    assert all(later - earlier <= 2 for earlier, later in pairwise(improved))


def test_same_seed_same_weights_and_the_callers_torch_is_left_alone(small_data: DataResult, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    torch.manual_seed(5)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    config = settings(epochs=1, augment=AugmentConfig(shift=0.1, invert=0.5), threads=1)
    results = [
        train.run(config.model_copy(update={"seed": seed}), small_data, out_dir=folder)
        for seed, folder in zip((1, 1, 2), folders, strict=True)
    ]
    first, second, other = ((result.folder / result.weights).read_bytes() for result in results)
    assert first == second
    assert first != other
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_min_accuracy_is_a_gate(small_data: DataResult, tmp_path: Path) -> None:
    result = train.run(settings(epochs=1, min_accuracy=1.0), small_data, out_dir=tmp_path)
    (gate,) = result.gates
    assert (gate.passed, gate.stop, gate.value, gate.limit) == (False, True, result.val, 1.0)
    assert "n = 200" in gate.message


def test_divergence_names_the_step(small_data: DataResult, tmp_path: Path) -> None:
    config = settings(model=ModelConfig(name="convnet"), optimizer="sgd", lr=1e6)
    message = r"training diverged: the loss is (nan|inf) in step \d+, after 3 recoveries; set train.lr below 1e\+06"
    with pytest.raises(Error, match=message):
        train.run(config, small_data, out_dir=tmp_path)
    assert not (tmp_path / "best.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1201}, "train.batch_size: 1201 is more than the 1200 training images"),
        ({"task": "clasify"}, "train.task: unknown task 'clasify'"),
        ({"model": ModelConfig(name="vgg")}, "train.model.name: unknown network 'vgg'"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, "train.precision: 16-mixed needs a GPU"),
    ],
)
def test_bad_settings(small_data: DataResult, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        train.run(settings(**changes), small_data, out_dir=tmp_path)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def altered(data: DataResult, folder: Path, split: str, frames: np.ndarray, truth: np.ndarray) -> DataResult:
    for name in ("train", "val"):
        np.save(folder / f"{name}.frames.npy", load_frames(data, name) if name != split else frames)
        np.save(folder / f"{name}.truth.npy", load_truth(data, name) if name != split else truth)
    return data.model_copy(update={"folder": folder})


@pytest.mark.parametrize(
    ("split", "label", "n_frames", "n_labels", "message"),
    [
        ("train", 10, 60, 60, "train: label 10 is not one of the 10 classes"),
        ("val", -1, 60, 60, "val: label -1 is not one of the 10 classes"),
        ("train", 0, 60, 59, "train: 60 frames but 59 labels"),
        ("val", 0, 0, 0, "val: no images"),
    ],
)
def test_bad_data(
    small_data: DataResult, tmp_path: Path, split: str, label: int, n_frames: int, n_labels: int, message: str
) -> None:
    frames, truth = np.zeros((n_frames, 16, 16, 1), np.uint8), np.full(n_labels, label, np.int64)
    with pytest.raises(InputError) as caught:
        train.run(settings(), altered(small_data, tmp_path, split, frames, truth), out_dir=tmp_path / "out")
    assert message in str(caught.value)


def test_one_class_and_another_task(small_data: DataResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one class only"):
        train.run(settings(), small_data.model_copy(update={"labels": ("0",)}), out_dir=tmp_path)
    with pytest.raises(InputError, match="the data is for detect"):
        train.run(settings(), small_data.model_copy(update={"task": "detect"}), out_dir=tmp_path)


def test_gpu_asked_for_and_absent(small_data: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"train\.accelerator: cuda was asked for"):
        train.run(settings(accelerator="cuda"), small_data, out_dir=tmp_path)
    assert device.choose_accelerator(settings(accelerator="auto")) == "cpu"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx512_bf16 avx512_vnni", "bf16-mixed"),
        ("flags\t\t: fpu avx2 avx512f", "32-true"),
        ("Features\t: fp asimd bf16 i8mm", "bf16-mixed"),
        ("model name\t: a CPU with avx512_bf16 in its name", "32-true"),
    ],
)
def test_auto_precision_reads_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    flags = device.cpu_flags(tmp_path / "cpuinfo")
    monkeypatch.setattr(device, "cpu_flags", lambda: flags)
    assert device.choose_precision(settings(precision="auto"), "cpu") == expected
    assert device.choose_precision(settings(precision="32-true"), "cpu") == "32-true"


def test_no_cpuinfo_means_no_flags(tmp_path: Path) -> None:
    assert device.cpu_flags(tmp_path / "absent") == frozenset()


def test_a_clearly_worse_last_epoch_is_not_kept(small_data: DataResult, tmp_path: Path) -> None:
    """A learning rate that never falls and is far too high in the end: kept is an epoch that was good."""
    config = settings(epochs=6, schedule="constant", lr=0.003)
    rising = {4: 0.3, 5: 1.0, 6: 3.0}
    steps = 1200 // 48

    def lr_of(schedule: str, step: int, total: int) -> float:
        return rising.get(step // steps + 1, 0.003) / config.lr

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, "lr_factor", lr_of)
        result = train.run(config, small_data, out_dir=tmp_path)
    values = [row["val_accuracy"] for row in rows_of(result)]
    assert values[-1] < max(values) - 0.1
    assert result.best_epoch <= 4
    assert result.val > values[-1] + 0.1
