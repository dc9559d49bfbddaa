"""The graph contract in torch: uint8 BGR frames in, named outputs out. Training normalizes with the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# BGR -> luma. Source: ITU-R BT.601-7, section 2.5.1 (E'Y = 0.299 R + 0.587 G + 0.114 B); what OpenCV's BGR2GRAY uses.
LUMA_BGR = (0.114, 0.587, 0.299)


class Preprocess(nn.Module):
    """uint8 NHWC frames -> normalized float32 NCHW batch, on whatever device the frames are.

    Args:
        colour: `gray` (1 network channel) or `rgb` (3).
        mean: Per network channel, on the 0..1 scale.
        std: Likewise.

    Frames have 3 channels (BGR); with `colour="gray"` also 1 channel, as the data stage keeps them: luma of B = G = R
    is that value, so both give the same batch.
    """

    scale: Tensor
    shift: Tensor
    luma: Tensor

    def __init__(self, colour: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.colour = colour
        scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))
        self.register_buffer("scale", scale.float().view(1, -1, 1, 1), persistent=False)
        shift = torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("shift", shift.float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA_BGR, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """(N, H, W, C) uint8 -> (N, 1 or 3, H, W) float32, contiguous."""
        # .contiguous(): permuted strides leak into the exported graph and cost INT8 accuracy in OpenVINO.
        batch = frames.permute(0, 3, 1, 2).contiguous().to(torch.float32)
        if self.colour == "gray":
            if batch.shape[1] == 3:
                batch = (batch * self.luma).sum(dim=1, keepdim=True)
        else:
            batch = batch.flip(1)
        return batch * self.scale - self.shift


class Deployed(nn.Module):
    """Preprocess, the bare network and the task's last step in one module: what `model.fp32.onnx` must equal."""

    def __init__(self, pre: Preprocess, core: nn.Module, post: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.pre, self.core, self.post = pre, core, post

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, H, W, 3) BGR -> the task's final outputs, in the order of its `outputs`."""
        return self.post(*self.core(self.pre(frames)))
