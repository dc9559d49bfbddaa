"""The engine step by step: accumulation, clipping, L1, averaged weights, recovery, memory, checkpoints."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from edge_demo.errors import Error, InputError
from stages import train
from stages.arrays import load_frames, load_truth
from stages.augment import augment
from stages.models import MODELS
from stages.spec import AugmentConfig, DataResult, ModelConfig, Step, TrainConfig, TrainResult
from stages.tasks import TASKS
from stages.train import device, epoch, memory, recover, stage
from stages.train.average import average_of
from stages.train.checkpoint import Progress
from stages.train.examples import Examples, balanced_weights, load_examples
from stages.train.learner import Learner
from stages.train.optim import OPTIMIZERS
from stages.train.step import train_step

TRAIN, VAL, BATCH = 120, 40, 20
STEPS = TRAIN // BATCH
MLP = ModelConfig(name="mlp", width=16)
RESNET = ModelConfig(width=4)


def settings(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "epochs": 2,
        "batch_size": BATCH,
        "model": MLP,
        "precision": "32-true",
        "accelerator": "cpu",
        "lr": 0.003,
    }
    return TrainConfig(**{**defaults, **changes})


@pytest.fixture(scope="module")
def few(small_data: DataResult, tmp_path_factory: pytest.TempPathFactory) -> DataResult:
    """A tenth of the small data."""
    folder = tmp_path_factory.mktemp("few")
    for split, n in (("train", TRAIN), ("val", VAL)):
        np.save(folder / f"{split}.frames.npy", load_frames(small_data, split)[:n])
        np.save(folder / f"{split}.truth.npy", load_truth(small_data, split)[:n])
    counts = tuple(np.bincount(load_truth(small_data, "train")[:TRAIN], minlength=10).tolist())
    update = {
        "folder": folder,
        "counts": {"train": TRAIN, "val": VAL, "test": 0},
        "class_counts": {**small_data.class_counts, "train": counts},
    }
    return small_data.model_copy(update=update)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and no drawing, which takes longer than these trainings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(stage, "write_png", lambda *_: None)
    monkeypatch.setattr(stage, "draw_val", lambda *_: "")
    yield
    torch.set_num_threads(threads)


def learner_of(config: TrainConfig, data: DataResult) -> Learner:
    with stage.torch_settings(config):
        return stage.make_learner(config, data, Fabric(accelerator="cpu", devices=1, precision="32-true"), {})


def batch_of(data: DataResult, n: int = BATCH) -> tuple[Tensor, Tensor]:
    examples = load_examples(data, "train", torch.device("cpu"))
    return examples.frames[:n], examples.targets[:n]


def flat(learner: Learner) -> Tensor:
    return torch.cat([param.detach().flatten() for param in learner.core.parameters()])


def step(learner: Learner, batch: tuple[Tensor, Tensor], lr: float = 0.1, pass_size: int = 0) -> Tensor:
    return train_step(learner, *batch, lr, torch.Generator().manual_seed(1), pass_size)[0]


def weights(result: TrainResult) -> bytes:
    return (result.folder / result.weights).read_bytes()


# --- every network with every optimizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("model", sorted(name for name, row in MODELS.items() if "classify" in row.tasks))
def test_every_model_trains_with_every_optimizer(few: DataResult, tmp_path: Path, model: str, optimizer: str) -> None:
    """A short real run; the loss of the second half is below that of an answer by chance or of the start."""
    lr = {"sgd": 0.02, "adagrad": 0.02, "adadelta": 1.0}.get(optimizer, 0.003)
    config = settings(
        epochs=3, model=ModelConfig(name=model, **({"width": 4} if model not in ("convnet", "perceptron") else {})),
        optimizer=optimizer, lr=lr, weight_decay=0.0, schedule="constant",
    )  # fmt: skip
    if (model, optimizer) == ("perceptron", "muon"):
        with pytest.raises(InputError, match="muon moves hidden layers"):
            train.run(config, few, out_dir=tmp_path)
        return
    rows: list[Step] = []
    result = train.run(config, few, out_dir=tmp_path, on_step=rows.append)
    losses = [row.values["loss"] for row in rows if "val_accuracy" in row.values]
    assert losses[-1] < losses[0]
    assert (result.epochs, result.recoveries, result.batch_size, result.accumulate) == (3, 0, BATCH, 1)


# --- accumulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross-entropy", "binary"])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_accumulated_passes_equal_one_large_batch(few: DataResult, loss: Any, class_weights: Any) -> None:
    """For a network without batch norm, with penalties, clipping and augmentation on."""
    config = settings(
        model=ModelConfig(name="convnet"), loss=loss, class_weights=class_weights, optimizer="sgd", l1=1e-3,
        clip_norm=0.5, augment=AugmentConfig(shift=0.1, noise=0.1),
    )  # fmt: skip
    whole, parts = learner_of(config, few), learner_of(config, few)
    batch = batch_of(few)
    for _ in range(3):
        losses = step(whole, batch), step(parts, batch, pass_size=6)
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert torch.allclose(flat(whole), flat(parts), rtol=1e-4, atol=1e-6)
    assert not torch.equal(flat(whole), flat(learner_of(config, few)))


def test_an_accumulated_training_is_that_of_the_large_batch(few: DataResult, tmp_path: Path) -> None:
    one = train.run(settings(model=ModelConfig(name="convnet")), few, out_dir=tmp_path / "a")
    config = settings(model=ModelConfig(name="convnet"), batch_size=BATCH // 4, accumulate=4)
    four = train.run(config, few, out_dir=tmp_path / "b")
    from safetensors.torch import load_file

    ours, theirs = load_file(four.folder / four.weights), load_file(one.folder / one.weights)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4) for name in theirs)
    assert (four.batch_size, four.accumulate) == (BATCH // 4, 4)


def test_too_many_passes_are_an_error(few: DataResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.accumulate: 7 passes of 20 are more than the 120 .* set it to 6"):
        train.run(settings(accumulate=7), few, out_dir=tmp_path)


# --- clipping, L1, class weights -------------------------------------------------------------------------------------


def test_clipping_by_hand(few: DataResult) -> None:
    """Without momentum a step is lr x gradient: its norm is lr x the limit, its direction that of the free step."""
    changes = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    moved = []
    for clip_norm in (0.0, 0.01):
        learner = learner_of(settings(clip_norm=clip_norm, **changes), few)
        before = flat(learner)
        step(learner, batch_of(few), lr=0.1)
        moved.append((flat(learner) - before).double())
    free, clipped = moved
    assert free.norm().item() > 0.01
    assert clipped.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(free, clipped, dim=0).item() == pytest.approx(1, abs=1e-4)


def test_l1_pulls_matrices_to_zero_by_lr_times_l1(few: DataResult) -> None:
    """And leaves vectors alone; the loss that is told does not contain it."""
    changes = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    plain, penalized = (learner_of(settings(l1=l1, **changes), few) for l1 in (0.0, 0.01))
    before = [param.detach().clone() for param in plain.core.parameters()]
    assert torch.equal(step(plain, batch_of(few)), step(penalized, batch_of(few)))
    for start, free, pulled in zip(before, plain.core.parameters(), penalized.core.parameters(), strict=True):
        expected = 0.1 * 0.01 * start.sign() if start.ndim > 1 else torch.zeros_like(start)
        assert torch.allclose(free - pulled, expected, atol=1e-6)


def test_balanced_weights_are_scikit_learns(few: DataResult) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    truth = load_truth(few, "train")
    expected = compute_class_weight("balanced", classes=np.arange(10), y=np.asarray(truth))
    assert balanced_weights(few, torch.device("cpu")).numpy() == pytest.approx(expected, rel=1e-6)


def test_a_class_without_pictures_has_no_weight(few: DataResult, tmp_path: Path) -> None:
    missing = few.model_copy(update={"class_counts": {"train": (0, *few.class_counts["train"][1:])}})
    with pytest.raises(InputError, match="no training images of class 0"):
        train.run(settings(class_weights="balanced"), missing, out_dir=tmp_path)


# --- averaged weights ------------------------------------------------------------------------------------------------


def test_average_by_hand(few: DataResult) -> None:
    """Weights and batch norm's statistics, with the warm-up of the decay; counters are copied."""
    learner = learner_of(settings(model=RESNET), few)
    average = average_of(learner.core, 0.5)
    assert average is not None
    expected = {name: value.clone().double() for name, value in learner.core.state_dict().items()}
    learner.core.train()
    for t in range(1, 12):
        step(learner, batch_of(few))
        average.update(learner.core, t)
        decay = min(0.5, (1 + t) / (10 + t))
        for name, value in learner.core.state_dict().items():
            counter = name.endswith("num_batches_tracked")
            expected[name] = value.double() if counter else decay * expected[name] + (1 - decay) * value.double()
    for name, value in average.network.state_dict().items():
        assert torch.allclose(value.double(), expected[name], rtol=1e-4, atol=1e-6), name
    assert not any(param.requires_grad for param in average.network.parameters())


def test_the_average_is_measured_kept_and_shipped(few: DataResult, tmp_path: Path) -> None:
    """A decay of almost 1 without warm-up would ship the initial weights; what ships lies between start and end."""
    from safetensors.torch import load_file

    from stages.trained import load_trained

    results = [train.run(settings(model=RESNET, ema=ema), few, out_dir=tmp_path / str(ema)) for ema in (0.0, 0.9)]
    last, averaged = (load_file(result.folder / result.weights) for result in results)
    assert set(last) == set(averaged)
    assert not torch.equal(last["head.weight"], averaged["head.weight"])
    frames = torch.from_numpy(np.repeat(load_frames(few, "val"), 3, axis=3))
    with torch.no_grad():
        answers = load_trained(few, results[1])(frames)[0].argmax(1).numpy()
    assert results[1].val == pytest.approx((answers == load_truth(few, "val")).mean())


# --- recovery --------------------------------------------------------------------------------------------------------


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: set[int], how: str) -> list[float]:
    """Makes calls of `train_step` number `bad` (from 1) return a NaN loss, or leave NaN weights; returns all rates."""
    calls, rates, real = 0, [], epoch.train_step

    def fake(learner: Learner, frames: Tensor, targets: Tensor, lr: float, *rest: Any) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        rates.append(lr)
        loss, hits = real(learner, frames, targets, lr, *rest)
        if calls in bad:
            with torch.no_grad():
                next(learner.core.parameters()).fill_(torch.nan)
            return (loss * torch.nan if how == "loss" else loss), hits
        return loss, hits

    monkeypatch.setattr(epoch, "train_step", fake)
    return rates


@pytest.mark.parametrize("how", ["loss", "weights"])
def test_a_bad_step_is_undone(few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    rates = poisoned(monkeypatch, {STEPS + 2}, how)
    monkeypatch.setattr(epoch, "GOOD_EVERY", 2)
    told: list[Step] = []
    result = train.run(settings(schedule="constant", ema=0.5), few, out_dir=tmp_path, on_step=told.append)
    (note,) = [note for note in result.notes if "recovery" in note]
    assert f"in step {STEPS + 2}: went back to the last good state, and on with 0.5 of the learning rate" in note
    assert [step.note for step in told if "recovery" in step.note] == [note]
    assert result.recoveries == 1
    assert rates == [0.003] * (STEPS + 2) + [0.0015] * (STEPS - 2)
    assert result.val > 0


def test_recovery_does_not_depend_on_when_it_is_noticed(
    few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, or only at the next good state."""
    found = []
    for every, folder in ((0.0, "a"), (1e9, "b")):
        with monkeypatch.context() as patch:
            bad_at(patch, {3})
            patch.setattr(epoch, "REPORT_EVERY_S", every)
            found.append(train.run(settings(model=RESNET), few, out_dir=tmp_path / folder))
    assert weights(found[0]) == weights(found[1])
    assert found[0].notes == found[1].notes
    assert found[0].recoveries == 1


def bad_at(patch: pytest.MonkeyPatch, indices: set[int]) -> None:
    """Batches number `indices` (from 0) of the first epoch give a NaN loss whenever they come."""
    real = epoch.Running.add

    def fake(self: Any, index: int, items: int, loss: Tensor, hits: Tensor) -> None:
        real(self, index, items, loss * torch.nan if index in indices and not done else loss, hits)

    done: list[int] = []
    evaluate = stage.evaluate

    def after(*args: Any) -> Any:
        done.append(1)
        return evaluate(*args)

    patch.setattr(epoch.Running, "add", fake)
    patch.setattr(stage, "evaluate", after)


def test_the_fourth_time_is_an_error(few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, {2, 4, 6, 8}, "loss")
    monkeypatch.setattr(epoch, "REPORT_EVERY_S", 0.0)
    with pytest.raises(Error, match=r"training diverged: the loss is nan in step 8, after 3 recoveries; .*lr=0.0003"):
        train.run(settings(), few, out_dir=tmp_path)


def test_an_epoch_without_a_good_step_is_an_error(
    few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {1, 2, 3}, "loss")
    with pytest.raises(Error, match="no step of epoch 1 was finite"):
        train.run(settings(batch_size=60), few, out_dir=tmp_path)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_remembered_state_comes_back_whole(few: DataResult, optimizer: str) -> None:
    """Two steps from it end at the same bits, before and after it was put back."""
    learner = learner_of(settings(model=RESNET, optimizer=optimizer, ema=0.5), few)
    step(learner, batch_of(few))
    good, ends = recover.remember(learner), []
    for _ in range(2):
        recover.restore(learner, good)
        step(learner, batch_of(few))
        step(learner, batch_of(few))
        ends.append(flat(learner))
    assert torch.equal(*ends)


# --- memory ----------------------------------------------------------------------------------------------------------


def small_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A device on which a pass of more than `most` pictures runs out of memory; returns the passes that ran."""
    ran: list[int] = []
    real = Learner.batch

    def fake(self: Learner, frames: Tensor) -> Tensor:
        if self.core.training and len(frames) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if self.core.training:
            ran.append(len(frames))
        return real(self, frames)

    monkeypatch.setattr(Learner, "batch", fake)
    return ran


def test_out_of_memory_halves_the_pass(few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps stay those of the whole batch: the weights are those of a training with enough memory."""
    from safetensors.torch import load_file

    config = settings(model=ModelConfig(name="convnet"), augment=AugmentConfig(noise=0.1))
    enough = train.run(config, few, out_dir=tmp_path / "a")
    ran = small_memory(monkeypatch, 6)
    result = train.run(config, few, out_dir=tmp_path / "b")
    assert ran == [5] * (4 * STEPS * config.epochs)
    assert [note for note in result.notes if "out of memory" in note] == [
        "out of memory in step 1: goes on with 10 in place of 20 pictures a pass",
        "out of memory in step 1: goes on with 5 in place of 10 pictures a pass",
    ]
    assert (result.batch_size, result.accumulate) == (5, 4)
    ours, theirs = load_file(result.folder / result.weights), load_file(enough.folder / enough.weights)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4) for name in theirs)


def test_out_of_memory_with_the_smallest_pass(few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_memory(monkeypatch, 0)
    with pytest.raises(Error, match="out of memory in step 1 with two pictures a pass"):
        train.run(settings(), few, out_dir=tmp_path)


def test_batch_size_zero_on_a_cpu_is_an_error(few: DataResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.batch_size: 0 asks for what fits into a GPU"):
        train.run(settings(batch_size=0), few, out_dir=tmp_path)


class OnGpu:
    """Pictures that say they are on a GPU."""

    device = torch.device("cuda")

    def __init__(self, frames: Tensor) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, part: Any) -> Tensor:
        return self.frames[part]


@pytest.mark.parametrize(("most", "expected"), [(5, 4), (1000, 64), (2, 2)])
def test_largest_batch_is_the_power_of_two_that_fits(
    few: DataResult, monkeypatch: pytest.MonkeyPatch, most: int, expected: int
) -> None:
    """And at most a sixteenth of the pictures; the network is as it was."""
    learner = learner_of(settings(model=RESNET), few)
    before = {name: value.clone() for name, value in learner.core.state_dict().items()}
    frames, targets = (part.repeat_interleave(10, 0) for part in batch_of(few, TRAIN))
    examples: Any = Examples(OnGpu(frames), targets, np.zeros(0))  # type: ignore[arg-type]
    monkeypatch.setattr(torch, "Generator", lambda _: torch.default_generator)
    small_memory(monkeypatch, most)
    assert memory.largest_batch(learner, examples) == expected
    assert all(torch.equal(value, before[name]) for name, value in learner.core.state_dict().items())


def test_a_found_batch_size_is_used_and_told(few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "largest_batch", lambda *_: 8)
    told: list[Step] = []
    result = train.run(settings(batch_size=0), few, out_dir=tmp_path, on_step=told.append)
    assert result.batch_size == 8
    assert told[-1].total == 2 * (TRAIN // 8)
    assert "batches of 8, the largest power of two that fits" in result.notes


# --- compiler --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept() -> None:
    """Rounds of 64 arrays of 256 pages: without it, freed ones go back, and each round is as many page faults."""
    code = """
import resource, sys
import numpy as np
from stages.train.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def rounds(n):
    for _ in range(n):
        [np.ones(1 << 17) for _ in range(64)]
rounds(2)
before = faults()
rounds(4)
print(faults() - before)
"""
    command = [sys.executable, "-c", code]
    kept, given_back = (
        int(subprocess.run([*command, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "not")
    )
    assert kept < 64 * 256 < given_back


def test_compile_without_a_compiler_is_an_error(
    few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=r"train\.compile: torch\.compile needs a C\+\+ compiler"):
        train.run(settings(compile=True), few, out_dir=tmp_path)


def test_compile_on_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.shutil, "which", str)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="needs triton"):
        device.check_compiler("cuda")
    device.check_compiler("cpu")


@pytest.mark.slow
def test_a_compiled_training_is_the_eager_one(few: DataResult, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    both = [train.run(settings(compile=c), few, out_dir=tmp_path / str(c)) for c in (False, True)]
    ours, theirs = (load_file(result.folder / result.weights) for result in both)
    assert set(ours) == set(theirs)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-2, atol=1e-3) for name in ours)


# --- checkpoints -----------------------------------------------------------------------------------------------------


class InterruptError(Exception):
    """Stands for whatever ends a program."""


def stop_after(steps: int) -> Callable[..., Any]:
    real, calls = epoch.train_step, 0

    def fake(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise InterruptError
        return real(*args)

    return fake


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": ModelConfig(name="mlp", width=8)}, "train.model.width was 16 and is 8"),
        ({"lr": 0.01}, "train.lr was 0.003 and is 0.01"),
        ({"model": ModelConfig(name="perceptron")}, 'train.model.name was "mlp" and is "perceptron"'),
        ({"ema": 0.9, "seed": 1, "l1": 0.1, "clip_norm": 1.0}, "and 1 more"),
    ],
)
def test_a_changed_setting_is_named(
    few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(epoch, "train_step", stop_after(STEPS + 1))
        with pytest.raises(InterruptError):
            train.run(settings(), few, out_dir=tmp_path)
    told: list[Step] = []
    result = train.run(settings(**changes), few, out_dir=tmp_path, on_step=told.append)
    (note,) = [step.note for step in told if "starts over" in step.note]
    assert said in note
    assert result.resumed_from_step == 0


def test_progress_of_a_fresh_training() -> None:
    assert Progress() == Progress(epoch=0, step=0, index=0, lr_scale=1.0, recoveries=0, notes=[], sums={})


def test_each_picture_is_mirrored_in_every_other_epoch(
    few: DataResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the network is shown of every picture in four epochs: one way and the other in turn, half of them first."""
    batches: list[dict[bytes, bytes]] = []

    def watched(*arguments: Any) -> Any:
        frames, targets = augment(*arguments)
        both = [(picture.tobytes(), picture[:, ::-1].tobytes()) for picture in frames.numpy()]
        batches.append({min(pair): pair[0] for pair in both if pair[0] != pair[1]})
        return frames, targets

    monkeypatch.setitem(TASKS, "classify", replace(TASKS["classify"], augment=watched))
    config = settings(epochs=4, augment=AugmentConfig(flip=0.5, flip_in_turn=True), batch_size=8)
    train.run(config, few, out_dir=tmp_path)
    steps = len(batches) // 4
    first, second, third, fourth = (
        {name: way for batch in batches[at * steps : (at + 1) * steps] for name, way in batch.items()}
        for at in range(4)
    )
    shared = set(first) & set(second) & set(third) & set(fourth)
    assert len(shared) > TRAIN / 2
    assert all(first[name] == third[name] != second[name] == fourth[name] for name in shared)
    assert 0.3 < np.mean([first[name] == name for name in shared]) < 0.7
