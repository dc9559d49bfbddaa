"""What is said of answers: of any task, its own metric with an interval of that metric, and a paired test."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_demo.manifest import InputContract
from edge_demo.tasks import TASKS
from edge_demo.tasks.detect import Boxes
from edge_demo.tasks.segment import ClassMap
from stages.bench import stage, stats
from stages.bench.answers import accuracy, difference
from stages.bench.method import Plan
from stages.bench.target import Sample
from stages.spec import BenchConfig

SHORT = Plan(launches=1, rounds=2, slice_s=0.005, rewarm_s=0.001, min_runs=2, warm_cap_s=0.01, warm_window_s=0.005)


def sample_of(task: str, truths: list[Any]) -> Sample:
    contract = InputContract(size_wh=(64, 64), colour="rgb", mean=(0.0,) * 3, std=(1.0,) * 3)
    return Sample(Path("frames.npy"), truths, 1000, task, {}, contract, "0" * 64)


def boxes(rng: np.random.Generator, count: int) -> Any:
    corner = rng.uniform(0, 40, (count, 2))
    return np.hstack([corner, corner + rng.uniform(8, 20, (count, 2))]).astype(np.float32)


def detections(rng: np.random.Generator, n: int, off: float) -> tuple[list[Boxes], list[Any]]:
    """Two boxes per frame, found with a shift of up to `off` pixels, and a false one in every third frame."""
    found, truths = [], []
    for number in range(n):
        xyxy, classes = boxes(rng, 2), rng.integers(0, 3, 2)
        seen = np.vstack([xyxy + rng.uniform(-off, off, (2, 4)), *([boxes(rng, 1)] if number % 3 == 0 else [])])
        ids = np.append(classes, [0] * (len(seen) - 2))
        scores = np.sort(rng.uniform(0.4, 1.0, len(seen)))[::-1]
        found.append(Boxes(seen.astype(np.float32), scores.astype(np.float32), ids, scores >= 0.3, 0.3))
        truths.append({"boxes": xyxy.tolist(), "classes": classes.tolist(), "crowd": [False, False]})
    return found, truths


def test_a_detector_gets_map_with_an_interval_of_map() -> None:
    results, truths = detections(np.random.default_rng(0), 120, 4.0)
    better, _ = detections(np.random.default_rng(0), 120, 1.0)
    got = accuracy(better, results, sample_of("detect", truths), 0)
    assert (got.metric, got.n, got.of, got.wrong) == ("map50_95", 120, 1000, None)
    score = TASKS["detect"].score
    assert got.value == score(better, truths)["map50_95"]
    assert got.vs_fp32 == pytest.approx(got.value - score(results, truths)["map50_95"])
    assert got.ci95[0] < got.value < got.ci95[1]
    # The bootstrap, which needs many more scores, is the independent witness.
    rng, scores = np.random.default_rng(1), []
    for _ in range(150):
        picks = rng.integers(0, 120, 120)
        scores.append(score([better[i] for i in picks], [truths[i] for i in picks])["map50_95"])
    low, high = np.percentile(scores, (2.5, 97.5))
    assert got.ci95[1] - got.ci95[0] == pytest.approx(high - low, rel=0.5)
    assert got.paired
    assert got.paired.better > got.paired.worse
    assert got.paired.p == stats.mcnemar(got.paired.better, got.paired.worse)


def test_a_segmenter_gets_the_iou_with_an_interval_of_it() -> None:
    rng = np.random.default_rng(0)
    truths = [rng.integers(0, 2, (8, 8)).astype(np.uint8) for _ in range(60)]
    results = [ClassMap(np.where(rng.random((8, 8)) < 0.9, truth, 1 - truth).astype(np.uint8)) for truth in truths]
    got = accuracy(results, results, sample_of("segment", truths), 0)
    found, true = np.stack([result.classes for result in results]), np.stack(truths)
    ious = [((found == c) & (true == c)).sum() / ((found == c) | (true == c)).sum() for c in (0, 1)]
    assert (got.metric, got.value) == ("miou", pytest.approx(np.mean(ious)))
    assert got.ci95[0] < got.value < got.ci95[1]
    assert (got.vs_fp32, got.paired and (got.paired.better, got.paired.worse, got.paired.p)) == (0.0, (0, 0, 1.0))


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_bundle_of_any_task_is_measured_with_its_metric(task: str, tmp_path: Path) -> None:
    """`tests/edge_demo` has a graph of each task whose answers are its truths."""
    file = Path(__file__).parents[1] / "edge_demo/test_task_detect_segment_bundle.py"
    spec = importlib.util.spec_from_file_location("bundle_maker", file)
    assert spec
    assert spec.loader
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    config = BenchConfig(runtimes=("onnxruntime",), precisions=("fp32",), scenarios=("e2e", "accuracy"))
    document = stage.bench_target(maker.write(tmp_path / "bundle", task), config, plan=SHORT)
    assert [row.id for row in document.variants] == ["ort-fp32-t1-e2e", "ort-fp32-t1-accuracy"]
    for row in document.variants:
        assert (row.status != "failed", row.reason) == (True, "")
        assert row.accuracy
        assert (row.accuracy.metric, row.accuracy.value, row.accuracy.n) == (TASKS[task].metric, 1.0, 5)
        assert row.difference
        assert row.difference.agreement == 1.0
    timed, untimed = document.variants
    assert set(timed.stage_us or {}) == {"decode", "resize", "infer", "result"}
    assert (untimed.rounds, untimed.ratio, untimed.fps, untimed.latency_us) == ((), None, None, None)


def test_candidates_in_another_order_are_no_difference() -> None:
    """Scores that are nearly equal change places between runtimes; a box that moved is a difference all the same."""
    rng = np.random.default_rng(2)
    xyxy = np.stack([boxes(rng, 5) + 60 * np.arange(5)[:, None] for _ in range(3)]).astype(np.float32)
    base = {
        "boxes": xyxy,
        "scores": np.sort(rng.uniform(0.4, 1, (3, 5)))[:, ::-1].astype(np.float32),
        "classes": rng.integers(0, 3, (3, 5)),
    }
    order = [0, 2, 1, 4, 3]
    other = {name: values[:, order] for name, values in base.items()}
    moved = {**other, "boxes": other["boxes"] + np.float32(2)}
    task = TASKS["detect"]
    params = task.check_params({}, ("a", "b", "c"))
    raws = {"fp32": base, "int8": other, "off": moved}
    results = {name: task.decode(raw, params) for name, raw in raws.items()}
    sample = sample_of("detect", [])
    same, off = (difference("fp32", raws, results, name, sample) for name in ("int8", "off"))
    assert same.max_abs == 0
    assert same.cosine == pytest.approx(1)
    assert same.agreement == 1
    assert off.max_abs == pytest.approx(2, abs=1e-4)
    assert difference("fp32", raws, results, "int8", None).max_abs > 1
