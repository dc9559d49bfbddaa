"""What a network costs: parameters, and multiply-accumulates of one picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def macs(model: nn.Module, in_channels: int, size_wh: tuple[int, int]) -> int:
    """Multiply-accumulates of one picture in the convolutions and linear layers; the rest is not counted.

    A convolution costs `output values x kernel height x kernel width x in_channels / groups`, a linear layer
    `in_features x out_features`. The network is run once on zeros in evaluation mode and left as it was.
    """
    total = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    was_training = model.training
    device = next(model.parameters()).device
    width, height = size_wh
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_channels, height, width, device=device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return total
