"""Networks for the benchmark scripts, built with random weights: speed depends on shapes, not on what was learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Expansion, output channels, repeats, stride. Source: M. Sandler et al., MobileNetV2, CVPR 2018, table 2.
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Graph:
    """An ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = np.random.default_rng(0)

    def conv(
        self, x: str, cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1, act: str = "Clip"
    ) -> str:
        """Convolution with He-scaled random weights, then ReLU6 (`Clip`), `Relu` or nothing (empty)."""
        name = f"c{len(self.nodes)}"
        shape = (cout, cin // groups, kernel, kernel)
        scale = np.sqrt(2.0 / (shape[1] * kernel * kernel))
        values = (self._rng.standard_normal(shape) * scale).astype(np.float32)
        self.weights += [numpy_helper.from_array(values, f"{name}.w"),
                         numpy_helper.from_array(np.zeros(cout, np.float32), f"{name}.b")]  # fmt: skip
        self.nodes.append(helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [name], kernel_shape=[kernel, kernel],
                                           pads=[kernel // 2] * 4, strides=[stride, stride], group=groups))  # fmt: skip
        if not act:
            return name
        limits = ["low", "high"] if act == "Clip" else []
        self.nodes.append(helper.make_node(act, [name, *limits], [f"{name}.a"]))
        return f"{name}.a"

    def save(self, x: str, channels: int, shape: tuple[int, ...], file: Path) -> Path:
        """Average, classify into 10, write the file."""
        weights = self._rng.standard_normal((channels, 10)).astype(np.float32)
        self.weights += [numpy_helper.from_array(weights, "fc.w"), numpy_helper.from_array(np.float32(0.0), "low"),
                         numpy_helper.from_array(np.float32(6.0), "high")]  # fmt: skip
        self.nodes += [
            helper.make_node("GlobalAveragePool", [x], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "fc.w"], ["scores"]),
        ]
        graph = helper.make_graph(
            self.nodes, "made",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], 10])],
            self.weights,
        )  # fmt: skip
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
        return file


def tiny(file: Path) -> Path:
    """Three convolutions on 1x1x28x28, about 24,000 parameters: tens of microseconds."""
    graph = Graph()
    x = graph.conv("images", 1, 16, 3, stride=2, act="Relu")
    x = graph.conv(x, 16, 32, 3, stride=2, act="Relu")
    x = graph.conv(x, 32, 64, 3, act="Relu")
    return graph.save(x, 64, (1, 1, 28, 28), file)


def mobilenet(file: Path) -> Path:
    """MobileNetV2's body on 1x3x224x224, 2.2 million parameters: milliseconds."""
    graph = Graph()
    x, channels = graph.conv("images", 3, 32, 3, stride=2), 32
    for expansion, out, repeats, first_stride in MOBILENET_V2:
        for number in range(repeats):
            stride, before, hidden = first_stride if number == 0 else 1, x, channels * expansion
            x = graph.conv(x, channels, hidden, 1) if expansion > 1 else x
            x = graph.conv(x, hidden, hidden, 3, stride=stride, groups=hidden)
            x = graph.conv(x, hidden, out, 1, act="")
            if stride == 1 and channels == out:
                graph.nodes.append(helper.make_node("Add", [before, x], [f"{x}.sum"]))
                x = f"{x}.sum"
            channels = out
    x = graph.conv(x, channels, 1280, 1)
    return graph.save(x, 1280, (1, 3, 224, 224), file)
