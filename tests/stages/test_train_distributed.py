"""Several processes train like one: the same curve for the same global batch, and the same bits after a kill."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_demo.errors import Error, InputError
from pipeline import ranks
from stages import train
from stages.arrays import load_frames, load_truth
from stages.spec import AugmentConfig, DataResult, ModelConfig, Step, TrainConfig, TrainResult
from stages.train import launch, stage, torchrun
from stages.train.distributed import LostError, check_devices
from stages.train.launch import Died, Job

TRAIN, VAL, BATCH = 480, 120, 24
RESNET, MLP = ModelConfig(width=4), ModelConfig(name="mlp")
COLUMNS = ("lr", "train_loss", "val_loss", "train_accuracy", "val_accuracy")


def settings(model: ModelConfig, devices: int, **changes: Any) -> TrainConfig:
    """Plain gradient descent, which unlike Adam notices gradients that are wrong by a factor, in small steps.

    With lr 0.005, weights that differ by 1e-7 in one process already lead to losses that differ by 3e-4 after 75 steps.
    """
    defaults: dict[str, Any] = {
        "model": model,
        "devices": devices,
        "epochs": 2,
        "batch_size": BATCH,
        "optimizer": "sgd",
        "lr": 0.001,
        "augment": AugmentConfig(shift=0.05, rotate_deg=5, invert=0.5, noise=0.05, cutout=0.2),
        "precision": "32-true",
        "accelerator": "cpu",
    }
    return TrainConfig(**{**defaults, **changes})


@pytest.fixture(scope="module")
def few(small_data: DataResult, tmp_path_factory: pytest.TempPathFactory) -> DataResult:
    folder = tmp_path_factory.mktemp("few")
    for split, n in (("train", TRAIN), ("val", VAL)):
        np.save(folder / f"{split}.frames.npy", load_frames(small_data, split)[:n])
        np.save(folder / f"{split}.truth.npy", load_truth(small_data, split)[:n])
    return small_data.model_copy(update={"folder": folder, "counts": {"train": TRAIN, "val": VAL, "test": 0}})


@pytest.fixture(scope="module")
def together(few: DataResult, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Two processes, undisturbed."""
    return train.run(settings(RESNET, 2), few, out_dir=tmp_path_factory.mktemp("together"))


def curve(result: TrainResult) -> dict[str, list[float]]:
    with (result.folder / result.curves_csv).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {column: [float(row[column]) for row in rows] for column in COLUMNS}


def digest(result: TrainResult) -> str:
    return hashlib.sha256((result.folder / result.weights).read_bytes()).hexdigest()


def alone(data: DataResult, folder: Path, config: TrainConfig) -> TrainResult:
    return train.run(config.model_copy(update={"devices": 1}), data, out_dir=folder)


def assert_same_curve(one: TrainResult, many: TrainResult) -> None:
    for column, values in curve(one).items():
        assert curve(many)[column] == pytest.approx(values, rel=1e-5), column
    assert (many.val, many.train, many.best_epoch) == pytest.approx((one.val, one.train, one.best_epoch))


def test_same_curve_with_batch_norm(few: DataResult, together: TrainResult, tmp_path: Path) -> None:
    assert_same_curve(alone(few, tmp_path, settings(RESNET, 2)), together)
    assert sorted(p.name for p in together.folder.iterdir()) == sorted(p.name for p in tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (MLP, {"accumulate": 2, "clip_norm": 0.5, "ema": 0.9, "l1": 1e-5, "class_weights": "balanced"}),
        (RESNET, {"patience": 1, "augment": AugmentConfig(shift=0.1, mixup=0.5)}),
    ],
    ids=["everything of a step", "early stop, mixup"],
)
def test_same_curve(few: DataResult, tmp_path: Path, model: ModelConfig, changes: dict[str, Any]) -> None:
    config = settings(model, 2, **changes)
    many = train.run(config, few, out_dir=tmp_path / "many")
    assert_same_curve(alone(few, tmp_path / "one", config), many)


@pytest.mark.slow
def test_a_killed_process_starts_again(few: DataResult, together: TrainResult, tmp_path: Path) -> None:
    """The second process is killed in the second epoch; the first epoch is not done again."""
    told: list[Step] = []

    def kill(step: Step) -> None:
        told.append(step)
        if step.values.get("epoch") == 1 and "val_accuracy" in step.values:
            victims = [process for process in multiprocessing.active_children() if process.name == "train-1"]
            os.kill(victims[0].pid or 0, signal.SIGKILL)

    result = train.run(settings(RESNET, 2), few, out_dir=tmp_path, on_step=kill)
    assert digest(result) == digest(together)
    assert result.resumed_from_step == TRAIN // BATCH
    assert any("process 1 of 2 was killed (SIGKILL); restart 1 of 3" in note for note in result.notes)
    assert sum("val_accuracy" in step.values for step in told) == 2
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_hung_process_is_an_error(few: DataResult, tmp_path: Path) -> None:
    def stop(step: Step) -> None:
        if step.values.get("epoch") == 1:
            for process in multiprocessing.active_children():
                if process.name == "train-1":
                    os.kill(process.pid or 0, signal.SIGSTOP)

    job = Job(settings(RESNET, 2, epochs=50), few, tmp_path, "cpu", timeout_s=20)
    with pytest.raises(Error, match="a training process did not answer for 20 s"):
        launch.supervise(job, stop)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_an_error_in_a_process_is_the_commands(few: DataResult, tmp_path: Path) -> None:
    checkpoint = tmp_path / stage.FILE
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(Error, match="the checkpoint cannot be read") as caught:
        train.run(settings(RESNET, 2), few, out_dir=tmp_path)
    assert str(checkpoint.parent) in caught.value.hint


def test_which_error_is_told() -> None:
    """A reason comes before its consequences."""
    lost, reason = LostError("lost"), InputError("reason", "hint")
    with pytest.raises(InputError, match="reason"):
        launch._conclude([lost, reason], 5)
    with pytest.raises(Error, match="process 1 ended by itself"):
        launch._conclude([lost, Died(1, 3)], 5)
    with pytest.raises(Error, match="did not answer for 5 s"):
        launch._conclude([lost], 5)


def test_killed_too_often(few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []
    monkeypatch.setattr(launch, "_attempt", lambda *_: attempts.append(1) or [LostError("lost"), Died(1, -9)])
    with pytest.raises(Error, match=r"process 1 of 2 was killed \(SIGKILL\), after 3 restarts"):
        launch.supervise(Job(settings(RESNET, 2), few, tmp_path, "cpu"), lambda _: None)
    assert len(attempts) == 1 + 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 5}, "24 cannot be divided among 5 devices; set it to 20 or 25"),
        ({"devices": 2, "batch_size": 0}, "works on one device"),
        ({"devices": 2, "compile": True}, "train.compile: works on one device"),
    ],
)
def test_settings_that_many_devices_do_not_take(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_devices(settings(RESNET, **{"devices": 1, **changes}), "cpu", 5)


def test_more_devices_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(InputError, match="4 GPUs were asked for on this host, which has 3"):
        check_devices(settings(RESNET, 4), "cuda", 4)
    check_devices(settings(RESNET, 3), "cuda", 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a host without a GPU")
def test_gpus_asked_for_and_absent(few: DataResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cuda was asked for"):
        train.run(settings(RESNET, 2, accelerator="cuda"), few, out_dir=tmp_path)


def test_devices_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.device_sets(None) == []
    assert ranks.device_sets(2) == ["train.devices=2"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks.device_sets(None) == ["train.devices=4"]
    assert ranks.follows()
    with pytest.raises(InputError, match="2, but torchrun started 4 processes"):
        ranks.device_sets(2)


def test_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun, process 0 opens the store itself."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            monkeypatch.setenv(name, str(value))
        torchrun._store.cache_clear()
        with pytest.raises(Error, match=f"127.0.0.1:{port} is in use by another program"):
            torchrun._store()


@dataclass
class _Command:
    """`pipeline train` on a few embedded digits, started in several ways."""

    folder: Path
    options: list[str] = field(default_factory=list)

    def run(self, *launcher: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        sets = ("data.limit=600", "train.epochs=2", "train.batch_size=60", "train.model.width=4", "train.patience=0")
        given = [word for each in sets for word in ("--set", each)]
        # Without the --, torchrun takes --run for one of its own options.
        command = [*(launcher or ("-m",)), "pipeline", "train", "--run", str(self.folder), *given, *options]
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """One process owns the run folder; what it leaves is what `--devices 2` would have made, and is not made again."""
    elastic = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--")
    done = _Command(tmp_path / "elastic").run(*elastic)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights ") == 1
    local = _Command(tmp_path / "local").run(options=("--devices", "2"))
    assert local.returncode == 0, local.stderr
    outputs = []
    for folder in ("elastic", "local"):
        document = json.loads((tmp_path / folder / "run.json").read_text())
        record = next(each for each in document["stages"] if each["name"] == "train")
        outputs.append((record["key"], record["outputs"]["best.safetensors"]))
    assert outputs[0] == outputs[1]
    again = _Command(tmp_path / "elastic").run(options=("--devices", "2", "--json"))
    assert [each["status"] for each in json.loads(again.stdout)["stages"][:2]] == ["cached", "cached"]


@pytest.mark.slow
def test_torchrun_tells_wrong_input_once(tmp_path: Path) -> None:
    elastic = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--")
    done = _Command(tmp_path).run(*elastic, options=("--set", "train.batch_size=61"))
    assert done.returncode != 0
    assert done.stderr.count("error: train.batch_size: 61 cannot be divided among 2 devices; set it to 60 or 62") == 1
