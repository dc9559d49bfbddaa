"""What a network costs and sees: parameters, multiply-accumulates of one picture, receptive field."""

from __future__ import annotations

from collections.abc import Callable
from types import UnionType
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
    return sum(layer_macs(model, in_channels, size_wh).values())


def layer_macs(model: nn.Module, in_channels: int, size_wh: tuple[int, int]) -> dict[str, int]:
    """Name of each convolution and linear layer -> its part of `macs`."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, int] = {}

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        per_value = module.weight[0].numel() if isinstance(module, nn.Conv2d | nn.Linear) else 0
        found[names[module]] = found.get(names[module], 0) + output.numel() * per_value

    _run_with(count, nn.Conv2d | nn.Linear, model, in_channels, size_wh)
    return found


def receptive_field(model: nn.Module, in_channels: int, size_wh: tuple[int, int]) -> int:
    """Side in pixels of the square that one value of the body's last feature map depends on, before it is pooled away.

    May be larger than the picture. A network without convolutions sees the whole picture: its longer side.

    Along the network, a kernel k with stride s widens the field by (k - 1) j, where j is the distance of neighbouring
    values in pixels, and j becomes j s. Layers count in the order they run, so this holds for side branches of kernel 1
    and stride 1, such as the shortcut of a residual block. Source: Araujo, Norris and Sim 2019, "Computing Receptive
    Fields of Convolutional Neural Networks", Distill, doi:10.23915/distill.00021, equation 2.
    """
    field, jump, seen = 1, 1, 0

    def widen(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal field, jump, seen
        kernel, stride = (_side(getattr(module, name)) for name in ("kernel_size", "stride"))
        field, jump, seen = field + (kernel - 1) * jump, jump * stride, seen + 1

    body = {id(module) for module in model.get_submodule("body").modules()} if hasattr(model, "body") else None

    def widen_body(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if body is None or id(module) in body:
            widen(module, inputs, output)

    _run_with(widen_body, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, model, in_channels, size_wh)
    return field if seen else max(size_wh)


def _side(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else max(value)


def _run_with(
    hook: Callable[[nn.Module, Any, Tensor], None],
    kinds: type[nn.Module] | UnionType,
    model: nn.Module,
    in_channels: int,
    size_wh: tuple[int, int],
) -> None:
    """Runs the network once on zeros in evaluation mode, with a hook on some of its layers; leaves it as it was."""
    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, kinds)]
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
