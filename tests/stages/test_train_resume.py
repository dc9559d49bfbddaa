"""A training that is interrupted ends with the same weights, bit by bit, as one that is not."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from edge_demo.errors import Error
from stages import train
from stages.arrays import load_frames, load_truth
from stages.spec import AugmentConfig, DataResult, ModelConfig, Step, TrainConfig
from stages.train import epoch, stage
from stages.train.checkpoint import FILE
from stages.train.optim import OPTIMIZERS

EPOCHS = 3
TRAIN, VAL, BATCH = 120, 40, 20
STEPS = TRAIN // BATCH  # per epoch
GOOD_EVERY = 2

# Kills itself, as SIGKILL leaves no time to clean up, right before the optimizer step number KILL_AT of this process
# (from 1). Good states come often and are all written; step BAD of the training has no finite loss.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from stages import train
from stages.spec import DataResult, TrainConfig
from stages.train import epoch, stage

data = DataResult.model_validate_json(Path(sys.argv[1]).read_text()).model_copy(update={"folder": Path(sys.argv[2])})
config = TrainConfig.model_validate_json(Path(sys.argv[3]).read_text())
kill_at, steps, step_once, add = int(sys.argv[5]), 0, epoch.train_step, epoch.Running.add
epoch.GOOD_EVERY, stage.SAVE_EVERY_S = int(sys.argv[6]), 0.0

def counted(*args):
    global steps
    steps += 1
    if steps == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step_once(*args)

def bad(self, index, items, loss, hits):
    add(self, index, items, loss * torch.nan if index == int(sys.argv[7]) else loss, hits)

epoch.train_step, epoch.Running.add, stage.draw_val = counted, bad, lambda *_: ""
train.run(config, data, out_dir=Path(sys.argv[4]))
"""


class InterruptError(Exception):
    """Stands for whatever ends a program."""


def settings(**changes: Any) -> TrainConfig:
    """Everything random at once: order, augmentation, dropout, initialization."""
    defaults: dict[str, Any] = {
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "model": ModelConfig(width=4, dropout=0.2),
        "augment": AugmentConfig(shift=0.05, rotate_deg=5, invert=0.5, noise=0.05),
        "precision": "32-true",
        "accelerator": "cpu",
        "lr": 0.003,
    }
    return TrainConfig(**{**defaults, **changes})


@pytest.fixture(scope="module")
def few(small_data: DataResult, tmp_path_factory: pytest.TempPathFactory) -> DataResult:
    """A tenth of the small data: what matters here are equal bits, not accuracy."""
    folder = tmp_path_factory.mktemp("few")
    for split, n in (("train", TRAIN), ("val", VAL)):
        np.save(folder / f"{split}.frames.npy", load_frames(small_data, split)[:n])
        np.save(folder / f"{split}.truth.npy", load_truth(small_data, split)[:n])
    return small_data.model_copy(update={"folder": folder, "counts": {"train": TRAIN, "val": VAL, "test": 0}})


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr(stage, "write_png", lambda *_: None)
    monkeypatch.setattr(stage, "draw_val", lambda *_: "")


def weights(folder: Path) -> bytes:
    return (folder / "best.safetensors").read_bytes()


def curves(folder: Path) -> list[dict[str, str]]:
    """The rows without what depends on speed."""
    with (folder / "curves.csv").open(encoding="utf-8") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds", "images_per_s")}
            for row in csv.DictReader(file)
        ]


def stop_after(steps: int) -> Callable[..., Any]:
    """A `train_step` that ends the program before step `steps` + 1."""
    real, calls = epoch.train_step, 0

    def fake(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise InterruptError
        return real(*args)

    return fake


def interrupted(config: TrainConfig, data: DataResult, folder: Path, after_epoch: int = 1) -> None:
    def stop(step: Step) -> None:
        if step.values.get("epoch") == after_epoch and "val_accuracy" in step.values:
            raise InterruptError

    with pytest.raises(InterruptError):
        train.run(config, data, out_dir=folder, on_step=stop)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "ema": 0.8, "schedule": "cosine"},
        {"optimizer": "muon", "clip_norm": 1.0, "accumulate": 2, "batch_size": BATCH // 2, "l1": 1e-4},
    ],
    ids=["adamw", "muon"],
)
def test_killed_again_and_again(
    few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """At steps drawn at random, with one bad step in each epoch that has to be recovered from."""
    config, folder = settings(**changes), tmp_path / "killed"
    bad = 3
    (tmp_path / "data.json").write_text(few.model_dump_json())
    (tmp_path / "config.json").write_text(config.model_dump_json())
    for kill_at in np.random.default_rng().integers(2, STEPS + 3, 2).tolist():
        files = [tmp_path / "data.json", few.folder, tmp_path / "config.json", folder]
        arguments = [*map(str, files), str(kill_at), str(GOOD_EVERY), str(bad)]
        done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (folder / "best.safetensors").exists()

    real = epoch.Running.add

    def add(self: Any, index: int, items: int, loss: Tensor, hits: Tensor) -> None:
        real(self, index, items, loss * torch.nan if index == bad else loss, hits)

    monkeypatch.setattr(epoch.Running, "add", add)
    monkeypatch.setattr(epoch, "GOOD_EVERY", GOOD_EVERY)
    resumed = train.run(config, few, out_dir=folder)
    whole = train.run(config, few, out_dir=tmp_path / "whole")
    assert whole.resumed_from_step == 0
    assert weights(folder) == weights(tmp_path / "whole"), f"killed at {kill_at}"
    assert whole.recoveries == EPOCHS
    same = {"val", "train", "best_epoch", "epochs", "gates", "recoveries", "notes"}
    assert resumed.model_dump(include=same) == whole.model_dump(include=same)
    assert not (folder / FILE).parent.exists()


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_resumes_within_an_epoch(
    few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Momentum, averages and step counts all have to come back, and with them the rows of the curves."""
    config = settings(epochs=2, optimizer=optimizer, weight_decay=1e-4, ema=0.9)
    monkeypatch.setattr(epoch, "GOOD_EVERY", GOOD_EVERY)
    monkeypatch.setattr(stage, "SAVE_EVERY_S", 0.0)
    whole = train.run(config, few, out_dir=tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(epoch, "train_step", stop_after(STEPS + 5))
        with pytest.raises(InterruptError):
            train.run(config, few, out_dir=tmp_path / "a")
    resumed = train.run(config, few, out_dir=tmp_path / "a")
    assert resumed.resumed_from_step == STEPS + 4
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert curves(tmp_path / "a") == curves(tmp_path / "b")
    assert whole.epochs == 2


def test_a_long_epoch_is_saved_now_and_then(few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before a minute, here: only the end of the epoch is written."""
    monkeypatch.setattr(epoch, "GOOD_EVERY", GOOD_EVERY)
    monkeypatch.setattr(epoch, "train_step", stop_after(STEPS + 5))
    with pytest.raises(InterruptError):
        train.run(settings(), few, out_dir=tmp_path)
    with safe_open(tmp_path / FILE, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
    assert (progress["epoch"], progress["index"], progress["step"]) == (1, 0, STEPS)


def test_bf16_resumes_too(few: DataResult, tmp_path: Path) -> None:
    config = settings(epochs=2, precision="bf16-mixed")
    interrupted(config, few, tmp_path / "a")
    train.run(config, few, out_dir=tmp_path / "a")
    train.run(config, few, out_dir=tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_interrupted_after_the_last_epoch(few: DataResult, tmp_path: Path) -> None:
    """Nothing is left to train; the result is the same."""
    config = settings(epochs=1)
    interrupted(config, few, tmp_path / "a")
    resumed = train.run(config, few, out_dir=tmp_path / "a")
    train.run(config, few, out_dir=tmp_path / "b")
    assert resumed.epochs == 1
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize("what", ["config", "data"])
def test_a_checkpoint_of_something_else_is_not_used(few: DataResult, tmp_path: Path, what: str) -> None:
    interrupted(settings(epochs=1), few, tmp_path)
    config = settings(epochs=1, seed=1 if what == "config" else 0)
    digests = {**few.digests, **({"train": "0" * 64} if what == "data" else {})}
    told: list[Step] = []
    other = few.model_copy(update={"digests": digests})
    result = train.run(config, other, out_dir=tmp_path, on_step=told.append)
    assert result.resumed_from_step == 0
    assert any("starts over" in step.note for step in told)


def test_a_damaged_checkpoint_is_an_error(few: DataResult, tmp_path: Path) -> None:
    interrupted(settings(epochs=1), few, tmp_path)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Error, match="the checkpoint cannot be read") as caught:
        train.run(settings(epochs=1), few, out_dir=tmp_path)
    assert str(file.parent) in caught.value.hint


def test_checkpoint_is_safetensors_with_json_only(few: DataResult, tmp_path: Path) -> None:
    interrupted(settings(), few, tmp_path, after_epoch=2)
    assert sorted(p.name for p in (tmp_path / FILE).parent.iterdir()) == [FILE.name]
    with safe_open(tmp_path / FILE, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
        names = set(file.keys())
    assert (progress["epoch"], progress["step"], len(progress["rows"])) == (2, 2 * STEPS, 2)
    assert {name.partition(".")[0] for name in names} == {"model", "optimizer", "kept"}
    assert torch.get_default_dtype() == torch.float32
