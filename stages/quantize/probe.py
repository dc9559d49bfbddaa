"""Values inside a network: any of its tensors, over a batch of images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from edge_demo.runtime import Array

BATCH = 32


def probed(model: ModelProto, names: Sequence[str], images: Array) -> Iterator[list[NDArray[np.float32]]]:
    """The named float tensors, batch by batch; what they do not depend on is not computed.

    Args:
        model: With one input.
        names: Of outputs, or of tensors between nodes.
        images: What the input takes; a last part that does not fill a fixed batch is left out.
    """
    probe = copy.deepcopy(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0]
    fixed = feed.shape[0] if isinstance(feed.shape[0], int) else None
    size, end = fixed or BATCH, len(images) // fixed * fixed if fixed else len(images)
    for start in range(0, end, size):
        yield session.run(list(names), {feed.name: images[start : start + size]})
