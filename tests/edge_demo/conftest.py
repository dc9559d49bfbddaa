"""Fixtures of the device tests: a camera on loopback, a bundle and a runtime that do what the demo asks."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from edge_demo.manifest import InputContract
from edge_demo.runtime import Bound, TensorSpec


def _load(name: str) -> ModuleType:
    """A module beside this file: test modules are imported one by one, without a package."""
    spec = importlib.util.spec_from_file_location(f"tests_edge_demo_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def camera_module() -> ModuleType:
    """`fake_camera`: FakeCamera, stamp, read_stamp."""
    return _load("fake_camera")


@pytest.fixture(scope="session")
def rtsp_module() -> ModuleType:
    """`fake_rtsp`: FakeRtsp."""
    return _load("fake_rtsp")


@pytest.fixture
def camera(camera_module: ModuleType) -> Iterator[Any]:
    """A running camera on loopback."""
    camera = camera_module.FakeCamera()
    yield camera
    camera.kill()


@dataclass
class BrightnessRuntime:
    """A model whose answer can be known beforehand: class = mean grey level of its input // 26, in `delay_s`."""

    delay_s: float = 0.0
    name: str = "onnxruntime"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    effective: dict[str, Any] = field(default_factory=dict)
    closed: bool = False
    batches: list[tuple[tuple[int, ...], str]] = field(default_factory=list)

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def bind(self, feeds: Mapping[str, Any]) -> Bound:
        inputs = dict(feeds)
        outputs = {"scores": np.zeros((1, 10), np.float32), "embedding": np.zeros((1, 4), np.float32)}

        def run() -> None:
            time.sleep(self.delay_s)
            self.batches.append((inputs["frames"].shape, str(inputs["frames"].dtype)))
            outputs["scores"][:] = 0.01
            outputs["scores"][0, int(inputs["frames"].mean()) // 26] = 0.91

        return Bound(inputs, outputs, run)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def brightness_runtime() -> Callable[..., BrightnessRuntime]:
    return BrightnessRuntime


@pytest.fixture
def fake_bundle() -> Any:
    """What the demo asks of a bundle, for ten classes and a centred square of one half."""
    manifest = SimpleNamespace(
        task="classify",
        name="digits",
        version="0.1.0",
        labels=tuple("0123456789"),
        decode={"roi": 0.5},
        recommended="int8",
        variants=(SimpleNamespace(precision="fp32"), SimpleNamespace(precision="int8")),
        input=InputContract(size_wh=(28, 28), colour="gray", mean=(0.0,), std=(1.0,)),
    )
    return SimpleNamespace(manifest=manifest, model_bytes=lambda precision: precision.encode())


@pytest.fixture
def levels_video(tmp_path: Path) -> Path:
    """Forty frames, each as bright as its number times six."""
    path = tmp_path / "levels.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (320, 240))
    for number in range(40):
        writer.write(np.full((240, 320, 3), number * 6, dtype=np.uint8))
    writer.release()
    return path
