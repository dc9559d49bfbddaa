"""Structured pruning: a trained network with its least important channels removed; what is left is a plain network.

It computes less on any device and in any runtime, which zeros scattered over the weights would not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edge_demo.errors import InputError
from stages.models.counts import layer_macs
from stages.models.coupled import Coupling, Layer, coupling
from stages.models.refit import refit
from stages.spec import ModelConfig

BLOCK = 4
"""Channels are removed, and kept, in blocks: integer dot products take 4 values at a time. Source: Intel 64 instruction
set reference, VPDPBUSD; Arm architecture reference, SDOT."""

EPS = 1e-5  # of torch's batch norm

Build = Callable[[ModelConfig], nn.Module]


def pruned(
    core: nn.Module, config: ModelConfig, build: Build, batch: Tensor, share: float
) -> tuple[nn.Module, ModelConfig]:
    """A smaller network, fitted to what the whole one computes in the channels it keeps, and the config of its like.

    Blocks of channels go one by one, the least important of all layers first. Weighing what a block costs against that
    was worse before fine-tuning (`fast` on Fashion-MNIST, 75 % of its multiply-accumulates removed, fitted: 83 %
    against 88 % of 3,000 on val).

    Args:
        core: Trained; stays as it is.
        config: What it was built from.
        build: Config -> a network for the same input and labels.
        batch: Training pictures as the network takes them, float32 (N, C, H, W).
        share: Least share of the multiply-accumulates to remove, 0 to 1.

    Raises:
        InputError: a network whose channels cannot be followed or are fixed, or that cannot be made so small.
    """
    core.eval()
    structure = coupling(core)
    if not structure.groups:
        raise InputError(f"train.prune: {config.name} has no channels to remove", "prune a fast, resnet or mobile")
    costs = layer_macs(core, batch.shape[1], (batch.shape[3], batch.shape[2]))
    scores = importance(core.state_dict(), structure)
    order = [torch.argsort(group, descending=True) for group in scores]
    ranked = [group[best] for group, best in zip(scores, order, strict=True)]
    sizes = _chosen(structure, costs, ranked, share)
    smaller = config.model_copy(update={"channels": tuple(sizes)})
    kept = [best[:size].sort().values for best, size in zip(order, sizes, strict=True)]
    network = build(smaller)
    network.load_state_dict(_sliced(core.state_dict(), structure, kept))
    refit(network, core, structure.layers, kept, batch)
    return network, smaller


def importance(weights: dict[str, Tensor], structure: Coupling) -> list[Tensor]:
    """Per group a score for each channel, 1 on average.

    The sum over all layers that make or read it of the L1 norm of the channel's weights, batch norm folded in, over the
    mean of that layer. Sources: L1 norm of filters, Li et al. 2017 (arXiv:1608.08710), section 3.1; over everything
    that goes with a channel, Fang et al. 2023 (arXiv:2301.12900), section 3.3.

    Args:
        weights: State dict of the trained network.
        structure: Its coupling.
    """
    scores = [torch.zeros(group.size) for group in structure.groups]
    counts = [0] * len(scores)
    for layer in structure.layers:
        for number, axis in ((layer.makes, 0), (layer.reads, 1)):
            if number is None or (layer.is_depthwise and axis):
                continue
            norms = _folded(weights, layer).abs().transpose(0, axis).flatten(1).sum(dim=1)
            scores[number] += norms / norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)
            counts[number] += 1
    return [score / count for score, count in zip(scores, counts, strict=True)]


def _folded(weights: dict[str, Tensor], layer: Layer) -> Tensor:
    """The layer's weight as export leaves it: times the scale of the batch norm behind it."""
    weight = weights[f"{layer.name}.weight"].float()
    if not layer.norm:
        return weight
    scale = weights[f"{layer.norm}.weight"] / (weights[f"{layer.norm}.running_var"] + EPS).sqrt()
    return weight * scale.view(-1, *[1] * (weight.dim() - 1))


def _chosen(structure: Coupling, costs: dict[str, int], ranked: Sequence[Tensor], share: float) -> list[int]:
    """How many channels of each group stay."""
    full = [group.size for group in structure.groups]
    sizes, whole = list(full), sum(costs.values())
    fewest = [max(BLOCK, int((1 - share) * size) // BLOCK * BLOCK) for size in full]  # no layer chokes the others

    def macs(sizes: Sequence[int]) -> float:
        return sum(costs[layer.name] * _kept_share(layer, sizes, full) for layer in structure.layers)

    while (now := macs(sizes)) > (1 - share) * whole:
        steps = []
        for number, size in enumerate(sizes):
            fewer = (size - 1) // BLOCK * BLOCK
            if fewer >= fewest[number]:
                steps.append((float(ranked[number][fewer:size].mean()), number, fewer))
        if not steps:
            message = (
                f"train.prune_share: {share:g} is too much: {now:,.0f} of {whole:,} multiply-accumulates are left where"
            )
            hint = "use a smaller share, or a wider network"
            raise InputError(f"{message} every layer keeps {BLOCK} channels and {1 - share:.0%} of its own", hint)
        _, number, fewer = min(steps)
        sizes[number] = fewer
    return sizes


def _kept_share(layer: Layer, sizes: Sequence[int], full: Sequence[int]) -> float:
    numbers = {layer.makes} if layer.is_depthwise else [layer.reads, layer.makes]
    share = 1.0
    for number in numbers:
        share *= 1.0 if number is None else sizes[number] / full[number]
    return share


def _sliced(weights: dict[str, Tensor], structure: Coupling, kept: Sequence[Tensor]) -> dict[str, Tensor]:
    """The state dict without the channels that go."""
    sliced = dict(weights)
    for group, indices in zip(structure.groups, kept, strict=True):
        for name, axis in group.tensors:
            sliced[name] = sliced[name].index_select(axis, indices)
    return sliced
