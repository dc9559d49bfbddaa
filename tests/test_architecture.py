"""What may be imported when: starting is fast, and the device needs no training stack."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "cv2", "matplotlib", "lightning_fabric")
TRAINING = ("torch", "onnx", "nncf", "onnxscript", "matplotlib", "lightning_fabric")


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after running the code in a fresh interpreter."""
    report = "import sys; print('\\n@' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("@")[2].split())


@pytest.mark.parametrize(
    "words", [["--help"], ["all", "--help"], ["bench", "--help"], ["demo", "--help"], ["info", "--schema", "run"]]
)
def test_help_loads_no_heavy_library(words: list[str]) -> None:
    assert not loaded_by(f"from pipeline.cli import call; call({words})") & set(HEAVY)


@pytest.mark.parametrize("words", [["doctor", "--json"], ["data", "list"]])
def test_looking_around_loads_neither_torch_nor_a_runtime(words: list[str]) -> None:
    assert not loaded_by(f"from pipeline.cli import call; call({words})") & {*TRAINING, "onnxruntime", "openvino"}


@pytest.mark.parametrize(
    "module",
    ["stages.bench", "stages.bench.stage", "edge_demo.app", "edge_demo.verify", "edge_demo.bundle", "stages.data"],
)
def test_what_runs_on_the_device_loads_no_training_stack(module: str) -> None:
    assert not loaded_by(f"import {module}") & set(TRAINING)


def test_the_benchs_parent_process_loads_no_runtime() -> None:
    """It would share memory and threads with what is measured."""
    assert not loaded_by("import stages.bench.stage, stages.bench.render") & {"onnxruntime", "openvino", *TRAINING}


def best_of_three(*command: str) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return min(times)


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_help_starts_in_under_a_third_of_importing_torch() -> None:
    """A ratio on the same machine, each the best of three; no absolute time."""
    ours = best_of_three(sys.executable, "-m", "pipeline", "--help")
    torchs = best_of_three(sys.executable, "-c", "import torch")
    assert ours < torchs / 3
