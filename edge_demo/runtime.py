"""ONNX Runtime and OpenVINO behind one Protocol. Libraries are imported when a runtime is opened, not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Model = Path | bytes
"""An ONNX (or OpenVINO .xml) file, or the bytes of an ONNX model whose digest was just checked."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph input or output: name, numpy dtype, shape with -1 for a dynamic dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """A timed call path without copies: write into `inputs`, call `run`, read `outputs` (overwritten by the next run)."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    run: Callable[[], None]


class Runtime(Protocol):
    """A loaded model. One object is what the demo shows, the bench times and the evaluation scores."""

    name: str
    """`onnxruntime` or `openvino`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    effective: dict[str, Any]
    """What the runtime really uses: `threads`, `precision` (f32 | bf16 | f16), `spinning`, `version`, ..."""

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch of any size; the returned arrays belong to the caller."""
        ...

    def bind(self, feeds: Mapping[str, Array]) -> Bound:
        """Bind C-contiguous buffers of these shapes for repeated runs of that batch size."""
        ...

    def close(self) -> None:
        """Free the session."""
        ...
