"""Random numbers of a batch: drawn for all of it, narrowed to the part that this process has."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers per picture, shaped (pictures of the part, 1, 1, 1), on the generator's device.

    Several processes that share a batch all draw for the whole of it, from equal generators, and each keeps the numbers
    of its own pictures: the batch is then changed alike, however many processes there are.
    """

    generator: torch.Generator
    total: int
    """Pictures of the whole batch."""
    part: slice = field(default_factory=lambda: slice(None))
    """Which of them this process has."""
    mirrored: Tensor | None = None
    """bool (total,): which of the whole batch are mirrored, where chance does not decide (`flip_in_turn`)."""

    @property
    def n(self) -> int:
        """Pictures of the part."""
        return len(range(*self.part.indices(self.total)))

    def own_mirrored(self) -> Tensor | None:
        """`mirrored` of the part, (n, 1, 1, 1)."""
        return None if self.mirrored is None else self.mirrored[self.part].view(-1, 1, 1, 1)

    def uniform(self, *shape: int) -> Tensor:
        """float32 in [0, 1): (n, *shape), or (n, 1, 1, 1) without a shape."""
        size = (self.total, *(shape or (1, 1, 1)))
        return torch.rand(size, generator=self.generator, device=self.generator.device)[self.part]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 values (n, *shape)."""
        size = (self.total, *shape)
        return torch.randn(size, generator=self.generator, device=self.generator.device)[self.part]

    def spread(self, limit: float | Tensor) -> Tensor:
        """In [-limit, limit); a tensor gives each picture its own limit."""
        return (2 * self.uniform() - 1) * limit

    def chosen(self, probability: float | Tensor) -> Tensor:
        """Whether each picture is changed; certain at 0 and 1."""
        return self.uniform() < probability

    def beta(self, alpha: float) -> Tensor:
        """From Beta(alpha, alpha), as a ratio of gammas; float64 inside, where small alpha come close to 0."""
        shape = torch.full((self.total, 2), alpha, dtype=torch.float64, device=self.generator.device)
        gammas = torch._standard_gamma(shape, generator=self.generator)[self.part]
        return (gammas[:, 0] / gammas.sum(dim=1)).float().view(-1, 1, 1, 1)
