"""A bundle of each task with coordinates, around a graph whose answers numpy knows: opens, verifies, shows."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_demo.app import DemoOptions, run_demo
from edge_demo.bundle import canonical_json, open_bundle, write_bundle
from edge_demo.errors import InputError
from edge_demo.image import fit, write_png
from edge_demo.manifest import Resize
from edge_demo.tasks import TASKS
from edge_demo.verify import verify

onnx = pytest.importorskip("onnx")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT

SIZE_WH, CELL, K = (64, 48), 8, 12
LABELS = {"detect": ("kühl", "warm"), "segment": ("background", "hell")}
TYPES = {"float32": FLOAT, "int64": onnx.TensorProto.INT64, "uint8": onnx.TensorProto.UINT8}
OUTPUTS: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {
    "detect": [("boxes", "float32", (-1, K, 4)), ("scores", "float32", (-1, K)), ("classes", "int64", (-1, K))],
    "segment": [("classes", "uint8", (-1, SIZE_WH[1], SIZE_WH[0]))],
}
Node = Callable[..., Any]


def detect_nodes(node: Node) -> tuple[list[Any], dict[str, Any]]:
    """The K brightest cells of 8 x 8 pixels; `warm` where red is above blue."""
    nodes = [
        node("AveragePool", ["nchw"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        node("ReduceMean", ["cells", "axis1"], ["grey"], keepdims=0),
        node("Flatten", ["grey"], ["flat"], axis=1),
        node("Mul", ["flat", "scale"], ["unit"]),
        node("TopK", ["unit", "k"], ["scores", "index"], axis=1),
        node("Gather", ["cells", "red"], ["reds"], axis=1),
        node("Gather", ["cells", "blue"], ["blues"], axis=1),
        node("Greater", ["reds", "blues"], ["redder"]),
        node("Cast", ["redder"], ["kinds"], to=TYPES["int64"]),
        node("Flatten", ["kinds"], ["kind"], axis=1),
        node("GatherElements", ["kind", "index"], ["classes"], axis=1),
        node("Mod", ["index", "columns"], ["column"]),
        node("Div", ["index", "columns"], ["row"]),
        node("Unsqueeze", ["column", "axis2"], ["column1"]),
        node("Unsqueeze", ["row", "axis2"], ["row1"]),
        node("Concat", ["column1", "row1", "column1", "row1"], ["corner"], axis=2),
        node("Cast", ["corner"], ["cornerf"], to=FLOAT),
        node("Mul", ["cornerf", "cell"], ["corners"]),
        node("Add", ["corners", "size"], ["boxes"]),
    ]
    constants = {
        "axis1": np.array([1]), "axis2": np.array([2]), "k": np.array([K]), "red": np.array(2), "blue": np.array(0),
        "columns": np.array(SIZE_WH[0] // CELL), "scale": np.float32(1 / 255), "cell": np.float32(CELL),
        "size": np.array([0, 0, CELL, CELL], np.float32),
    }  # fmt: skip
    return nodes, constants


def segment_nodes(node: Node) -> tuple[list[Any], dict[str, Any]]:
    """`hell` where the mean of the channels is above 128."""
    nodes = [
        node("Conv", ["nchw", "weight", "bias"], ["logits"]),
        node("ArgMax", ["logits"], ["index"], axis=1, keepdims=0),
        node("Cast", ["index"], ["classes"], to=TYPES["uint8"]),
    ]
    weight = np.array([[0, 0, 0], [1, 1, 1]], np.float32).reshape(2, 3, 1, 1)
    return nodes, {"weight": weight, "bias": np.array([384, 0], np.float32)}


NODES = {"detect": detect_nodes, "segment": segment_nodes}


def model(task: str, labels: Sequence[str]) -> bytes:
    node = helper.make_node
    nodes, constants = NODES[task](node)
    first = [node("Cast", ["frames"], ["float"], to=FLOAT), node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*first, *nodes],
        task,
        [value("frames", TYPES["uint8"], ["N", SIZE_WH[1], SIZE_WH[0], 3])],
        [value(name, TYPES[dtype], ["N", *shape[1:]]) for name, dtype, shape in OUTPUTS[task]],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(made, {"task": task, "labels": json.dumps(list(labels))})
    onnx.checker.check_model(made, full_check=True)
    return bytes(made.SerializeToString(deterministic=True))


def reference(task: str, batch: Any) -> dict[str, Any]:
    """What the graph must give, in numpy."""
    pixels = batch.astype(np.float64)
    if task == "segment":
        return {"classes": (pixels.sum(axis=3) > 384).astype(np.uint8)}
    columns, rows = SIZE_WH[0] // CELL, SIZE_WH[1] // CELL
    cells = pixels.reshape(len(batch), rows, CELL, columns, CELL, 3).mean(axis=(2, 4)).reshape(len(batch), -1, 3)
    index = np.argsort(-cells.mean(axis=2), axis=1, kind="stable")[:, :K]
    corner = np.stack([index % columns, index // columns] * 2, axis=2) * float(CELL) + [0, 0, CELL, CELL]
    scores = np.take_along_axis(cells.mean(axis=2), index, axis=1) / 255
    warm = np.take_along_axis(cells[..., 2] > cells[..., 0], index, axis=1)
    return {"boxes": corner.astype(np.float32), "scores": scores.astype(np.float32), "classes": warm.astype(np.int64)}


def picture(rng: np.random.Generator, size_wh: tuple[int, int]) -> Any:
    """Coloured rectangles on dark noise."""
    width, height = size_wh
    frame = rng.integers(0, 60, (height, width, 3), np.uint8)
    for _ in range(4):
        x, y = int(rng.integers(0, width * 3 // 4)), int(rng.integers(0, height * 3 // 4))
        frame[y : y + height // 4, x : x + width // 4] = rng.integers(120, 256, 3)
    return frame


def truth_of(task: str, raw: dict[str, Any]) -> Any:
    """Of one frame: what the model says, so that its score is perfect."""
    if task == "segment":
        return raw["classes"].tolist()
    return {"boxes": raw["boxes"].tolist(), "classes": raw["classes"].tolist(), "crowd": [False] * K}


def write(folder: Path, task: str, labels: Sequence[str] | None = None) -> Path:
    labels = labels or LABELS[task]
    rng, resize = np.random.default_rng(5), Resize(mode="letterbox")

    def put(name: str, data: bytes) -> str:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return name

    golden = [picture(rng, wh) for wh in (SIZE_WH, (150, 90), (100, 200))]
    sample = [picture(rng, SIZE_WH) for _ in range(5)]
    batch = np.stack([fit(frame, SIZE_WH, resize)[0] for frame in golden])
    raw, row = reference(task, batch), TASKS[task]
    answers = [row.to_json(result, labels) for result in row.decode(raw, row.check_params({}, labels))]
    put("model/model.fp32.onnx", model(task, labels))
    np.savez(folder / "raw.npz", **raw)
    put("golden/outputs.fp32.npz", (folder / "raw.npz").read_bytes())
    (folder / "raw.npz").unlink()
    put("golden/decoded.fp32.json", canonical_json(answers))
    put("README.md", b"# bright\n")
    found = [{name: array[0] for name, array in reference(task, frame[None]).items()} for frame in sample]
    tolerances = [
        {"runtime": runtime, "output": name, "atol": 1e-4}
        for runtime in ("onnxruntime", "openvino")
        for name, _, _ in OUTPUTS[task]
    ]
    outputs = [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in OUTPUTS[task]]
    variant = {
        "precision": "fp32", "file": "model/model.fp32.onnx", "opset": 20, "outputs": outputs, "tolerances": tolerances
    }  # fmt: skip
    contents = {
        "min_runner": "0.1.0",
        "name": "bright",
        "version": "1.0.0",
        "task": task,
        "labels": labels,
        "input": {
            "size_wh": SIZE_WH, "resize": resize.model_dump(), "colour": "rgb", "mean": [0.0] * 3, "std": [1.0] * 3
        },
        "variants": [variant],
        "golden": {
            "frames": [put(f"golden/{i}.png", write_png(frame)) for i, frame in enumerate(golden)],
            "outputs": {"fp32": "golden/outputs.fp32.npz"},
            "decoded": {"fp32": "golden/decoded.fp32.json"},
            "pixels_sha256": [hashlib.sha256(frame.tobytes()).hexdigest() for frame in golden],
            "batch_sha256": hashlib.sha256(batch.tobytes()).hexdigest(),
        },
        "eval": {
            "frames": [put(f"eval/{i}.png", write_png(frame)) for i, frame in enumerate(sample)],
            "truth": put("eval/truth.json", canonical_json([truth_of(task, raw) for raw in found])),
            "of": len(sample),
        },
        "recommended": "fp32",
        "reason": "A test needs no more.",
    }  # fmt: skip
    write_bundle(folder, contents)
    return folder


def relist(folder: Path) -> None:
    """Bring the manifest's digests up to date after files were changed."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (folder / "manifest.json").write_bytes(canonical_json(manifest))


def change_golden(folder: Path, task: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Other recorded outputs, and the answers that go with them."""
    file, labels, row = folder / "golden/outputs.fp32.npz", LABELS[task], TASKS[task]
    with np.load(file) as arrays:
        raw = {name: arrays[name].copy() for name in arrays.files}
    change(raw)
    np.savez(file, **raw)
    answers = [row.to_json(result, labels) for result in row.decode(raw, row.check_params({}, labels))]
    (folder / "golden/decoded.fp32.json").write_bytes(canonical_json(answers))
    relist(folder)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_it_verifies_in_both_runtimes_and_scores_perfectly(tmp_path: Path, task: str) -> None:
    folder = write(tmp_path / "bundle", task)
    report = verify(folder)
    assert report.ok, report.failures
    assert {(check.level, check.runtime) for check in report.checks} >= {
        ("decoded", "openvino"),
        ("raw", "onnxruntime"),
    }
    bundle = open_bundle(folder)
    frames, truths = bundle.eval_sample()
    row = TASKS[task]
    results = row.decode(reference(task, frames), {**bundle.params, "nms_iou": 1.0})
    assert row.score(results, truths)[row.metric] == pytest.approx(1.0)


def test_the_order_of_candidates_is_no_difference_and_a_moved_one_is(tmp_path: Path) -> None:
    turned, moved = (write(tmp_path / name, "detect") for name in ("turned", "moved"))

    def turn(raw: dict[str, Any]) -> None:
        raw.update({name: np.ascontiguousarray(array[:, ::-1]) for name, array in raw.items()})

    def move(raw: dict[str, Any]) -> None:
        raw["boxes"][1, 0] += 0.5

    change_golden(turned, "detect", turn)
    change_golden(moved, "detect", move)
    report = verify(turned)
    assert report.ok, report.failures
    assert [check.detail.partition(":")[0] for check in verify(moved).checks if not check.passed] == ["boxes", "boxes"]


def test_a_few_pixels_of_another_class_pass_and_many_do_not(tmp_path: Path) -> None:
    few, many = (write(tmp_path / name, "segment") for name in ("few", "many"))

    def flip(count: int) -> Callable[[dict[str, Any]], None]:
        def change(raw: dict[str, Any]) -> None:
            raw["classes"][0].reshape(-1)[:count] ^= 1

        return change

    pixels = SIZE_WH[0] * SIZE_WH[1]
    change_golden(few, "segment", flip(pixels // 200))
    change_golden(many, "segment", flip(pixels // 200 + 1))
    assert verify(few).ok
    (check, *_) = [check for check in verify(many).checks if not check.passed]
    assert (check.level, check.max_abs) == ("raw", 1.0)


def test_outputs_that_do_not_go_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telling = replace(TASKS["detect"], check_outputs=lambda outputs, labels: f"{sorted(outputs)} of {len(labels)}")
    monkeypatch.setitem(TASKS, "detect", telling)
    with pytest.raises(InputError, match=r"\['boxes', 'classes', 'scores'\] of 2"):
        write(tmp_path / "bundle", "detect")


def demo(folder: Path, tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    lines = tmp_path / "events.jsonl"
    run_demo(DemoOptions(bundle=folder, show="none", jsonl=str(lines), threads=1, policy="every", **options))
    events = [json.loads(line) for line in lines.read_text().splitlines()]
    return [event for event in events if event["type"] == "result"]


def test_boxes_of_the_demo_are_in_the_pixels_of_the_frame(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle", "detect")
    frame = np.zeros((300, 300, 3), np.uint8)
    frame[100:150, 50:100] = (0, 100, 255)  # red: a cell of the network, 300 / 48 x 8 = 50 px
    (tmp_path / "one.png").write_bytes(write_png(frame))
    (event,) = demo(folder, tmp_path, source=str(tmp_path / "one.png"))
    assert (event["task"], event["width"], event["height"]) == ("detect", 300, 300)
    (box,) = event["result"]["boxes"]
    assert box["label"] == "warm"
    assert box["xyxy"] == [50.0, 100.0, 100.0, 150.0]
    assert "id" not in box  # a picture alone has no past


def test_a_moving_source_is_tracked_unless_it_is_off(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle", "detect")
    tracked = demo(folder, tmp_path, source="synthetic", max_frames=12)
    assert any("id" in box for event in tracked for box in event["result"]["boxes"])
    bare = demo(folder, tmp_path, source="synthetic", max_frames=12, track=False)
    assert len(bare) == 12
    assert not any("id" in box for event in bare for box in event["result"]["boxes"])
    assert all(0 <= box["xyxy"][0] < box["xyxy"][2] <= 640 for event in bare for box in event["result"]["boxes"])


def test_segment_shows_and_refuses_what_has_no_effect(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle", "segment")
    events = demo(folder, tmp_path, source="synthetic", max_frames=3)
    assert all(0 < event["result"]["areas"]["hell"] < 1 for event in events)
    with pytest.raises(InputError, match="--no-track has no effect: segment"):
        demo(folder, tmp_path, source="synthetic", max_frames=3, track=False)
    with pytest.raises(InputError, match="segment cannot be taught"):
        demo(folder, tmp_path, source="synthetic", max_frames=3, teach=tmp_path / "taught.npz")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_bench_measures_speed_and_quality(tmp_path: Path, task: str) -> None:
    folder = write(tmp_path / "bundle", task)
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "pipeline", "bench", str(folder), "--preset", "quick", "--json", str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(file.read_text())["variants"]
    assert {row["accuracy"]["metric"] for row in rows} == {TASKS[task].metric}
    assert {row["runtime"] for row in rows} == {"onnxruntime", "openvino"}
