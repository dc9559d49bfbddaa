"""What each node costs: the network with that node alone in INT8, against FP32."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from edge_demo.errors import Error
from stages.quantize.comparison import sqnr_db
from stages.quantize.recipes import CONV_ONLY, EVERY, Recipe, Source, excluded, quantized
from stages.spec import LayerRow

IMAGES = 128
BATCH = 32
# They hand values on or pick from them: in INT8 they cost what the node before them does.
NEUTRAL = {
    *("Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Split"),
    *("Slice", "Gather", "DepthToSpace", "SpaceToDepth", "Pad"),
}


def sensitivity(source: Source, recipe: Recipe, batch: NDArray[np.float32]) -> tuple[LayerRow, ...]:
    """One row per node the recipe would quantize, worst first.

    Args:
        source: The FP32 network and its calibration.
        recipe: Coverage, method, and nodes that stay in float anyway.
        batch: Images of val as the bare network sees them; the first ones are used.
    """
    images, kept = batch[:IMAGES], excluded(source.model, recipe)
    operators = set(CONV_ONLY if recipe.coverage == "conv-only" else EVERY) - NEUTRAL
    want = _first_output(source.model, images)
    rows = []
    for node in source.model.graph.node:
        if node.op_type not in operators or node.name in kept:
            continue
        try:
            alone = quantized(source, recipe, only=node.name)
        except Error:  # nothing to quantize: its operands are no float tensors
            continue
        rows.append(
            LayerRow(node=node.name, operator=node.op_type, sqnr_db=sqnr_db(want, _first_output(alone, images)))
        )
    return tuple(sorted(rows, key=lambda row: (row.sqnr_db, row.node)))


def _first_output(model: ModelProto, images: NDArray[np.float32]) -> NDArray[np.float64]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed, first = session.get_inputs()[0].name, session.get_outputs()[0].name
    parts = [session.run([first], {feed: images[at : at + BATCH]})[0] for at in range(0, len(images), BATCH)]
    return np.concatenate(parts).astype(np.float64)
