"""One optimizer step, in as many passes as memory asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.augment import Draws
from stages.train.distributed import average, part_of, world
from stages.train.learner import Learner


def train_step(
    learner: Learner,
    frames: Tensor,
    targets: Tensor,
    lr: float,
    generator: torch.Generator,
    pass_size: int = 0,
    mirrored: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step on a batch, of which this process has a part; the gradient is that of the mean over all of it.

    The batch is augmented as a whole, so that passes of another size see the same pictures. Only batch norm, which
    takes its mean and variance from a pass, makes a difference between one large pass and several small ones.

    Args:
        learner: Gets stepped.
        frames: uint8 (N, H, W, C) on the device.
        targets: Of these.
        lr: Learning rate of this step.
        generator: Of the augmentation.
        pass_size: Most frames of one pass; 0: all.
        mirrored: bool (n,) of all processes' frames, which of them are mirrored; None: chance decides.

    Returns:
        Mean loss (with the teacher's part, without the L1 penalty) and the task's hits (0 where it has none), as
        numbers on the device.

    Raises:
        torch.OutOfMemoryError: nothing has been stepped then.
    """
    config, total = learner.config, len(frames) * world()
    frames, targets = learner.task.augment(
        frames, targets, config.augment, Draws(generator, total, part_of(total), mirrored), len(learner.labels)
    )
    learner.optimizer.zero_grad(set_to_none=True)
    losses, hits = [], []
    count = min(-(-total // (pass_size or total)), max(1, len(frames) // 2))  # batch norm needs two pictures
    split = zip(frames.tensor_split(count), targets.tensor_split(count), strict=True) if count > 1 else ()
    parts = list(split) or [(frames, targets)]
    for index, (some, truth) in enumerate(parts):
        last = index == len(parts) - 1
        with learner.fabric.no_backward_sync(learner.model, enabled=not last):
            raw = learner.model(learner.batch(some))
            loss = learner.task.loss(raw, truth, config, learner.class_weights)
            if learner.teacher is not None:
                loss = learner.teacher.mixed(loss, raw[0], some)
            if len(parts) > 1:
                loss = loss * (len(some) / len(frames))
            penalized = loss + config.l1 * l1_norm(learner.core) if config.l1 and last else loss
            learner.fabric.backward(penalized)
        losses.append(loss.detach())
        with torch.no_grad():
            hits.append(learner.task.hits(raw, truth) if learner.task.hits else torch.zeros_like(loss))
    loss, hit = (losses[0], hits[0]) if len(parts) == 1 else (torch.stack(losses).sum(), torch.stack(hits).sum())
    loss, hit = average(learner.core.parameters(), loss, hit)
    for group in learner.optimizer.param_groups:
        group["lr"] = lr
    if config.clip_norm:
        # A gradient that is not finite shows in the next loss, where it is recovered from.
        learner.fabric.clip_gradients(
            learner.model, learner.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
        )
    learner.optimizer.step()
    return loss, hit


def l1_norm(core: nn.Module) -> Tensor:
    """Sum of absolute values of matrices and kernels, as weight decay leaves out biases and batch norm, too."""
    return torch.stack([param.abs().sum() for param in core.parameters() if param.ndim > 1]).sum()


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds dropout on the device; `torch.manual_seed` does all devices there are, 100 times slower."""
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
