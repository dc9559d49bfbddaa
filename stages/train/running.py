"""Loss and metric of an epoch as it goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(slots=True)
class Running:
    """Sums over the epoch. Steps wait in `pending` so that a GPU is not stopped for every one of them."""

    metric: str
    """Name of the task's leading metric; empty: it is not known while training."""
    items: float = 0
    loss: float = 0.0
    hits: float = 0.0
    seconds: float = 0.0
    """Before `began`, when the epoch goes on after an interruption."""
    began: float = field(default_factory=time.perf_counter)
    pending: list[tuple[int, int, Tensor, Tensor]] = field(default_factory=list)

    def add(self, index: int, items: int, loss: Tensor, hits: Tensor) -> None:
        """Notes step `index` of the epoch: how many pictures, their mean loss and their hits."""
        self.pending.append((index, items, loss, hits))

    def settle(self) -> tuple[int, float] | None:
        """Adds up what waits.

        Returns:
            Index and loss of the first step whose loss is NaN or infinite; what waits after it is dropped. Else None.
        """
        if not self.pending:
            return None
        waiting, self.pending = self.pending, []
        losses = torch.stack([loss for _, _, loss, _ in waiting]).tolist()
        hits = torch.stack([hits for _, _, _, hits in waiting]).tolist()
        for (index, items, _, _), loss, hit in zip(waiting, losses, hits, strict=True):
            if not np.isfinite(loss):
                return index, loss
            self.items += items
            self.loss += loss * items
            self.hits += hit
        return None

    def sums(self) -> dict[str, float]:
        """What a checkpoint keeps: arguments of a `Running` that goes on."""
        return {"items": self.items, "loss": self.loss, "hits": self.hits, "seconds": self.elapsed()}

    def elapsed(self) -> float:
        """Seconds of the epoch so far."""
        return self.seconds + time.perf_counter() - self.began

    def means(self) -> dict[str, float]:
        """Loss and, where known, metric per item so far, and images per second; empty before the first good step."""
        if not self.items:
            return {}
        rate = self.items / self.elapsed()
        known = {self.metric: self.hits / self.items} if self.metric else {}
        return {"loss": self.loss / self.items, **known, "images_per_s": rate}
