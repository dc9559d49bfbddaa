"""The three graphs of a deployed model, written by torch's exporter and held to what was asked of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from onnx import ModelProto
from torch import Tensor, nn

from edge_demo.errors import Error, InputError
from stages.graph import Deployed
from stages.onnx_graph import RAW, clean, operators, opset

# The exporter's own operators start at 18; older ones are converted, and kept at 18 with a log line when that fails.
OLDEST_OPSET = 18
EXAMPLES = 2  # frames in the example batch; the exported batch size is dynamic


def export_parts(
    deployed: Deployed, raw_outputs: Sequence[str], outputs: Sequence[str], size_wh: tuple[int, int], version: int
) -> tuple[ModelProto, ModelProto, ModelProto]:
    """The graphs pre (`frames` -> `batch`), core (`batch` -> raw outputs) and post (`raw.<name>` -> outputs).

    Height and width are fixed, the batch size is dynamic. Nothing in the graphs tells where they were made.

    Raises:
        InputError: an opset the exporter does not write.
        Error: the network does not export, or its graph still has a batch normalization.
    """
    if version < OLDEST_OPSET:
        raise InputError(f"export.opset: {version} is older than the exporter writes", "use 20, at least 18")
    width, height = size_wh
    frames = torch.zeros(EXAMPLES, height, width, 3, dtype=torch.uint8)
    with torch.no_grad():
        batch = deployed.pre(frames)
        raw: tuple[Tensor, ...] = deployed.core(batch)
    pre = _export(deployed.pre, (frames,), ["frames"], ["batch"], version)
    core = _export(deployed.core, (batch,), ["batch"], raw_outputs, version)
    if "BatchNormalization" in operators(core):
        raise Error("core.onnx: a BatchNormalization was not folded into its convolution; INT8 would not fuse")
    post = _export(deployed.get_submodule("post"), raw, [RAW + name for name in raw_outputs], outputs, version)
    return pre, core, post


def _export(
    module: nn.Module, examples: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str], version: int
) -> ModelProto:
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module.eval(),
                examples,
                dynamo=True,
                opset_version=version,
                dynamic_shapes=tuple({0: "batch"} for _ in examples),
                input_names=list(inputs),
                output_names=list(outputs),
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise Error(f"{type(module).__name__}: torch cannot export it: {str(error).splitlines()[0]}") from error
    assert program is not None  # only the exporter of dynamo=False returns None
    model: ModelProto = program.model_proto
    if opset(model) != version:
        raise InputError(f"export.opset: asked for {version}, torch wrote {opset(model)}", "use 20")
    return clean(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's log lines (torchvision is absent, on purpose) and its own deprecations off the console."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            # https://github.com/pytorch/pytorch/issues/133653
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
