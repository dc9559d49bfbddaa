"""What each node costs: the network with that node alone in INT8, against FP32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edge_demo.errors import Error
from stages.onnx_graph import output_names
from stages.quantize.comparison import sqnr_db
from stages.quantize.probe import probed
from stages.quantize.recipes import CONV_ONLY, EVERY, Recipe, Source, excluded, quantized
from stages.spec import LayerRow

IMAGES = 128
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
    return np.concatenate([first for (first,) in probed(model, output_names(model)[:1], images)]).astype(np.float64)
