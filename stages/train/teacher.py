"""Distillation: besides the labels, a network learns what another one answers to the very same changed pictures.

Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531), section 2.
That both see the same view of a picture: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and
consistent" (arXiv:2106.05237), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from stages.graph import Preprocess


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained network, and how much its answers count."""

    pre: Preprocess
    core: nn.Module
    """In evaluation mode."""
    fabric: Fabric
    weight: float
    temperature: float

    def mixed(self, loss: Tensor, logits: Tensor, frames: Tensor) -> Tensor:
        """The labels' loss and the distance to the teacher's answers, in their shares.

        Args:
            loss: Of the labels, a scalar.
            logits: (N, num_labels) of the student.
            frames: uint8 (N, H, W, C), what the student saw.
        """
        with torch.no_grad(), self.fabric.autocast():
            batch = self.pre(frames).contiguous(memory_format=torch.channels_last)
            wanted = self.core(batch)[0]
        return (1 - self.weight) * loss + self.weight * distance(logits, wanted, self.temperature)


def distance(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the softened answers from the teacher's, mean over the pictures, a scalar.

    Times the temperature squared, so that the gradient's size does not depend on it (section 2 of the paper).

    Args:
        logits: (N, num_labels) of the student.
        wanted: The same of the teacher.
        temperature: Divides both.
    """
    found, truth = (torch.log_softmax(values.float() / temperature, dim=1) for values in (logits, wanted))
    return F.kl_div(found, truth, reduction="batchmean", log_target=True) * temperature**2
