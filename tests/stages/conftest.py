"""Small real things for the stage tests: scikit-learn's embedded 8x8 digits, and a residual network trained on them."""

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
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional

from edge_demo.manifest import Resize
from stages import export, quantize
from stages.data.prepare import normalization
from stages.graph import Preprocess
from stages.models import build
from stages.quantize.calibration import collect
from stages.quantize.recipes import Source, batch_readers, prepared
from stages.quantize.target import host_target
from stages.spec import DataResult, ExportConfig, ExportResult, ModelConfig, QuantizeConfig, QuantizeResult, TrainResult

SPLITS = {"train": slice(0, 1200), "val": slice(1200, 1400), "test": slice(1400, 1797)}
EPOCHS = 3


def write_data(folder: Path, colour: str) -> DataResult:
    """The digits at 16 x 16 as the data stage writes them; for `rgb` each one on its own coloured ground."""
    digits = load_digits()
    gray = np.kron(digits.images * (255 / 16), np.ones((1, 2, 2))).astype(np.uint8)[..., np.newaxis]
    truth = digits.target.astype(np.int64)
    frames = gray if colour == "gray" else coloured(gray)
    for split, part in SPLITS.items():
        np.save(folder / f"{split}.frames.npy", frames[part])
        np.save(folder / f"{split}.truth.npy", truth[part])
    items = {
        split: [{"id": f"{split}/{i}", "sha256": "0" * 64} for i in range(len(truth[part]))]
        for split, part in SPLITS.items()
    }
    (folder / "items.json").write_text(json.dumps(items), encoding="utf-8")
    seen = frames[SPLITS["train"]]
    levels = np.stack([np.bincount(seen[..., channel].ravel(), minlength=256) for channel in range(seen.shape[3])])
    normalized = normalization(levels, colour)
    return DataResult(
        folder=folder,
        name="sklearn-digits",
        task="classify",
        labels=tuple("0123456789"),
        size_wh=(16, 16),
        resize=Resize(),
        colour=colour,
        counts={split: len(truth[part]) for split, part in SPLITS.items()},
        class_counts={split: tuple(np.bincount(truth[part]).tolist()) for split, part in SPLITS.items()},
        digests={split: hashlib.sha256(frames[part].tobytes()).hexdigest() for split, part in SPLITS.items()},
        mean=normalized.mean,
        std=normalized.std,
        centre=normalized.centre,
        dropped={},
    )


def coloured(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey digits -> BGR digits on a random ground whose channels differ in brightness."""
    ground = np.random.default_rng(0).uniform((0, 60, 120), (60, 120, 180), (len(gray), 3))[:, np.newaxis, np.newaxis]
    share = gray / 255.0
    return (share * 255 + (1 - share) * ground).astype(np.uint8)


def train_on(data: DataResult, folder: Path) -> TrainResult:
    """A few epochs of AdamW on one thread; about 97 % on test."""
    model = ModelConfig(name="resnet", depth=1, width=8)
    channels = 1 if data.colour == "gray" else 3
    frames = torch.from_numpy(np.load(data.folder / "train.frames.npy"))
    truth = torch.from_numpy(np.load(data.folder / "train.truth.npy"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(model, in_channels=channels, size_wh=data.size_wh, num_labels=10).train()
        batch = Preprocess(data.colour, data.mean, data.std)(frames)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        for _ in range(EPOCHS):
            for picked in torch.randperm(len(batch)).split(48):
                optimizer.zero_grad()
                functional.cross_entropy(network(batch[picked])[0], truth[picked]).backward()
                optimizer.step()
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "best.safetensors")
    return TrainResult(
        folder=folder,
        task="classify",
        model=model,
        labels=data.labels,
        in_channels=channels,
        size_wh=data.size_wh,
        metric="accuracy",
        val=0.0,
        train=0.0,
        best_epoch=EPOCHS,
        epochs=EPOCHS,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=0,
        seconds=0.0,
        cpu_seconds=0.0,
        precision="32-true",
        accelerator="cpu",
    )


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return tmp_path_factory.mktemp


@pytest.fixture(scope="session")
def small_data(small_folder: Callable[[str], Path]) -> DataResult:
    return write_data(small_folder("data"), "gray")


@pytest.fixture(scope="session")
def colour_data(small_folder: Callable[[str], Path]) -> DataResult:
    return write_data(small_folder("colour-data"), "rgb")


@pytest.fixture(scope="session")
def small_train(small_data: DataResult, small_folder: Callable[[str], Path]) -> TrainResult:
    return train_on(small_data, small_folder("train"))


@pytest.fixture(scope="session")
def colour_train(colour_data: DataResult, small_folder: Callable[[str], Path]) -> TrainResult:
    return train_on(colour_data, small_folder("colour-train"))


@pytest.fixture(scope="session")
def small_export(small_data: DataResult, small_train: TrainResult, small_folder: Callable[[str], Path]) -> ExportResult:
    return export.run(ExportConfig(parity_images=64), small_data, small_train, out_dir=small_folder("export"))


@pytest.fixture(scope="session")
def small_source(small_data: DataResult, small_export: ExportResult) -> Source:
    batch = collect(QuantizeConfig(images=64), small_data).batch
    return prepared(small_export.folder / "core.onnx", batch_readers("batch", batch))


def elsewhere() -> Any:
    """A target that is not this machine: there the search judges accuracy alone, and tests do not depend on speed."""
    return "arm64" if host_target() != "arm64" else "x86-vnni"


@pytest.fixture(scope="session")
def small_quantize(
    small_data: DataResult, small_train: TrainResult, small_export: ExportResult, small_folder: Callable[[str], Path]
) -> QuantizeResult:
    config = QuantizeConfig(images=100, max_drop=0.02, target=elsewhere())
    return quantize.run(config, small_data, small_train, small_export, out_dir=small_folder("quantize"))


@pytest.fixture(scope="session")
def write_run() -> Callable[[Path, DataResult, TrainResult], Path]:
    """What makes a run folder of a training."""

    def write(folder: Path, data: DataResult, result: TrainResult) -> Path:
        """A run folder as `pipeline train` leaves it, with the training in it."""
        shutil.copytree(result.folder, folder / "train")
        shutil.copytree(data.folder, folder / "data")
        sha256 = hashlib.sha256((folder / "train" / result.weights).read_bytes()).hexdigest()
        found = {"data": (data, {}), "train": (result, {result.weights: sha256})}
        stages = [
            {"name": name, "status": "ran", "outputs": outputs, "result": value.model_dump(mode="json")}
            for name, (value, outputs) in found.items()
        ]
        (folder / "run.json").write_text(json.dumps({"schema": "pipeline.run/1", "stages": stages}), encoding="utf-8")
        return folder

    return write
