"""The bundle's manifest, `edge-bundle/1`: the one typed description of what ships. Strict: unknown keys are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = "edge-bundle/1"
STRICT = ConfigDict(extra="forbid", frozen=True)

Positive = Annotated[int, Field(gt=0)]


class Resize(BaseModel):
    """How a frame of any size becomes `size_wh`: a closed vocabulary, so every device gets the same pixels.

    `cubic` is left out on purpose: its result differs by CPU (reference: measured, 1 LSB in 3.5 % of values).
    """

    model_config = STRICT
    mode: Literal["stretch", "letterbox", "crop"] = "stretch"
    interpolation: Literal["linear", "area"] = "area"
    pad_value: Annotated[int, Field(ge=0, le=255)] = 0
    """Grey level of letterbox borders."""


class InputContract(BaseModel):
    """The graph's input: `frames`, uint8 `(N, H, W, 3)` BGR as OpenCV delivers it; everything else is in the graph."""

    model_config = STRICT
    name: Literal["frames"] = "frames"
    size_wh: tuple[Positive, Positive]
    resize: Resize = Resize()
    colour: Literal["gray", "rgb"]
    """What the network sees after the in-graph conversion; stated for people, done by the graph."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per network channel, on the 0..1 scale; stated for people, done by the graph."""


class TensorInfo(BaseModel):
    """One graph output: name, dtype, shape with -1 for a dynamic dimension."""

    model_config = STRICT
    name: str
    dtype: str
    shape: tuple[int, ...]


class Tolerance(BaseModel):
    """How far one raw output may be from the golden one on one runtime: |got - want| <= atol + rtol * |want|."""

    model_config = STRICT
    runtime: Literal["onnxruntime", "openvino"]
    output: str
    """Outputs have their own scales: scores lie in 0..1, an embedding anywhere."""
    atol: float
    rtol: float = 0.0


class Variant(BaseModel):
    """One model file of the bundle."""

    model_config = STRICT
    precision: Literal["fp32", "int8"]
    file: str
    outputs: tuple[TensorInfo, ...]
    opset: int
    tolerances: tuple[Tolerance, ...]
    metrics: dict[str, float] = {}
    """Measured on the whole test split: keys like `onnxruntime.accuracy`, `openvino.accuracy`."""


class Golden(BaseModel):
    """Lossless frames with their expected raw and decoded outputs, per precision."""

    model_config = STRICT
    frames: tuple[str, ...]
    """PNG files, in order."""
    outputs: dict[str, str]
    """precision -> npz file with one array per graph output, first axis = frame."""
    decoded: dict[str, str]
    """precision -> JSON file: a list of decoded results (`TASKS[task].to_json`), one per frame."""
    pixels_sha256: tuple[str, ...]
    """Digest of each frame's decoded BGR bytes: tells a broken image decoder from a broken model."""
    batch_sha256: str
    """Digest of the resized uint8 NHWC batch: tells a broken resize from a broken model."""


class EvalSample(BaseModel):
    """A labelled sample of the test split, so that accuracy is measured on the device itself."""

    model_config = STRICT
    frames: tuple[str, ...]
    truth: str
    """JSON file: a list, one entry per frame, as `TASKS[task].score` takes it."""
    of: int
    """Size of the test split the sample was drawn from."""


class FileEntry(BaseModel):
    """Digest and size of one file of the bundle."""

    model_config = STRICT
    sha256: str
    size_bytes: int


class Manifest(BaseModel):
    """Everything a device needs to know about a bundle, and the digest of every other file in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    schema_: Annotated[Literal["edge-bundle/1"], Field(alias="schema")] = "edge-bundle/1"
    min_runner: str
    """Lowest version of this program that can run the bundle."""
    name: str
    version: str
    task: str
    """Key of `edge_demo.tasks.TASKS`."""
    labels: tuple[str, ...]
    input: InputContract
    variants: tuple[Variant, ...]
    decode: dict[str, Any] = {}
    """The task's decode parameters (closed set per task), e.g. `{"roi": 0.5}` for classify."""
    golden: Golden
    eval: EvalSample
    recommended: Literal["fp32", "int8"]
    reason: str
    """Why that variant is recommended, one sentence."""
    provenance: dict[str, Any] = {}
    """Data set, digests of inputs, run key, training summary, library versions. Never a path of a machine."""
    files: dict[str, FileEntry]

    def variant(self, precision: str) -> Variant:
        """The variant of that precision; KeyError when the bundle has none."""
        for variant in self.variants:
            if variant.precision == precision:
                return variant
        raise KeyError(precision)
