"""A network that plain quantization breaks, and its training: for `quantize_hostile.py` and a slow test."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from stages.graph import Preprocess
from stages.models import MODELS, Network, build
from stages.spec import DataResult, ModelConfig, TrainResult

SPREAD = 1000.0  # the widest channel of a layer starts that many times as wide as the narrowest


class Squeeze(nn.Module):
    """Squeeze and excite. Source: Hu et al. 2018, arXiv:1709.01507; hard sigmoid as in Howard et al. 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same, each channel weighed."""
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x * functional.hardsigmoid(self.up(functional.relu(self.down(pooled))))


class Hostile(nn.Module):
    """Depthwise convolutions from the first layer on, linear and wide-ranged; hard-swish; squeeze and excite.

    Channels of one tensor differ in width by orders of magnitude, and a tensor has one INT8 step: the narrow ones
    vanish. Folded batch norms do this to MobileNets (Nagel et al. 2019, arXiv:1906.04721, figure 2); so they start.
    """

    def __init__(self, in_channels: int, num_labels: int, width: int) -> None:
        super().__init__()
        self.stages, channels = nn.ModuleList(), in_channels
        for index, grown in enumerate((width, 2 * width, 4 * width)):
            depthwise = channels if index else in_channels * width
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(channels, depthwise, 3, 2 if index else 1, 1, groups=channels, bias=False),
                    wide(nn.BatchNorm2d(depthwise)),
                    *([Squeeze(depthwise)] if index else []),
                    nn.Conv2d(depthwise, grown, 1, bias=False),
                    nn.BatchNorm2d(grown),
                    nn.Hardswish(),
                )
            )
            channels = grown
        self.head = nn.Linear(channels, num_labels)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (N, C, H, W) -> logits, embedding."""
        for stage in self.stages:
            batch = stage(batch)
        embedding = batch.mean(dim=(2, 3))
        return self.head(embedding), embedding


def wide(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Widths spread evenly on a logarithmic scale around 1, the same in every run."""
    with torch.no_grad():
        half = math.log(SPREAD) / 2
        norm.weight.copy_(torch.linspace(-half, half, norm.num_features).exp())
    return norm


def hostile(config: ModelConfig, in_channels: int, size_wh: tuple[int, int], num_labels: int) -> nn.Module:
    """For the registry of models."""
    return Hostile(in_channels, num_labels, config.width)


def trained(data: DataResult, folder: Path, *, seed: int, epochs: int) -> TrainResult:
    """Register the network, train it on the data's training split with AdamW, and save it as the train stage does."""
    MODELS["hostile"] = Network(hostile, (), "convolutions (depthwise too)")
    model = ModelConfig(name="hostile", width=16)
    frames, truth = (np.load(data.folder / f"train.{part}.npy", mmap_mode="r") for part in ("frames", "truth"))
    channels = 1 if data.colour == "gray" else 3
    labels, pre = torch.from_numpy(np.array(truth)), Preprocess(data.colour, data.mean, data.std)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(model, in_channels=channels, size_wh=data.size_wh, num_labels=len(data.labels)).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.005, weight_decay=1e-4)
        steps = epochs * math.ceil(len(labels) / 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        for _ in range(epochs):
            for picked in torch.randperm(len(labels)).split(64):
                batch = pre(torch.from_numpy(frames[picked.numpy()]))
                optimizer.zero_grad()
                functional.cross_entropy(network(batch)[0], labels[picked]).backward()
                optimizer.step()
                schedule.step()
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "best.safetensors")
    return TrainResult(
        folder=folder, task="classify", model=model, labels=data.labels, in_channels=channels, size_wh=data.size_wh,
        metric="accuracy", val=0.0, train=0.0, best_epoch=epochs, epochs=epochs,
        parameters=sum(parameter.numel() for parameter in network.parameters()), macs=0, seconds=0.0, cpu_seconds=0.0,
        precision="32-true", accelerator="cpu",
    )  # fmt: skip
