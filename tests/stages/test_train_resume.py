"""A training that is interrupted ends with the same weights, bit by bit, as one that is not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from edge_demo.errors import Error
from stages import train
from stages.arrays import load_frames, load_truth
from stages.spec import AugmentConfig, DataResult, ModelConfig, Step, TrainConfig
from stages.train import stage
from stages.train.checkpoint import FILE
from stages.train.optim import OPTIMIZERS

EPOCHS = 3
TRAIN, VAL, BATCH = 300, 100, 50
STEPS = TRAIN // BATCH  # per epoch

# Kills itself, as SIGKILL leaves no time to clean up, right before optimizer step number KILL_AT (from 1).
KILLED = """
import os, signal, sys
from pathlib import Path
from stages import train
from stages.arrays import load_frames, load_truth
from stages.spec import DataResult, TrainConfig
from stages.train import epoch

data = DataResult.model_validate_json(Path(sys.argv[1]).read_text()).model_copy(update={"folder": Path(sys.argv[2])})
config = TrainConfig.model_validate_json(Path(sys.argv[3]).read_text())
kill_at, steps, step_once = int(sys.argv[5]), 0, epoch.train_step

def counted(*args):
    global steps
    steps += 1
    if steps == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step_once(*args)

epoch.train_step = counted
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
    """A quarter of the small data: what matters here are equal bits, not accuracy."""
    folder = tmp_path_factory.mktemp("few")
    for split, n in (("train", TRAIN), ("val", VAL)):
        np.save(folder / f"{split}.frames.npy", load_frames(small_data, split)[:n])
        np.save(folder / f"{split}.truth.npy", load_truth(small_data, split)[:n])
    return small_data.model_copy(update={"folder": folder, "counts": {"train": TRAIN, "val": VAL, "test": 0}})


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the curves takes longer than these trainings."""
    monkeypatch.setattr(stage, "write_png", lambda *_: None)


def weights(folder: Path) -> bytes:
    return (folder / "best.safetensors").read_bytes()


def interrupted(config: TrainConfig, data: DataResult, folder: Path, after_epoch: int = 1) -> None:
    def stop(step: Step) -> None:
        if step.values.get("epoch") == after_epoch and "val_accuracy" in step.values:
            raise InterruptError

    with pytest.raises(InterruptError):
        train.run(config, data, out_dir=folder, on_step=stop)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("kill_at", [STEPS // 2, 2 * STEPS + 5], ids=["first epoch", "last epoch"])
def test_killed_and_resumed(few: DataResult, tmp_path: Path, kill_at: int) -> None:
    config, folder = settings(), tmp_path / "killed"
    (tmp_path / "data.json").write_text(few.model_dump_json())
    (tmp_path / "config.json").write_text(config.model_dump_json())
    arguments = [tmp_path / "data.json", few.folder, tmp_path / "config.json", folder, kill_at]
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "best.safetensors").exists()

    resumed = train.run(config, few, out_dir=folder)
    whole = train.run(config, few, out_dir=tmp_path / "whole")
    assert resumed.resumed_from_step == (kill_at - 1) // STEPS * STEPS
    assert whole.resumed_from_step == 0
    assert weights(folder) == weights(tmp_path / "whole")
    same = {"val", "train", "best_epoch", "epochs", "gates"}
    assert resumed.model_dump(include=same) == whole.model_dump(include=same)
    assert not (folder / FILE).parent.exists()


@pytest.mark.parametrize(
    "model", [ModelConfig(width=4), ModelConfig(name="convnet", dropout=0.5)], ids=lambda m: m.name
)
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_trains_and_resumes(
    few: DataResult, tmp_path: Path, optimizer: str, model: ModelConfig
) -> None:
    """Two epochs, stopped after the first; momentum, averages and step counts all have to come back."""
    config = settings(epochs=2, optimizer=optimizer, model=model, weight_decay=1e-4)
    interrupted(config, few, tmp_path / "a")
    resumed = train.run(config, few, out_dir=tmp_path / "a")
    whole = train.run(config, few, out_dir=tmp_path / "b")
    assert resumed.resumed_from_step == STEPS
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert whole.epochs == 2


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
