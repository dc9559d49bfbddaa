"""Distillation and pruning: what a training takes from another run, what it makes of it, and wrong uses."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax

from edge_demo.errors import Error, InputError
from pipeline.run import STAGES
from stages import train
from stages.other_run import fingerprint, read_other_run
from stages.spec import AugmentConfig, DataResult, ModelConfig, TrainConfig, TrainResult
from stages.train.examples import load_examples
from stages.train.sources import read_sources
from stages.train.stage import make_fabric, make_learner
from stages.train.step import train_step
from stages.train.teacher import distance
from stages.trained import load_trained

WriteRun = Callable[[Path, DataResult, TrainResult], Path]

PLAIN = ModelConfig(name="mlp", width=16)


def config_of(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "batch_size": 48, "model": PLAIN, "precision": "32-true", **changes})


@pytest.fixture(scope="module")
def resnet_run(
    small_data: DataResult, small_train: TrainResult, tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun
) -> Path:
    return write_run(tmp_path_factory.mktemp("resnet") / "run", small_data, small_train)


@pytest.fixture(scope="module")
def mlp_run(small_data: DataResult, tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun) -> Path:
    folder = tmp_path_factory.mktemp("mlp")
    (folder / "out").mkdir()
    return write_run(folder / "run", small_data, train.run(config_of(), small_data, out_dir=folder / "out"))


def altered(run: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run whose account says something else."""
    shutil.copytree(run, folder)
    document = json.loads((folder / "run.json").read_text())
    change(document)
    (folder / "run.json").write_text(json.dumps(document))
    return folder


# --- distillation ----------------------------------------------------------------------------------------------------


def test_the_distance_is_the_paper_s() -> None:
    """KL(teacher || student) at temperature T, mean over pictures, times T squared; by scipy."""
    rng = np.random.default_rng(0)
    student, teacher, t = rng.normal(size=(5, 4)) * 3, rng.normal(size=(5, 4)) * 3, 2.5
    q, p = log_softmax(student / t, axis=1), log_softmax(teacher / t, axis=1)
    expected = t**2 * (np.exp(p) * (p - q)).sum(axis=1).mean()
    assert float(distance(torch.from_numpy(student), torch.from_numpy(teacher), t)) == pytest.approx(expected, rel=1e-5)


def step(data: DataResult, config: TrainConfig, weights: Path | None) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of one augmented step, and the gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        learner = make_learner(config, data, make_fabric("cpu", "32-true"), read_sources(config, data)[0])
    if weights is not None:
        learner.core.load_state_dict(load_file(weights))
    examples = load_examples(data, "train", torch.device("cpu"))
    loss, _ = train_step(
        learner, *examples.batch(slice(0, 64)), 0.0, torch.Generator().manual_seed(0), config.batch_size
    )
    return float(loss), {name: p.grad.clone() for name, p in learner.core.named_parameters() if p.grad is not None}


def test_teacher_and_student_see_the_same_changed_pictures(small_data: DataResult, mlp_run: Path) -> None:
    """A student with its teacher's weights is at distance 0 from it, only if both see the same random changes."""
    changes = AugmentConfig(shift=0.1, noise=0.1, invert=0.5, mixup=0.4)
    config = config_of(teacher=str(mlp_run), teacher_weight=1.0, augment=changes)
    loss, gradients = step(small_data, config, mlp_run / "train" / "best.safetensors")
    assert loss == pytest.approx(0, abs=1e-6)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) < 1e-6


def test_the_shares_of_teacher_and_labels(small_data: DataResult, mlp_run: Path) -> None:
    alone, by_label = step(small_data, config_of(), None)
    only, by_teacher = step(small_data, config_of(teacher=str(mlp_run), teacher_weight=1.0), None)
    mixed, by_both = step(small_data, config_of(teacher=str(mlp_run), teacher_weight=0.25), None)
    assert mixed == pytest.approx(0.75 * alone + 0.25 * only, rel=1e-5)
    for name, gradient in by_both.items():
        torch.testing.assert_close(gradient, 0.75 * by_label[name] + 0.25 * by_teacher[name], rtol=1e-3, atol=1e-6)


def test_a_student_comes_closer_to_its_teacher_than_alone(
    small_data: DataResult, resnet_run: Path, tmp_path: Path
) -> None:
    """In its scores on test, which neither has seen; and the result says whose student it is."""
    frames = torch.from_numpy(np.load(small_data.folder / "test.frames.npy"))

    def answers(result: TrainResult) -> np.ndarray:
        with torch.no_grad():
            return load_trained(small_data, result)(frames)[0].numpy().astype(np.float64)

    (tmp_path / "alone").mkdir()
    (tmp_path / "taught").mkdir()
    alone = train.run(config_of(epochs=4), small_data, out_dir=tmp_path / "alone")
    config = config_of(epochs=4, teacher=str(resnet_run), teacher_temperature=2.0)
    taught = train.run(config, small_data, out_dir=tmp_path / "taught")
    wanted = answers(read_other_run(str(resnet_run), "train.teacher").train)
    apart = [float((wanted * np.log(wanted / answers(result))).sum(axis=1).mean()) for result in (alone, taught)]
    assert apart[1] < apart[0]
    assert alone.sources == {}
    weights = (resnet_run / "train" / "best.safetensors").read_bytes()
    assert taught.sources == {"train.teacher": hashlib.sha256(weights).hexdigest()}
    assert any(f"train.teacher is {resnet_run}: resnet" in note for note in taught.notes)


# --- pruning ---------------------------------------------------------------------------------------------------------


def test_a_pruned_network_is_fine_tuned_recorded_and_read_back(
    small_data: DataResult, small_train: TrainResult, resnet_run: Path, tmp_path: Path
) -> None:
    config = config_of(prune=str(resnet_run), model=small_train.model, lr=0.003, teacher=str(resnet_run))
    result = train.run(config, small_data, out_dir=tmp_path)
    assert result.model.channels
    assert result.model.model_copy(update={"channels": ()}) == small_train.model
    network = load_trained(small_data, result)
    frames = torch.from_numpy(np.load(small_data.folder / "val.frames.npy"))
    truth = torch.from_numpy(np.load(small_data.folder / "val.truth.npy"))
    with torch.no_grad():
        share = float((network(frames)[0].argmax(dim=1) == truth).float().mean())
    assert result.val == pytest.approx(share)
    assert share > 0.85
    whole = sum(p.numel() for p in load_trained(small_data, small_train).core.parameters())
    assert result.parameters < 0.6 * whole
    assert set(result.sources) == {"train.prune", "train.teacher"}


def test_training_begins_with_the_weights_that_were_kept(small_data: DataResult, resnet_run: Path) -> None:
    other = read_other_run(str(resnet_run), "train.prune")
    config = config_of(prune=str(resnet_run), prune_share=0.3, model=other.train.model)
    learner = make_learner(config, small_data, make_fabric("cpu", "32-true"), read_sources(config, small_data)[0])
    before = load_file(resnet_run / "train" / "best.safetensors")["body.stem.conv.weight"]
    kept = learner.core.state_dict()["body.stem.conv.weight"]
    assert len(kept) < len(before)
    assert all(any(torch.equal(filters, old) for old in before) for filters in kept)
    assert learner.config.model.channels


# --- keys and resume -------------------------------------------------------------------------------------------------


def test_the_key_of_train_follows_the_other_run_s_weights(mlp_run: Path, tmp_path: Path) -> None:
    """The same path with other weights is another training; a setting that names no run has no part in it."""
    outside = next(stage.outside for stage in STAGES if stage.name == "train")
    assert outside(config_of()) == ""
    run = altered(mlp_run, tmp_path / "run", lambda document: None)
    config = config_of(teacher=str(run))
    before = outside(config)
    weights = {name: tensor + 1 for name, tensor in load_file(run / "train" / "best.safetensors").items()}
    save_file(weights, run / "train" / "best.safetensors")
    with pytest.raises(InputError, match="is not what that run wrote"):
        outside(config)
    document = json.loads((run / "run.json").read_text())
    sha256 = hashlib.sha256((run / "train" / "best.safetensors").read_bytes()).hexdigest()
    document["stages"][1]["outputs"]["best.safetensors"] = sha256
    (run / "run.json").write_text(json.dumps(document))
    assert outside(config) != before == fingerprint(config_of(teacher=str(mlp_run)))


def test_the_run_may_be_named_by_its_train_folder(mlp_run: Path) -> None:
    assert read_other_run(str(mlp_run / "train"), "train.teacher").folder == mlp_run


# --- wrong uses ------------------------------------------------------------------------------------------------------


def set_data(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["stages"][0]["result"].update(values)


def set_train(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["stages"][1]["result"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_train(labels=list("abcdefghij")), r"labels of .* are \[.*\], not \[.*\], as here"),
        (set_train(size_wh=[32, 32]), r"size_wh of .* is \[32, 32\], not \[16, 16\]"),
        (set_train(task="detect"), r'task of .* is "detect", not "classify"'),
        (set_data(colour="rgb"), r'colour of .* is "rgb", not "gray"'),
        (lambda document: document["stages"].pop(), r"has not finished"),
        (lambda document: document["stages"][1].update(status="failed"), r"has not finished"),
        (set_train(surprise=1), r"another version of this program"),
        (lambda document: document.update(schema="x"), r"is not a pipeline\.run/1 file"),
    ],
)
def test_another_problem_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, small_data: DataResult, mlp_run: Path, tmp_path: Path
) -> None:
    config = config_of(teacher=str(altered(mlp_run, tmp_path / "run", change)))
    with pytest.raises(InputError, match=message) as caught:
        read_sources(config, small_data)
    assert str(caught.value).startswith("train.teacher: ")
    assert caught.value.hint


def test_a_teacher_that_has_seen_val_or_test_is_refused(small_data: DataResult, mlp_run: Path, tmp_path: Path) -> None:
    """Content hashes decide, whatever the splits are called; without them it is told that nobody knows."""
    run = altered(mlp_run, tmp_path / "run", set_data(digests={"train": "another"}))
    items = json.loads((small_data.folder / "items.json").read_text())
    hashed = {
        split: [{**item, "sha256": f"{split}-{index}"} for index, item in enumerate(items[split])] for split in items
    }
    ours = small_data.model_copy(update={"folder": tmp_path / "ours"})
    ours.folder.mkdir()
    (ours.folder / "items.json").write_text(json.dumps(hashed))
    theirs = {**hashed, "train": [*hashed["train"], hashed["test"][5], hashed["val"][2]]}
    (run / "data" / "items.json").write_text(json.dumps(theirs))
    config = config_of(teacher=str(run))
    hashed["val"] = [{**item, "sha256": f"new-{item['sha256']}"} for item in hashed["val"]]
    (ours.folder / "items.json").write_text(json.dumps(hashed))
    with pytest.raises(InputError, match="was trained on 1 pictures that are val or test here"):
        read_sources(config, ours)
    (run / "data" / "items.json").write_text(json.dumps({**theirs, "train": theirs["train"][:-2]}))
    assert not any("is not known" in note for note in read_sources(config, ours)[1])
    (run / "data" / "items.json").unlink()
    assert any("is not known" in note for note in read_sources(config, ours)[1])


def test_no_run_there_and_damaged_weights(small_data: DataResult, mlp_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.prune: .*nowhere is not a run folder") as caught:
        read_sources(config_of(prune=str(tmp_path / "nowhere")), small_data)
    assert caught.value.hint
    run = altered(mlp_run, tmp_path / "run", lambda document: None)
    (run / "train" / "best.safetensors").unlink()
    with pytest.raises(InputError, match=r"best\.safetensors cannot be read"):
        read_sources(config_of(teacher=str(run)), small_data)
    (run / "train" / "best.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="is not what that run wrote"):
        read_sources(config_of(teacher=str(run)), small_data)


def test_a_run_cannot_learn_from_itself(small_data: DataResult, mlp_run: Path) -> None:
    with pytest.raises(InputError, match="is this run itself"):
        train.run(config_of(teacher=str(mlp_run)), small_data, out_dir=mlp_run / "train")


def test_a_dial_the_pruned_network_does_not_have_is_refused(small_data: DataResult, mlp_run: Path) -> None:
    config = config_of(prune=str(mlp_run), model=ModelConfig(name="mlp", width=32))
    with pytest.raises(InputError, match=r"train\.model\.width of .* is 16, not 32, as here"):
        read_sources(config, small_data)


def test_a_teacher_of_nan_is_refused(small_data: DataResult, mlp_run: Path, tmp_path: Path) -> None:
    run = altered(mlp_run, tmp_path / "run", lambda document: None)
    weights = load_file(run / "train" / "best.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, run / "train" / "best.safetensors")
    document = json.loads((run / "run.json").read_text())
    sha256 = hashlib.sha256((run / "train" / "best.safetensors").read_bytes()).hexdigest()
    document["stages"][1]["outputs"]["best.safetensors"] = sha256
    (run / "run.json").write_text(json.dumps(document))
    (tmp_path / "out").mkdir()
    with pytest.raises(Error, match="holds NaN or infinity"):
        train.run(config_of(teacher=str(run)), small_data, out_dir=tmp_path / "out")
