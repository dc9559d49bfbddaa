"""Fixtures for every package: a model small enough to compute by hand, and bundles around it."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

LABELS = ("ant", "bee", "cat", "dog")
SIZE_WH = (10, 8)
EMBEDDING = 5

# A shell without job control starts what it puts in the background with SIGINT ignored, and the programs that tests
# start inherit that. Source: POSIX.1-2017, Shell Command Language, 2.11 "Signals and Error Handling".
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class TinyModel:
    """flatten(frames) / 255 @ a -> relu -> embedding; embedding @ b -> softmax -> scores."""

    a: np.ndarray
    b: np.ndarray
    swapped: bool = False
    """Takes RGB where BGR is the contract: the classic mistake."""

    def reference(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """What the graph must give, in float64 numpy."""
        x = frames[..., ::-1] if self.swapped else frames
        embedding = np.maximum(x.reshape(len(x), -1).astype(np.float64) / 255 @ self.a, 0)
        logits = embedding @ self.b
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        return {"scores": scores.astype(np.float32), "embedding": embedding.astype(np.float32)}

    def proto(self, size_wh: tuple[int, int] = SIZE_WH, metadata: Mapping[str, str] | None = None) -> Any:
        """The same as an onnx ModelProto: uint8 NHWC `frames`, dynamic N."""
        onnx = pytest.importorskip("onnx")
        helper, (width, height) = onnx.helper, size_wh
        first = [helper.make_node("Cast", ["frames"], ["float"], to=onnx.TensorProto.FLOAT)]
        if self.swapped:
            first = [
                helper.make_node("Gather", ["frames", "rgb"], ["flipped"], axis=3),
                helper.make_node("Cast", ["flipped"], ["float"], to=onnx.TensorProto.FLOAT),
            ]
        nodes = [
            *first,
            helper.make_node("Flatten", ["float"], ["flat"], axis=1),
            helper.make_node("Mul", ["flat", "scale"], ["unit"]),
            helper.make_node("MatMul", ["unit", "a"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["embedding"]),
            helper.make_node("MatMul", ["embedding", "b"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        ]
        weights = [
            onnx.numpy_helper.from_array(self.a.astype(np.float32), "a"),
            onnx.numpy_helper.from_array(self.b.astype(np.float32), "b"),
            onnx.numpy_helper.from_array(np.float32(1 / 255), "scale"),
        ]
        if self.swapped:
            weights.append(onnx.numpy_helper.from_array(np.array([2, 1, 0], np.int64), "rgb"))
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "tiny",
            [value("frames", onnx.TensorProto.UINT8, ["N", height, width, 3])],
            [
                value("scores", onnx.TensorProto.FLOAT, ["N", self.b.shape[1]]),
                value("embedding", onnx.TensorProto.FLOAT, ["N", self.a.shape[1]]),
            ],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        helper.set_model_props(model, dict(metadata or {}))
        onnx.checker.check_model(model, full_check=True)
        return model

    def onnx(self, **options: Any) -> bytes:
        """The bytes of `proto`."""
        return self.proto(**options).SerializeToString(deterministic=True)


def tiny_model(
    seed: int = 0, labels: int = len(LABELS), size_wh: tuple[int, int] = SIZE_WH, swapped: bool = False
) -> TinyModel:
    rng = np.random.default_rng(seed)
    a = rng.normal(0, 0.3, (size_wh[0] * size_wh[1] * 3, EMBEDDING)).astype(np.float32)
    return TinyModel(a, rng.normal(0, 1, (EMBEDDING, labels)).astype(np.float32), swapped)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_tiny_bundle(
    folder: Path,
    *,
    models: Mapping[str, TinyModel] | None = None,
    metadata: Mapping[str, str] | None = None,
    golden: int = 3,
    sample: int = 6,
) -> Path:
    """A whole bundle whose expected results are numpy's; golden frames are colour and not of the network's size."""
    from edge_demo.bundle import write_bundle
    from edge_demo.image import fit, write_png
    from edge_demo.manifest import Resize
    from edge_demo.tasks import TASKS

    models = models or {"fp32": tiny_model(0), "int8": tiny_model(0)}
    rng = np.random.default_rng(7)

    def put(name: str, data: bytes) -> str:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return name

    frames = [rng.integers(0, 256, (24 + i, 20, 3), np.uint8) for i in range(golden)]
    batch = np.stack([fit(frame, SIZE_WH, Resize())[0] for frame in frames])
    outputs, decoded, variants = {}, {}, []
    for precision, model in models.items():
        file = put(f"model/model.{precision}.onnx", model.onnx(metadata=metadata))
        raw = model.reference(batch)
        np.savez(folder / "raw.npz", **raw)
        outputs[precision] = put(f"golden/outputs.{precision}.npz", (folder / "raw.npz").read_bytes())
        (folder / "raw.npz").unlink()
        params = TASKS["classify"].check_params({}, LABELS)
        results = [TASKS["classify"].to_json(result, LABELS) for result in TASKS["classify"].decode(raw, params)]
        decoded[precision] = put(f"golden/decoded.{precision}.json", json.dumps(results).encode())
        variants.append(
            {
                "precision": precision,
                "file": file,
                "opset": 20,
                "outputs": [
                    {"name": "scores", "dtype": "float32", "shape": (-1, model.b.shape[1])},
                    {"name": "embedding", "dtype": "float32", "shape": (-1, EMBEDDING)},
                ],
                "tolerances": [
                    {"runtime": runtime, "output": output, "atol": 1e-4}
                    for runtime in ("onnxruntime", "openvino")
                    for output in ("scores", "embedding")
                ],
            }
        )
    eval_frames = [rng.integers(0, 256, (SIZE_WH[1], SIZE_WH[0], 3), np.uint8) for _ in range(sample)]
    contents = {
        "min_runner": "0.1.0",
        "name": "tiny",
        "version": "1.0.0",
        "task": "classify",
        "labels": LABELS,
        "input": {"size_wh": SIZE_WH, "colour": "rgb", "mean": [0.0] * 3, "std": [1.0] * 3},
        "variants": variants,
        "golden": {
            "frames": [put(f"golden/{i}.png", write_png(frame)) for i, frame in enumerate(frames)],
            "outputs": outputs,
            "decoded": decoded,
            "pixels_sha256": [sha256(frame.tobytes()) for frame in frames],
            "batch_sha256": sha256(batch.tobytes()),
        },
        "eval": {
            "frames": [put(f"eval/{i}.png", write_png(frame)) for i, frame in enumerate(eval_frames)],
            "truth": put("eval/truth.json", json.dumps([i % len(LABELS) for i in range(sample)]).encode()),
            "of": sample,
        },
        "recommended": "fp32",
        "reason": "A test needs no more.",
    }
    put("README.md", b"# tiny\n")
    write_bundle(folder, contents)
    return folder


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., TinyModel]:
    """`(seed=0, labels=4, size_wh=(10, 8), swapped=False) -> TinyModel`."""
    return tiny_model


@pytest.fixture(scope="session")
def make_tiny_bundle() -> Callable[..., Path]:
    """`(folder, *, models=None, metadata=None, golden=3, sample=6) -> folder`, a valid bundle written there."""
    return write_tiny_bundle


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Path:
    """A valid bundle folder of the test's own."""
    return write_tiny_bundle(tmp_path / "bundle")
