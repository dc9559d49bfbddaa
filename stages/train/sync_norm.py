"""Batch norm over the whole batch when every process has a part of it; equal to torch's on the undivided batch.

torch's `SyncBatchNorm` refuses CPU tensors, so on Gloo this one stands in for it; on CUDA torch's is used. Both keep
the names of parameters and buffers: weights of one process fit into many and back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    """The same model, whose batch norms take mean and variance over all processes of the default group.

    Args:
        model: Changed in place, except where it is a batch norm itself. Parameters and buffers stay the same objects.
        device: Where it trains.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(model, _BatchNorm):
        return _like(model)
    for name, child in model.named_children():
        setattr(model, name, synchronized(child, device))
    return model


class SyncNorm(_BatchNorm):
    """Batch norm of any (N, C, ...) whose statistics are those of all processes' parts together.

    Every process has to call it, in the same order, with the same number of values per channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions: the norm that this one replaces has checked nothing else."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes; in training mode also updates the running statistics, as `nn.BatchNorm2d` does."""
        if not self.training:
            return super().forward(input)
        weight, bias = self.weight.float(), self.bias.float()
        output, mean, variance = _Normalize.apply(input.float(), weight, bias, self.eps)  # type: ignore[no-untyped-call]
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            count = input.numel() // input.shape[1] * dist.get_world_size()
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / (count - 1)), share)
        result: Tensor = output.to(input.dtype)
        return result


def _like(norm: _BatchNorm) -> SyncNorm:
    made = SyncNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(made, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(made, name, buffer)
    return made.train(norm.training)


class _Normalize(torch.autograd.Function):
    """Normalization over the processes and its gradient. Source: Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.

    Parts are put together from their means and squared deviations, never from sums of squares, which cancel. Source:
    Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, ...) float32 -> the normalized values, and mean and biased variance (C,) of all parts."""
        over = [0, *range(2, x.ndim)]
        variances, means = torch.var_mean(x, over, correction=0)
        parts = [torch.empty_like(torch.stack([means, variances])) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, torch.stack([means, variances]))
        every = torch.stack(parts)
        mean = every[:, 0].mean(0)
        variance = every[:, 1].mean(0) + (every[:, 0] - mean).square().mean(0)
        inverse = torch.rsqrt(variance + eps)
        output = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of this part's loss and all others' for x; of this part alone for weight and bias."""
        x, weight, mean, inverse = ctx.saved_tensors
        over = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        gradient = gradients[0]
        normal = (x - mean.view(shape)) * inverse.view(shape)
        own = torch.stack([gradient.sum(over), (gradient * normal).sum(over)])
        total = own.clone()
        dist.all_reduce(total)
        along = total / (x.numel() // x.shape[1] * dist.get_world_size())
        centred = gradient - along[0].view(shape) - normal * along[1].view(shape)
        return centred * (weight * inverse).view(shape), own[1], own[0], None
