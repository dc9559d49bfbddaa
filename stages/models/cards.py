"""The networks in figures, for `pipeline train --list-models`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stages.models import build, macs, network, parameters, receptive_field
from stages.spec import ModelConfig

INT8_ACTIVATIONS = (
    "relu and relu6 vanish into the INT8 layer before them; silu and hardswish do not: float islands, with a "
    "conversion before and after each."
)
"""Holds for every network. SiLU in ONNX Runtime is the exception: there it runs as two INT8 operators."""

EXAMPLES = {
    "classify": ((1, (28, 28)), (3, (32, 32))),  # MNIST and CIFAR-10
    "detect": ((1, (160, 160)), (3, (320, 320))),
    "segment": ((1, (160, 160)), (3, (320, 320))),
}
"""First task of a network -> channels and size_wh of the pictures that its networks are shown for."""
LABELS = 10
NOT_TURNED = ("channels",)
"""What pruning sets, not people."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs and sees on pictures of one size, with ten classes."""

    in_channels: int
    size_wh: tuple[int, int]
    parameters: int
    macs: int
    """Multiply-accumulates of one picture."""
    receptive_field: int
    """Side in pixels, see `receptive_field`."""


@dataclass(frozen=True, slots=True)
class Card:
    """What people want to know before they choose a network; figures are those of the default dials."""

    name: str
    task: str
    summary: str
    dials: tuple[str, ...]
    costs: tuple[Cost, ...]
    int8: str


def card(name: str) -> Card:
    """A network in figures; builds it, but leaves torch's random generator as it was.

    Raises:
        InputError: unknown name.
    """
    row = network(name)
    summary = (row.build.__doc__ or "").partition("\n")[0]
    with torch.random.fork_rng():
        dials = tuple(dial for dial in row.dials if dial not in NOT_TURNED)
        costs = tuple(_cost(name, in_channels, size_wh) for in_channels, size_wh in EXAMPLES[row.tasks[0]])
    return Card(name, " or ".join(row.tasks), summary, dials, costs, row.int8)


def _cost(name: str, in_channels: int, size_wh: tuple[int, int]) -> Cost:
    model = build(ModelConfig(name=name), in_channels, size_wh, LABELS)
    field = receptive_field(model, in_channels, size_wh)
    return Cost(in_channels, size_wh, parameters(model), macs(model, in_channels, size_wh), field)
