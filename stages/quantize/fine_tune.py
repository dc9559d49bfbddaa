"""Quantization-aware training: the INT8 network learns to answer as FP32 does; its numbers go back into the same file.

The loss compares raw outputs with FP32's, so it needs no labels and knows no task. For logits, squared error beats the
divergence of softened probabilities. Source: Kim et al. 2021, arXiv:2105.08919, section 4.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor

from edge_demo.errors import Error
from stages import onnx_graph
from stages.quantize.regions import HEAVY
from stages.quantize.torch_graph import INT7_MAX, INT8_MAX, QdqNetwork
from stages.spec import OnStep, Step

STEPS = 300
BATCH = 64
WEIGHT_LR = 1e-3
STEP_LR = 1e-2  # of the logarithm of an activation's step: 1 % a step at most
WARM_UP = 20


def fine_tuned(
    int8: ModelProto,
    fp32: ModelProto,
    draw: Callable[[np.random.Generator, int], NDArray[np.float32]],
    *,
    seed: int,
    reduce_range: bool,
    on_step: OnStep,
    steps: int = STEPS,
) -> ModelProto:
    """A copy of the INT8 network with other weights, biases and steps; nodes and types stay. Seeded, one thread.

    Args:
        int8: QDQ, what post-training quantization made.
        fp32: What it was made from; the teacher.
        draw: (generator, n) -> a float32 NCHW batch of training images.
        seed: Of the order of the images.
        reduce_range: Whether weights have 7 bits.
        on_step: Progress.
        steps: Batches to train on.

    Raises:
        Error: an operator that cannot be trained; training diverged.
    """
    rng = np.random.default_rng(seed)
    with _one_thread():
        network, teacher = QdqNetwork(int8, fp32, INT7_MAX if reduce_range else INT8_MAX), QdqNetwork(fp32, fp32)
        groups = [
            {"params": list(network.weights.values()), "lr": WEIGHT_LR},
            {"params": list(network.steps.values()), "lr": STEP_LR},
        ]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step / steps, WARM_UP / steps))
        for step in range(steps):
            batch = torch.from_numpy(draw(rng, BATCH))
            with torch.no_grad():
                wanted = teacher(batch)
            loss = _apart(network(batch), wanted)
            if not torch.isfinite(loss):
                raise Error("fine-tuning diverged: the loss is no longer a number")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                on_step(Step("INT8: fine-tuning", step, steps, {"loss": float(loss.detach())}))
        return written_back(network, int8)


def written_back(network: QdqNetwork, int8: ModelProto) -> ModelProto:
    """A copy of the file with the network's numbers in its initializers."""
    model = copy.deepcopy(int8)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantizers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            _put(tensors[node.input[1]], network.step(node))
    for node in dequantizers.values():
        if node.input[0] in tensors and tensors[node.input[0]].data_type == TensorProto.INT8:
            _put(tensors[node.input[0]], network.weight_levels(node))
            _put(tensors[node.input[1]], network.weight_step(node))
    for node in model.graph.node:
        if node.op_type in HEAVY and len(node.input) > 2 and node.input[2] in dequantizers:
            x, weight, bias = (dequantizers[name] for name in node.input)
            # An integer sum of products has the step of input times weight, and so must what is added to it.
            steps = [numpy_helper.to_array(tensors[operand.input[1]]).astype(np.float64) for operand in (x, weight)]
            step = np.broadcast_to(steps[0] * steps[1], tuple(tensors[bias.input[1]].dims))
            _put(tensors[bias.input[1]], torch.from_numpy(np.array(step)))
            _put(tensors[bias.input[0]], network.weight(bias).double() / torch.from_numpy(np.array(step)))
    return onnx_graph.clean(model)


def _put(tensor: TensorProto, values: Tensor) -> None:
    """Replace an initializer's values, in its own type and shape; integers are rounded and kept in range."""
    kind = numpy_helper.to_array(tensor).dtype
    array = values.detach().numpy()
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        array = np.clip(np.rint(array), limits.min, limits.max)
    tensor.CopyFrom(numpy_helper.from_array(array.astype(kind).reshape(tuple(tensor.dims)), tensor.name))


def _apart(got: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Mean over the outputs of the squared error, each relative to its own variance."""
    errors = [F.mse_loss(a, b) / b.var().clamp_min(1e-12) for a, b in zip(got, wanted, strict=True)]
    return torch.stack(errors).mean()


def _one_cycle(done: float, warm_up: float) -> float:
    """Learning rate as a share of its top: up in a straight line, then down half a cosine."""
    return done / warm_up if done < warm_up else 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """The same sums on every machine, however many cores it has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
