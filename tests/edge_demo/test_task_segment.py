"""Segmentation on the device: metric against scikit-learn and by hand, frames' pixels, comparison, drawing, JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from edge_demo.errors import InputError
from edge_demo.manifest import Resize
from edge_demo.render import answer
from edge_demo.tasks import TASKS, segment, segment_metric
from edge_demo.tasks.colours import colour_of

TASK = TASKS["segment"]
LABELS = ("background", "Kätzchen", "犬")
PARAMS = TASK.check_params({}, LABELS)


def results(*maps: Any, **params: Any) -> list[segment.ClassMap]:
    return segment.decode({"classes": np.array(maps, np.uint8)}, {**PARAMS, **params})


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 5), images=st.integers(1, 4))
def test_scores_agree_with_scikit_learn(seed: int, classes: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    found = rng.integers(0, classes + 1, (images, 9, 7)).astype(np.uint8)
    truth = np.where(rng.random(found.shape) < 0.5, found, rng.integers(0, classes, found.shape)).astype(np.uint8)
    truth[rng.random(found.shape) < 0.2] = 255
    truth[:, 0, 0] = 0
    known = truth != 255
    present = np.unique(truth[known])
    want = jaccard_score(truth[known], found[known], labels=present, average=None, zero_division=0)
    got = segment.score(results(*found), list(truth))
    assert got["miou"] == pytest.approx(want.mean(), abs=1e-12)
    assert got["pixel_accuracy"] == pytest.approx((truth[known] == found[known]).mean(), abs=1e-12)
    assert {f"iou.{c}": pytest.approx(v, abs=1e-12) for c, v in zip(present, want, strict=True)} == {
        key: value for key, value in got.items() if key.startswith("iou.")
    }
    quality = segment.correct(results(*found), list(truth))
    for value, ours, true in zip(quality, found, truth, strict=True):
        k = true != 255
        assert value == pytest.approx(
            jaccard_score(true[k], ours[k], labels=np.unique(true[k]), average="macro", zero_division=0), abs=1e-12
        )


def test_a_set_by_hand() -> None:
    # class 0: 2 of 3 pixels, class 1: 1 of 2; the void pixel counts for nothing
    got = segment.score(results([[0, 0, 1, 1]]), [[[0, 0, 0, 1]]])
    assert got == pytest.approx({"miou": (2 / 3 + 1 / 2) / 2, "pixel_accuracy": 0.75, "iou.0": 2 / 3, "iou.1": 1 / 2})
    got = segment.score(results([[0, 0, 1, 1]]), [[[0, 0, 255, 1]]])
    assert got == pytest.approx({"miou": 1.0, "pixel_accuracy": 1.0, "iou.0": 1.0, "iou.1": 1.0})
    assert segment.correct(results([[1, 1]]), [[[255, 255]]]).tolist() == [1.0]
    assert segment.score(results([[1, 1]]), [[[255, 255]]]) == {"miou": 1.0, "pixel_accuracy": 1.0}


def test_the_confusion_is_summed_over_the_set() -> None:
    found, truth = results([[1, 1, 1, 1]], [[0, 1, 0, 0]]), [[[1, 1, 1, 1]], [[0, 0, 0, 0]]]
    assert segment.score(found, truth)["miou"] == pytest.approx((4 / 5 + 3 / 4) / 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_interval_is_that_of_the_mean_iou_itself(seed: int) -> None:
    """Against a bootstrap by the definition: frames drawn with replacement, scored by `score`."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (30, 6, 6)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    truth[3:][truth[3:] == 2] = 255  # a class of few frames
    found = results(*np.where(rng.random(truth.shape) < rng.uniform(0.4, 1, (30, 1, 1)), truth % 3, 1))
    means = []
    for _ in range(400):
        drawn = rng.integers(0, 30, 30)
        means.append(segment.score([found[i] for i in drawn], [truth[i] for i in drawn])["miou"])
    low, high = segment.interval(found, list(truth))
    spread = np.std(means)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=spread)
    assert low < segment.score(found, list(truth))["miou"] < high


def test_nothing_but_void_is_nothing_wrong() -> None:
    assert segment.interval(results([[0, 1]]), [np.full((1, 2), 255, np.uint8)]) == (1.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 12), width=st.integers(1, 12))
def test_runs_there_and_back(seed: int, height: int, width: int) -> None:
    classes = np.random.default_rng(seed).choice([0, 3, 255], (height, width), p=[0.6, 0.3, 0.1]).astype(np.uint8)
    runs = json.loads(json.dumps(segment_metric.to_runs(classes)))
    assert (segment_metric.as_map(runs) == classes).all()
    assert (segment_metric.as_map(classes.tolist()) == classes).all()


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"size": [2, 2], "runs": [[0, 3]]}, "runs of 3 pixels for a map of 2 x 2"),
        ({"size": [1, 2], "runs": [[0, 3], [1, -1]]}, "runs of 2"),
        ([1, 2, 3], r"not \[3\]"),
        ([[0, 256]], "0..255"),
        ([[0, 0, 0]], "for a truth of"),
    ],
)
def test_truths_that_are_no_map_of_that_size_are_refused(truth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment.score(results([[0, 0]]), [truth])


def test_no_results_are_refused() -> None:
    with pytest.raises(ValueError, match="no results"):
        segment.score([], [])


def test_a_letterbox_border_is_no_part_of_the_frame() -> None:
    classes = np.zeros((100, 100), np.uint8)
    classes[25:75, :50] = 1  # the left half of what is not border
    (result,) = results(classes)
    moved = segment.to_frame(result, (0, 0, 200, 100), Resize(mode="letterbox"), (100, 100))
    assert moved.at_xyxy == (0, 0, 200, 100)
    assert moved.classes.shape == (50, 100)
    assert segment.to_json(moved, LABELS) == {"areas": {"Kätzchen": 0.5}}


def test_a_cropped_frame_is_coloured_where_the_network_looked() -> None:
    (result,) = results(np.ones((50, 50), np.uint8))
    moved = segment.to_frame(result, (0, 0, 400, 200), Resize(mode="crop"), (50, 50))
    assert moved.at_xyxy == (100, 0, 300, 200)
    frame = np.full((200, 400, 3), 100, np.uint8)
    out = segment.draw(frame, moved, LABELS, {**PARAMS, "opacity": 1.0})
    assert (frame == 100).all()
    assert (out[150, 100:300] == colour_of(1)).all()
    assert (out[150, :100] == 100).all()
    assert (out[150, 300:] == 100).all()


def test_the_background_is_left_as_it_is_and_colours_are_blended() -> None:
    (result,) = results([[0, 1], [0, 2]])
    out = segment.draw(np.full((40, 40, 3), 100, np.uint8), result, LABELS, {**PARAMS, "opacity": 0.5})
    assert (out[:, :20] == 100).all()
    np.testing.assert_allclose(out[5, 30], (np.array(colour_of(1)) + 100) / 2, atol=1)
    np.testing.assert_allclose(out[35, 30], (np.array(colour_of(2)) + 100) / 2, atol=1)


def test_shares_are_listed_largest_first_and_the_map_only_when_asked_for() -> None:
    classes = [[2, 2], [1, 0]]
    assert segment.to_json(results(classes)[0], LABELS) == {"areas": {"犬": 0.5, "Kätzchen": 0.25}}
    got = segment.to_json(results(classes, runs=True)[0], LABELS)
    assert got["map"] == {"size": [2, 2], "runs": [[2, 2], [1, 1], [0, 1]], "xyxy": None}
    assert answer(got) == "犬 50%, Kätzchen 25%"
    assert answer(segment.to_json(results([[0]])[0], LABELS)) == "nothing"


def test_the_same_answer_differs_in_half_a_percent_of_the_pixels_at_most() -> None:
    base = np.zeros((100, 100), np.uint8)
    few, many = base.copy(), base.copy()
    few[0, :50], many[0, :51] = 1, 1
    one, near, other = results(base, few, many)
    assert segment.same(one, near)
    assert not segment.same(one, other)
    ours, theirs = segment.align({"classes": np.stack([few, many])}, {"classes": np.stack([base, base])})
    assert np.abs(ours["classes"].astype(int) - theirs["classes"]).max(axis=(1, 2)).tolist() == [0, 1]
    assert ours["classes"].dtype == np.uint8


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"roi": 1.0}, "decode.roi"),
        ({"opacity": 2}, "opacity: 2"),
        ({"opacity": True}, "opacity"),
        ({"runs": 1}, "runs"),
    ],
)
def test_parameters_out_of_range_are_refused(params: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        segment.check_params(params, LABELS)


def test_more_labels_than_a_byte_names_are_refused() -> None:
    with pytest.raises(InputError, match="256 are too many"):
        segment.check_params({}, [str(i) for i in range(256)])


def test_outputs_of_another_type_are_told() -> None:
    assert segment.check_outputs({"classes": ("uint8", (-1, 4, 4))}, LABELS) == ""
    assert "int64" in segment.check_outputs({"classes": ("int64", (-1, 4, 4))}, LABELS)
