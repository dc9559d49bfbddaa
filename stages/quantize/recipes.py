"""From a network and a recipe to INT8: one calibration per method, any number of files from it.

Activations unsigned, weights signed and per channel (U8S8). ONNX Runtime's own default (S8S8) is not offered: on x86 it
leaves convolutions in float there, and OpenVINO refuses to compile it on CPUs with AMX.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from edge_demo.errors import Error
from stages import onnx_graph
from stages.quantize.calibration import Reader
from stages.quantize.regions import head, tail

Method = Literal["minmax", "percentile", "entropy"]
Coverage = Literal["all", "conv-only", "tail-float", "head-float"]
Ranges = Any
"""ONNX Runtime's TensorsData: tensor name -> calibrated range."""
Readers = Callable[[], Sequence[CalibrationDataReader]]
"""Fresh readers of the calibration data; each is read to its end."""

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
# What a ReLU network is made of. Left out: sigmoids, products and the like, which ONNX Runtime runs faster in float
# (measured on inverted-residual networks: 1.64 times FP32 speed against 1.53 with every operator in INT8).
CONV_ONLY = [
    *("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Concat", "Resize", "ReduceMean", "Reshape", "Flatten"),
]
EVERY = sorted({*QLinearOpsRegistry, *QDQRegistry})
WORDS = {
    "all": "every operator",
    "conv-only": "convolutions and their like",
    "tail-float": "float after the last layers",
    "head-float": "float from the last layers on",
}
CHUNK = 16  # images whose intermediate results are kept at a time while calibrating


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes one INT8 file differ from another."""

    coverage: Coverage = "all"
    method: Method = "minmax"
    float_nodes: frozenset[str] = frozenset()
    """Names of nodes kept in float besides those of `coverage`."""
    bias_corrected: bool = False
    reduce_range: bool = False

    @property
    def name(self) -> str:
        """For people: `every operator, minmax, bias corrected`."""
        parts = [WORDS[self.coverage], self.method]
        if self.float_nodes:
            parts.append(f"{len(self.float_nodes)} sensitive node{'s' * (len(self.float_nodes) > 1)} float")
        return ", ".join(parts + ["bias corrected"] * self.bias_corrected)


@dataclass(frozen=True, slots=True)
class Source:
    """The bare FP32 network, ready to be quantized."""

    model: ModelProto
    """After ONNX Runtime's own preparation: constants folded, shapes inferred."""
    ranges: Callable[[Method], Ranges]
    """Calibrated at the first call with that method."""
    file: str


def prepared(
    core: Path,
    readers: Readers,
    *,
    optimize: bool = True,
    known: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> Source:
    """Read a network and get ready to calibrate it.

    No calibration cache: ONNX Runtime's does not look at the data, and would reuse the ranges of another set.

    Args:
        core: The bare FP32 network.
        readers: Of what it is calibrated on.
        optimize: Let ONNX Runtime fold constants first; on some graphs of others that fails.
        known: Tensor -> its range, where that is not to be calibrated.

    Raises:
        InputError: not a model.
        Error: ONNX Runtime cannot prepare it.
    """
    model = onnx_graph.load(core)
    with tempfile.TemporaryDirectory() as folder, reworded(core.name):
        ready = Path(folder) / "prepared.onnx"
        if optimize:
            # No symbolic shape inference: the exporter has written every shape, and it fails on global max pooling.
            quant_pre_process(core, ready, skip_symbolic_shape=True)
            model = onnx_graph.load(ready)
        else:
            model = onnx.shape_inference.infer_shapes(model)
        model = _named(model)

    @cache
    def ranges(method: Method) -> Ranges:
        found = calibrated(model, method, readers(), core.name)
        for tensor, (low, high) in known.items():
            found.data[tensor] = TensorData(lowest=np.float32(low), highest=np.float32(high))
        return found

    return Source(model, ranges, core.name)


def batch_readers(name: str, batch: NDArray[np.float32]) -> Readers:
    """Readers of a calibration tensor for the network input `name`, a few images each, to bound what is kept."""
    return lambda: [Reader(name, batch[at : at + CHUNK]) for at in range(0, len(batch), CHUNK)]


def calibrated(model: ModelProto, method: Method, readers: Sequence[CalibrationDataReader], file: str) -> Ranges:
    """The range of every activation over all that the readers give.

    Raises:
        Error: ONNX Runtime cannot calibrate it.
    """
    # A folder of its own: the calibrator writes its augmented model where it stands and leaves it there; its
    # histograms are announced on stdout.
    with tempfile.TemporaryDirectory() as folder, reworded(file), redirect_stdout(io.StringIO()):
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        calibrator = create_calibrator(
            path, EVERY, augmented_model_path=str(Path(folder) / "augmented.onnx"), calibrate_method=METHODS[method]
        )
        for reader in readers:
            calibrator.collect_data(reader)
        return calibrator.compute_data()


def quantized(source: Source, recipe: Recipe, only: str | None = None) -> ModelProto:
    """The network in INT8 (QDQ), with the FP32 one's inputs and outputs. The same inputs give the same bytes.

    Args:
        source: What `prepared` made.
        recipe: Its bias correction is a step of its own, see `stages.quantize.bias`.
        only: Name of the single node to quantize, to see what it costs.

    Raises:
        Error: ONNX Runtime cannot quantize it, or the recipe leaves nothing to quantize.
    """
    with reworded(source.file):
        quantizer = QDQQuantizer(
            copy.deepcopy(source.model),
            True,  # weights per channel
            recipe.reduce_range,
            QuantType.QInt8,
            QuantType.QUInt8,
            source.ranges(recipe.method),
            [only] if only else [],
            sorted(excluded(source.model, recipe)),
            CONV_ONLY if recipe.coverage == "conv-only" else EVERY,
            {},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # new nodes are appended at the end
        model: ModelProto = quantizer.model.model
    if "QuantizeLinear" not in onnx_graph.operators(model):
        raise Error(f"{source.file}: nothing in this network can be quantized ({recipe.name})")
    return onnx_graph.clean(model)


def excluded(model: ModelProto, recipe: Recipe) -> frozenset[str]:
    """Names of the nodes a recipe keeps in float."""
    region = {"tail-float": tail, "head-float": head}.get(recipe.coverage)
    return recipe.float_nodes | (region(model) if region else frozenset())


def _named(model: ModelProto) -> ModelProto:
    """Give every node a name of its own, in place: names are how nodes are chosen and left out."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name
        if not name or name in seen:
            name = f"{node.op_type}_{index}"
            while name in taken | seen:
                name += "_"
            node.name = name
        seen.add(name)
    return model


@contextmanager
def reworded(file: str) -> Iterator[None]:
    """Whatever ONNX Runtime's quantization tools raise (KeyError, AssertionError, ...) as one line about the file."""
    try:
        yield
    except Error:
        raise
    except Exception as error:  # the tools document no exceptions of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = lines[0][:200] if lines else type(error).__name__
        raise Error(f"{file}: ONNX Runtime cannot quantize it: {detail}") from error
