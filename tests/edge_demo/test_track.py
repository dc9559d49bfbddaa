"""Following boxes: synthetic motion, whose objects are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_demo.loop import following
from edge_demo.tasks import TASKS, detect
from edge_demo.track import REMEMBERED, Tracker

THRESHOLD = 0.5


def step(tracker: Tracker, *rows: tuple[list[float], float, int]) -> Any:
    xyxy = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    scores = np.array([row[1] for row in rows], np.float32)
    return tracker.update(xyxy, scores, np.array([row[2] for row in rows], np.int64), THRESHOLD)


def square(x: float, y: float = 0.0, side: float = 40.0) -> list[float]:
    return [x, y, x + side, y + side]


def test_two_objects_that_pass_each_other_keep_their_numbers() -> None:
    tracker = Tracker()
    for t in range(60):
        seen = step(tracker, (square(5.0 * t), 0.9, 0), (square(300 - 5.0 * t, 30), 0.8, 1))
        assert seen.ids.tolist() == [1, 2]
        assert seen.class_ids.tolist() == [0, 1]
        np.testing.assert_allclose(seen.xyxy, [square(5.0 * t), square(300 - 5.0 * t, 30)], atol=6)


def test_a_still_object_jitters_less_than_its_boxes() -> None:
    rng = np.random.default_rng(0)
    tracker = Tracker()
    boxes = np.array(square(100)) + rng.normal(0, 2, (200, 4))
    smooth = np.concatenate([step(tracker, (box.tolist(), 0.9, 0)).xyxy for box in boxes])
    assert np.abs(np.diff(smooth, axis=0)).mean() < 0.7 * np.abs(np.diff(boxes, axis=0)).mean()
    np.testing.assert_allclose(smooth.mean(axis=0), square(100), atol=0.5)


def test_a_score_around_the_threshold_does_not_flicker() -> None:
    tracker = Tracker()
    assert step(tracker, (square(0), 0.48, 0)).ids.tolist() == []
    assert step(tracker, (square(0), 0.52, 0)).ids.tolist() == [1]
    for score in (0.45, 0.35, 0.51, 0.31):
        assert step(tracker, (square(0), score, 0)).ids.tolist() == [1]
    assert step(tracker, (square(0), 0.29, 0)).ids.tolist() == []
    assert step(tracker, (square(0), 0.45, 0)).ids.tolist() == []  # has to be sure again
    assert step(tracker, (square(0), 0.55, 0)).ids.tolist() == [1]


def test_nothing_is_shown_that_is_not_in_the_frame_but_its_number_is_kept_for_a_while() -> None:
    tracker = Tracker()
    step(tracker, (square(0), 0.9, 0))
    for _ in range(REMEMBERED):
        assert step(tracker).ids.tolist() == []
    assert step(tracker, (square(3), 0.9, 0)).ids.tolist() == [1]
    for _ in range(REMEMBERED + 1):
        step(tracker)
    assert step(tracker, (square(3), 0.9, 0)).ids.tolist() == [2]


def test_one_frame_of_another_class_does_not_change_the_label() -> None:
    tracker = Tracker()
    labels = [step(tracker, (square(0), 0.8, c)).class_ids.tolist() for c in (0, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1)]
    assert labels[:7] == [[0]] * 7
    assert labels[-1] == [1]


def test_the_nearest_box_wins_whatever_its_score() -> None:
    tracker = Tracker()
    step(tracker, (square(0), 0.9, 0))
    seen = step(tracker, (square(20), 0.95, 0), (square(2), 0.6, 0))
    assert dict(zip(seen.ids.tolist(), seen.scores.astype(float).round(2).tolist(), strict=True)) == {1: 0.6, 2: 0.95}


def boxes(score: float) -> detect.Boxes:
    xyxy = np.array([square(0)], np.float32)
    scores = np.array([score], np.float32)
    return detect.Boxes(xyxy, scores, np.zeros(1, np.int64), scores >= THRESHOLD, THRESHOLD)


def test_each_moving_source_has_a_tracker_of_its_own() -> None:
    follow = following(TASKS["detect"], [True, False, True])
    assert follow is not None
    assert follow(0, boxes(0.9)).ids.tolist() == [1]
    assert follow(0, boxes(0.4)).ids.tolist() == [1]
    assert follow(1, boxes(0.9)).ids is None
    assert follow(2, boxes(0.4)).ids.tolist() == []
    assert detect.to_json(follow(0, boxes(0.4)), ("ant",))["boxes"][0]["id"] == 1


def test_pictures_and_tasks_without_boxes_are_not_tracked() -> None:
    assert following(TASKS["detect"], [False, False]) is None
    assert following(TASKS["classify"], [True]) is None
