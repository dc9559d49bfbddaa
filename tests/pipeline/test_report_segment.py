"""Masks in the report, worked by hand: IoU and confusion of pixels, void, the frames that are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_demo.errors import Error
from edge_demo.manifest import Resize
from edge_demo.tasks.colours import colour_of
from edge_demo.tasks.segment import ClassMap
from pipeline import report_segment
from stages.spec import DataResult
from stages.tasks import TASKS

LABELS = ("background", "ant", "bee")
VOID = 255
TRUTH = np.array([[[0, 0, 1, 1]], [[0, 0, 0, VOID]], [[VOID, VOID, 0, 1]]], np.uint8)
ANSWER = np.array([[[0, 0, 1, 0]], [[0, 0, 0, 2]], [[1, 1, 1, 1]]], np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> DataResult:
    np.save(tmp_path / "test.frames.npy", np.full((3, 1, 4, 1), 100, np.uint8))
    made: dict[str, Any] = {
        "folder": tmp_path, "name": "masks", "task": "segment", "labels": LABELS, "size_wh": (4, 1),
        "resize": Resize(), "colour": "gray", "counts": {"train": 1, "val": 1, "test": 3},
        "class_counts": dict.fromkeys(("train", "val", "test"), (1, 1, 1)),
        "digests": {}, "mean": (0.5,), "std": (0.2,), "dropped": {},
    }  # fmt: skip
    return DataResult(**made)


def arrays() -> dict[str, Any]:
    """What the task keeps: frame 0 is half wrong on ants, 1 all right, 2 wrong on its background."""
    kept = TASKS["segment"].predictions(list(TRUTH), [ClassMap(answer) for answer in ANSWER])
    # (2/3 + 1/2) / 2, 1, (0 + 1/2) / 2
    return {**kept, "quality": np.array([7 / 12, 1.0, 0.25])}


def test_numbers_by_hand(data: DataResult) -> None:
    """Nine pixels are known: five of six of background are found, and two of three ants; two are called so wrongly."""
    facts = report_segment.facts_of(data, arrays())
    assert (facts.frames, facts.pixels) == (3, 9)
    assert facts.void == pytest.approx(3 / 12)
    background, ant, bee = facts.classes
    assert (background.pixels, background.iou, background.found, background.right) == (6, 5 / 7, 5 / 6, 5 / 6)
    assert (ant.pixels, ant.iou, ant.found, ant.right) == (3, 2 / 4, 2 / 3, 2 / 3)
    assert (bee.pixels, bee.iou, bee.found, bee.right) == (0, None, None, None)
    assert facts.matrix == ((5 / 6, 1 / 6, 0), (1 / 3, 2 / 3, 0), (0, 0, 0))
    assert [(pair.truth, pair.answer) for pair in facts.worst] == [("ant", "background"), ("background", "ant")]


def test_what_is_told_by_which_arrays() -> None:
    assert report_segment.is_told_by(arrays())
    assert not report_segment.is_told_by({"truth": np.zeros(3), "answer": np.zeros(3), "score": np.zeros(3)})


def test_the_worst_frames_come_first(data: DataResult) -> None:
    worst, others = report_segment.frames_shown(data, arrays(), 3)
    assert [frame.quality for frame in (*worst, *others)] == [0.25, 7 / 12, 1.0]
    assert [frame.labels for frame in (*worst, *others)] == ["ant", "ant", "nothing"]
    assert all(frame.size_wh == (3 * 4, 1) for frame in worst)
    np.save(data.folder / "test.frames.npy", np.zeros((2, 1, 4, 1), np.uint8))
    with pytest.raises(Error, match="3 predictions for 2 test frames"):
        report_segment.frames_shown(data, arrays(), 3)


def test_colours_by_hand() -> None:
    """Background untouched, void half white, a class half its colour."""
    shown = report_segment.coloured(np.full((1, 3, 3), 100, np.uint8), np.array([[0, VOID, 1]], np.uint8)).astype(float)
    assert shown[0, 0].tolist() == [100] * 3
    assert np.abs(shown[0, 1] - (100 + 255) / 2).max() <= 1
    assert np.abs(shown[0, 2] - (100 + np.array(colour_of(1))) / 2).max() <= 1
    blue, green, red = colour_of(1)
    assert report_segment.legend(LABELS)[0] == ("ant", f"#{red:02x}{green:02x}{blue:02x}")
