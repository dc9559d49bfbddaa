"""Streamed frames give the very bits that resident ones give; what is asked for twice, out of order, or damaged."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import train
from stages.arrays import load_frames, load_truth
from stages.spec import AugmentConfig, DataResult, ModelConfig, TrainConfig
from stages.train import resident, stage
from stages.train.examples import Examples, load_examples
from stages.train.resident import free_bytes, resident_bytes
from stages.train.stream import AHEAD, Feed

CPU = torch.device("cpu")
TRAIN, VAL = 4200, 100  # 4200 x 16 x 16 bytes are more than a megabyte, 100 are not


@pytest.fixture(scope="module")
def some(small_data: DataResult, tmp_path_factory: pytest.TempPathFactory) -> DataResult:
    """4,200 pictures to train on, repeated from the small data."""
    folder = tmp_path_factory.mktemp("some")
    for split, n in (("train", TRAIN), ("val", VAL)):
        frames, truth = load_frames(small_data, split), load_truth(small_data, split)
        rows = np.arange(n) % len(frames)
        np.save(folder / f"{split}.frames.npy", frames[rows])
        np.save(folder / f"{split}.truth.npy", truth[rows])
    return small_data.model_copy(update={"folder": folder, "counts": {"train": TRAIN, "val": VAL, "test": 0}})


def settings(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "epochs": 2, "batch_size": 300, "model": ModelConfig(width=4, dropout=0.2), "precision": "32-true",
        "accelerator": "cpu", "augment": AugmentConfig(shift=0.05, rotate_deg=5, elastic=0.02, mixup=0.2, noise=0.05),
    }  # fmt: skip
    return TrainConfig(**{**defaults, **changes})


def streamed(data: DataResult) -> Examples:
    examples = load_examples(data, "train", CPU, 1)
    assert examples.is_streamed
    return examples


def test_streamed_training_ends_with_the_same_weights(
    some: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "write_png", lambda *_: None)
    digests = {}
    for name, limit in (("resident", 1000), ("streamed", 1)):
        assert load_examples(some, "train", CPU, limit).is_streamed == (name == "streamed")
        result = train.run(settings(resident_mb=limit), some, out_dir=tmp_path / name)
        assert any("stays on disk" in note for note in result.notes) == (name == "streamed")
        digests[name] = hashlib.sha256((tmp_path / name / result.weights).read_bytes()).hexdigest()
    assert digests["streamed"] == digests["resident"]


def test_batches_are_those_of_the_order_whatever_is_asked_for(some: DataResult) -> None:
    """Forwards, again, backwards, the last one: as after an undone step or one that ran out of memory."""
    order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0))
    feed, frames, truth = Feed(streamed(some), order, 64), load_frames(some, "train"), load_truth(some, "train")
    for index in (0, 1, 1, 2, 9, 3, 0, TRAIN // 64 - 1):
        picked = order[index * 64 : (index + 1) * 64].numpy()
        got, targets = feed(index)
        assert np.array_equal(got.numpy(), frames[picked])
        assert np.array_equal(targets.numpy(), truth[picked])


def test_a_process_gets_its_part_of_each_batch(some: DataResult) -> None:
    order = torch.arange(TRAIN)
    feed = Feed(streamed(some), order, 10, lambda picked: picked[5:])
    assert np.array_equal(feed(3)[0].numpy(), load_frames(some, "train")[35:40])


def test_no_more_than_a_few_batches_are_ahead(some: DataResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are read by another thread than the one that asks."""
    loads: list[str] = []
    load_once = Examples.batch

    def counted(self: Examples, picked: Any) -> Any:
        if self is ours:  # an earlier test's feed may still be reading
            loads.append(threading.current_thread().name)
        return load_once(self, picked)

    monkeypatch.setattr(Examples, "batch", counted)
    ours = streamed(some)
    feed = Feed(ours, torch.arange(TRAIN), 10)
    for index in range(5):
        feed(index)
    time.sleep(0.1)
    assert 5 <= len(loads) <= 5 + AHEAD
    assert threading.current_thread().name not in loads


def test_the_epoch_end_is_not_read_past(some: DataResult) -> None:
    feed = Feed(streamed(some), torch.arange(TRAIN), 1200)
    assert feed.steps == 3
    feed(2)
    assert set(feed.waiting) == {2}


def test_an_error_of_reading_reaches_who_asks(some: DataResult) -> None:
    feed = Feed(streamed(some), torch.full((TRAIN,), TRAIN), 10)
    with pytest.raises(IndexError):
        feed(0)


def test_a_sample_of_a_streamed_split_is_that_of_a_resident_one(some: DataResult) -> None:
    ours, other = (load_examples(some, "train", CPU, limit).sample(50, 3) for limit in (1, 1000))
    assert torch.equal(ours.frames, other.frames)
    assert torch.equal(ours.targets, other.targets)


def test_the_files_are_never_written(some: DataResult) -> None:
    before = (some.folder / "train.frames.npy").read_bytes()
    examples = streamed(some)
    examples.frames[:100].zero_()  # as nobody does
    assert load_frames(some, "train")[:100].any()
    assert (some.folder / "train.frames.npy").read_bytes() == before


def test_the_default_limit_is_half_of_what_is_free_in_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "CGROUP", tmp_path)
    machine = free_bytes(CPU)
    assert machine > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_bytes(CPU) == pytest.approx(machine, rel=0.5)
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_bytes(CPU) == 4000
    assert resident_bytes(0, CPU) == 2000
    assert resident_bytes(3, CPU) == 3_000_000
    (tmp_path / "memory.max").write_text("900\n")
    assert free_bytes(CPU) == 0
