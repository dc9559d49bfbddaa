"""Boxes in the report, worked by hand: counts, average precision, the frames that are shown."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_demo.errors import Error
from edge_demo.manifest import Resize
from pipeline import report_charts, report_detect
from stages.spec import DataResult
from stages.tasks import TASKS

LABELS = ("ant", "bee", "cat")
A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 60, 20)


@pytest.fixture
def data(tmp_path: Path) -> DataResult:
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 64, 3), np.uint8)
    np.save(tmp_path / "test.frames.npy", frames)
    made: dict[str, Any] = {
        "folder": tmp_path, "name": "boxes", "task": "detect", "labels": LABELS, "size_wh": (64, 32),
        "resize": Resize(), "colour": "rgb", "counts": {"train": 1, "val": 1, "test": 3},
        "class_counts": dict.fromkeys(("train", "val", "test"), (1, 1, 1)),
        "digests": {}, "mean": (0.5,) * 3, "std": (0.2,) * 3, "dropped": {},
    }  # fmt: skip
    return DataResult(**made)


def arrays(found: list[tuple[int, Any, float, int]], true: list[tuple[int, Any, int, bool]]) -> dict[str, Any]:
    return {
        "found_item": np.array([row[0] for row in found]),
        "found_xyxy": np.array([row[1] for row in found], np.float32).reshape(-1, 4),
        "found_score": np.array([row[2] for row in found], np.float32),
        "found_class": np.array([row[3] for row in found], np.int64),
        "true_item": np.array([row[0] for row in true]),
        "true_xyxy": np.array([row[1] for row in true], np.float32).reshape(-1, 4),
        "true_class": np.array([row[2] for row in true], np.int64),
        "true_crowd": np.array([row[3] for row in true], bool),
        "shown": np.float32(0.3),
        "quality": np.array([0.5, 0.1, 1.0]),
    }


def example() -> dict[str, Any]:
    """An ant found, a bee taken for an ant, a cat that scores too little; a ghost, and a box in a crowd; nothing."""
    return arrays(
        [(0, A, 0.9, 0), (0, B, 0.8, 0), (0, C, 0.2, 2), (1, A, 0.7, 1), (1, (42, 2, 50, 10), 0.6, 2)],
        [(0, A, 0, False), (0, B, 1, False), (0, C, 2, False), (1, C, 2, True)],
    )


def test_counts_by_hand(data: DataResult) -> None:
    facts = report_detect.facts_of(data, example())
    assert facts.matrix == ((1, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (0, 1, 0, 0))
    assert (facts.frames, facts.boxes, facts.shown) == (3, 3, 3)
    assert facts.threshold == pytest.approx(0.3)
    ant, bee, cat = facts.classes
    assert (ant.boxes, ant.found, ant.right) == (1, 1.0, 0.5)
    assert (bee.boxes, bee.found, bee.right) == (1, 0.0, 0.0)
    assert (cat.boxes, cat.found, cat.right) == (1, 0.0, None)
    # All candidates count in average precision: the cat's box is exact, the one in the crowd counts for nothing.
    assert (ant.ap50, bee.ap50, cat.ap50) == (1.0, 0.0, 1.0)
    assert cat.ap50_95 == 1.0
    assert len(ant.precision) == 101


def test_the_predictions_of_the_task_are_what_is_read(data: DataResult) -> None:
    results, truths = report_detect.results_of(example(), 3)
    again = TASKS["detect"].predictions(truths, results)
    for name, values in again.items():
        np.testing.assert_array_equal(values, example()[name])
    assert report_detect.is_told_by({**again, "quality": np.zeros(3)})
    assert not report_detect.is_told_by({"truth": np.zeros(3)})


def test_a_class_without_a_true_box_has_no_precision(data: DataResult) -> None:
    facts = report_detect.facts_of(data, arrays([(0, A, 0.9, 1)], [(0, A, 0, False)]))
    assert facts.classes[1].ap50 is None
    assert facts.classes[1].precision == ()
    assert facts.classes[2].found is None
    nothing = report_detect.facts_of(data, arrays([], []))
    assert (nothing.boxes, nothing.shown) == (0, 0)


def test_the_worst_frames_come_first_and_both_halves_are_the_frame(data: DataResult) -> None:
    worst, others = report_detect.frames_shown(data, example(), 3)
    assert [frame.quality for frame in (*worst, *others)] == [0.1, 0.5, 1.0]
    assert [frame.labels for frame in (*worst, *others)] == ["1 cat", "1 ant, 1 bee, 1 cat", "nothing"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(others[0].uri.partition(",")[2]))), np.float64)
    factor = report_detect.LARGE // 64
    assert picture.shape == (32 * factor, 2 * 64 * factor, 3)
    left, right = picture[:, : 64 * factor], picture[:, 64 * factor :]
    assert np.abs(left - right).mean() < 3  # JPEG
    np.save(data.folder / "test.frames.npy", np.load(data.folder / "test.frames.npy")[:2])
    with pytest.raises(Error, match="3 predictions for 2 test frames"):
        report_detect.frames_shown(data, example(), 3)


def test_the_chart_names_every_class_where_they_are_few() -> None:
    flat = [report_charts.Series(label, [1.0, 0.5, 0.0]) for label in LABELS]
    svg = report_charts.precision(flat)
    assert all(label in svg for label in (*LABELS, "mean of 3 classes"))
    many = report_charts.precision(flat * 4)
    assert "ant" not in many
    assert "mean of 12 classes" in many
