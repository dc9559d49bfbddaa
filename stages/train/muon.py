"""Muon: a step of the same size along every singular direction of a hidden layer's weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Coefficients and steps of the quintic iteration. Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in
# neural networks" (kellerjordan.github.io/posts/muon).
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
TINY = 1e-7
# A matrix step whose elements are as large as AdamW's usually are, so that both take one learning rate.
# Source: Liu et al. 2025, "Muon is Scalable for LLM Training" (arXiv:2502.16982), section 2.2.
RMS = 0.2


class Muon(torch.optim.AdamW):
    """AdamW, except for groups with `"matrix": True`: those weights move by Muon.

    A kernel (out, in, h, w) counts as a matrix (out, in x h x w), as torch.optim.Muon, which takes no kernels, leaves
    to the caller. Momentum is beta1, with Nesterov's look-ahead; decay is decoupled. Source: `QUINTIC`, `RMS`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the gradients of the matrices are used up."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            if group.get("matrix"):
                for param in group["params"]:
                    self._move(param, group)
                    param.grad = None  # AdamW leaves weights without a gradient alone
        super().step()
        return loss

    def _move(self, param: Tensor, group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        momentum, lr = group["betas"][0], group["lr"]
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        average = state["momentum"].lerp_(param.grad, 1 - momentum)
        ahead = param.grad.lerp(average, momentum).flatten(1)
        param.mul_(1 - lr * group["weight_decay"])
        size = RMS * math.sqrt(max(ahead.shape))
        param.add_(orthogonal(ahead).view_as(param), alpha=-lr * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """Float (m, n) -> the same with all singular values moved to about 1, by Newton-Schulz steps in bfloat16."""
    a, b, c = QUINTIC
    wide = matrix.bfloat16()
    if matrix.shape[0] > matrix.shape[1]:
        wide = wide.T
    wide = wide / wide.norm().clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide.T if matrix.shape[0] > matrix.shape[1] else wide).to(matrix.dtype)
