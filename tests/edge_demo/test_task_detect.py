"""Detection on the device, on arrays made by hand: decoding, frames' pixels, comparison, drawing, JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_demo.boxes import iou, nms
from edge_demo.errors import InputError
from edge_demo.image import place
from edge_demo.manifest import Resize
from edge_demo.render import answer
from edge_demo.tasks import TASKS, detect
from edge_demo.tasks.colours import colour_of

TASK = TASKS["detect"]
LABELS = ("Zelle", "Größe", "細胞")
PARAMS = TASK.check_params({}, LABELS)
A, B, FAR = [10.0, 10, 50, 50], [12.0, 10, 52, 50], [60.0, 60, 90, 90]


def raw(rows: list[tuple[list[float], float, int]], k: int = 6) -> dict[str, Any]:
    """One frame's graph outputs; padding as the contract has it: score 0, boxes of any kind."""
    rows = rows + [([0.0, 0, 1, 1], 0.0, 0)] * (k - len(rows))
    return {
        "boxes": np.array([[row[0] for row in rows]], np.float32),
        "scores": np.array([[row[1] for row in rows]], np.float32),
        "classes": np.array([[row[2] for row in rows]], np.int64),
    }


def decoded(rows: list[tuple[list[float], float, int]], **params: Any) -> detect.Boxes:
    return detect.decode(raw(rows), {**PARAMS, **params})[0]


# --- decode ----------------------------------------------------------------------------------------------------------


def test_all_candidates_are_kept_and_those_above_the_threshold_shown() -> None:
    result = decoded([(A, 0.9, 0), (FAR, 0.2, 1), (B, 0.0005, 1)])
    assert result.scores.tolist() == pytest.approx([0.9, 0.2])
    assert result.shown.tolist() == [True, False]
    assert result.class_ids.tolist() == [0, 1]
    assert [box["label"] for box in detect.to_json(result, LABELS)["boxes"]] == ["Zelle"]


def test_nms_is_within_a_class_and_can_be_off() -> None:
    rows = [(A, 0.9, 0), (B, 0.8, 0), (B, 0.7, 1)]  # A and B overlap by 38 / 42 = 0.905
    assert decoded(rows).scores.tolist() == pytest.approx([0.9, 0.7])
    assert decoded(rows, nms_iou=0.91).scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert decoded(rows, nms_iou=1.0).scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert decoded(rows, nms_iou=1.0, max_boxes=2).scores.tolist() == pytest.approx([0.9, 0.8])


def test_rows_need_not_be_in_order() -> None:
    assert decoded([(A, 0.4, 0), (FAR, 0.9, 1)]).class_ids.tolist() == [1, 0]


@st.composite
def some_boxes(draw: st.DrawFn, most: int = 25) -> tuple[Any, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, most))
    low = rng.integers(0, 30, (count, 2))
    boxes = np.concatenate([low, low + rng.integers(0, 30, (count, 2))], axis=1).astype(np.float32)
    return boxes, rng.integers(0, 3, count)


def one_iou(a: Any, b: Any) -> float:
    """By counting unit squares, for whole numbers."""

    def cells(box: Any) -> set[tuple[int, int]]:
        return {(x, y) for x in range(int(box[0]), int(box[2])) for y in range(int(box[1]), int(box[3]))}

    both, either = len(cells(a) & cells(b)), len(cells(a) | cells(b))
    return both / either if either else 0.0


@settings(max_examples=15, deadline=None)
@given(boxes=some_boxes(8))
def test_iou_counts_unit_squares(boxes: Any) -> None:
    got = iou(boxes[0], boxes[0])
    want = [[one_iou(a, b) for b in boxes[0]] for a in boxes[0]]
    np.testing.assert_allclose(got, np.array(want).reshape(got.shape), atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(boxes=some_boxes(), limit=st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_nms_equals_the_plain_loop(boxes: Any, limit: float) -> None:
    xyxy, ids = boxes
    overlap = iou(xyxy, xyxy)
    kept: list[int] = []
    for index in range(len(xyxy)):
        if not any(ids[index] == ids[k] and overlap[k, index] > limit for k in kept):
            kept.append(index)
    assert nms(xyxy, ids, limit).tolist() == kept


# --- frame pixels ----------------------------------------------------------------------------------------------------


def test_boxes_come_back_from_a_letterbox_by_hand() -> None:
    # 200 x 100 into 100 x 100: half size, 25 px border above
    result = decoded([([10.0, 35, 20, 45], 0.9, 0)])
    moved = detect.to_frame(result, (0, 0, 200, 100), Resize(mode="letterbox"), (100, 100))
    assert moved.xyxy.tolist() == [[20, 20, 40, 40]]


def test_boxes_are_clipped_to_the_region_and_those_in_the_border_left_out() -> None:
    result = decoded([([-10.0, 20, 20, 45], 0.9, 0), ([10.0, 2, 20, 20], 0.8, 1)])
    moved = detect.to_frame(result, (5, 7, 205, 107), Resize(mode="letterbox"), (100, 100))
    assert moved.xyxy.tolist() == [[5, 7, 45, 47]]
    assert moved.class_ids.tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(
    wh=st.tuples(st.integers(20, 900), st.integers(20, 900)), mode=st.sampled_from(["stretch", "letterbox", "crop"]),
    box=st.tuples(*[st.floats(0.05, 0.95)] * 4),
)  # fmt: skip
def test_there_and_back(wh: tuple[int, int], mode: Any, box: tuple[float, ...]) -> None:
    geometry = place(wh, (320, 256), mode)
    x0, y0, x1, y1 = geometry.source_xyxy
    xs = np.array([min(box[0], box[2]), max(box[0], box[2]) + 0.04]) * (x1 - x0) + x0
    ys = np.array([min(box[1], box[3]), max(box[1], box[3]) + 0.04]) * (y1 - y0) + y0
    frame_box = np.array([[xs[0], ys[0], xs[1], ys[1]]])
    network = geometry.to_network(frame_box).astype(np.float32)
    result = detect.Boxes(network, np.ones(1, np.float32), np.zeros(1, np.int64), np.ones(1, bool), 0.3)
    moved = detect.to_frame(result, (0, 0, *wh), Resize(mode=mode), (320, 256))
    np.testing.assert_allclose(moved.xyxy, frame_box, atol=1e-3 * max(wh))


# --- quality and agreement -------------------------------------------------------------------------------------------


def test_quality_of_a_frame_is_the_f1_of_what_it_shows() -> None:
    truth = {"boxes": [A, FAR], "classes": [0, 1]}
    shown_one = decoded([(A, 0.9, 0), (FAR, 0.1, 1)])  # 2 * 1 / (1 + 2)
    wrong_too = decoded([(A, 0.9, 0), (FAR, 0.9, 0)])  # 2 * 1 / (2 + 2)
    empty = {"boxes": [], "classes": [], "crowd": []}
    got = detect.correct(
        [shown_one, wrong_too, decoded([]), decoded([]), decoded([(A, 0.9, 0)])], [truth, truth, empty, truth, empty]
    )
    np.testing.assert_allclose(got, [2 / 3, 1 / 2, 1, 0, 0])


def test_score_is_about_all_candidates() -> None:
    truth = {"boxes": [A, FAR], "classes": [0, 0]}
    got = detect.score([decoded([(A, 0.9, 0), (FAR, 0.1, 0)])], [truth])
    assert got == pytest.approx({"map50_95": 1.0, "map50": 1.0})
    with pytest.raises(ValueError, match="no results"):
        detect.score([], [])


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        ([(A, 0.8, 0), (FAR, 0.35, 1)], True),
        ([(FAR, 0.9, 1), (A, 0.5, 0)], True),
        ([(A, 0.8, 0), (FAR, 0.27, 1)], True),  # just below the threshold
        ([(A, 0.8, 0), (FAR, 0.2, 1)], False),
        ([(A, 0.8, 0), (FAR, 0.9, 2)], False),
        ([(A, 0.8, 0)], False),
        ([(A, 0.8, 0), ([60.0, 60, 86, 90], 0.9, 1)], False),  # IoU 26 / 30
        ([(A, 0.8, 0), ([60.0, 60, 88, 90], 0.9, 1)], True),  # IoU 28 / 30
        ([(A, 0.8, 0), (FAR, 0.35, 1), ([0.0, 0, 5, 5], 0.1, 2)], True),
    ],
)
def test_the_same_answer_has_the_same_shown_boxes(other: Any, alike: bool) -> None:
    mine = decoded([(A, 0.9, 0), (FAR, 0.31, 1)])
    assert detect.same(mine, decoded(other)) is alike
    assert detect.same(decoded(other), mine) is alike


BESIDE = [A[0], A[1] + 0.2 * (A[3] - A[1]), A[2], A[3] + 0.2 * (A[3] - A[1])]
"""A box of the size of A that overlaps two thirds of it."""


def largest(got: Any, want: Any) -> dict[str, float]:
    ours, theirs = detect.align(got, want)
    return {name: float(np.abs(ours[name].astype(float) - theirs[name]).max()) for name in detect.OUTPUTS}


def test_equal_scores_that_changed_places_are_no_difference() -> None:
    got, want = raw([(A, 0.5, 0), (FAR, 0.5, 1)]), raw([(FAR, 0.5, 1), (A, 0.5, 0)])
    assert largest(got, want) == {"boxes": 0, "scores": 0, "classes": 0}


def test_other_padding_and_a_last_candidate_that_came_matter_as_much_as_their_score() -> None:
    want, got = raw([(A, 0.9, 0)]), raw([(A, 0.9, 0), (FAR, 0.02, 1)])
    got["boxes"][0, 2:] = 77
    assert largest(got, want) == {"boxes": 0, "scores": pytest.approx(0.02), "classes": 0}
    assert largest(want, got) == {"boxes": 0, "scores": pytest.approx(0.02), "classes": 0}


def test_a_moved_box_and_a_lost_one_are_differences() -> None:
    assert largest(raw([(B, 0.9, 0)]), raw([(A, 0.9, 0)]))["boxes"] == 2
    assert largest(raw([(A, 0.9, 1)]), raw([(A, 0.9, 0)]))["scores"] == pytest.approx(0.9)
    assert largest(raw([]), raw([(A, 0.9, 0)]))["scores"] == pytest.approx(0.9)


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"roi": 0.5}, "decode.roi: unknown"),
        ({"score_threshold": 1.5}, "score_threshold: 1.5 is not in"),
        ({"score_threshold": True}, "score_threshold"),
        ({"nms_iou": 0}, "nms_iou: 0 is not in"),
        ({"max_boxes": 0}, "max_boxes: 0"),
        ({"max_boxes": 2.5}, "max_boxes: 2.5"),
    ],
)
def test_parameters_out_of_range_are_refused(params: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detect.check_params(params, LABELS)


def test_the_threshold_can_be_moved_by_a_viewer() -> None:
    assert TASK.adjustable == ("score_threshold",)
    assert detect.check_params({"score_threshold": 0}, LABELS)["score_threshold"] == 0.0


def test_outputs_of_another_type_or_shape_are_told() -> None:
    good = {"boxes": ("float32", (-1, 9, 4)), "scores": ("float32", (-1, 9)), "classes": ("int64", (-1, 9))}
    assert detect.check_outputs(good, LABELS) == ""
    assert "int32, not int64" in detect.check_outputs({**good, "classes": ("int32", (-1, 9))}, LABELS)
    assert "do not go together" in detect.check_outputs({**good, "boxes": ("float32", (-1, 8, 4))}, LABELS)


# --- what people see -------------------------------------------------------------------------------------------------


def test_json_counts_and_lists_the_shown_boxes() -> None:
    got = detect.to_json(decoded([(A, 0.9, 1), (FAR, 0.8, 1), (B, 0.5, 0), (B, 0.1, 2)]), LABELS)
    assert json.loads(json.dumps(got, allow_nan=False))["counts"] == {"Größe": 2, "Zelle": 1}
    assert got["boxes"][0] == {"label": "Größe", "class_id": 1, "score": 0.9, "xyxy": A}
    assert answer(got) == "2 Größe, 1 Zelle"
    assert answer(detect.to_json(decoded([]), LABELS)) == "nothing"


def test_drawing_leaves_the_frame_alone_and_uses_the_colour_of_the_class() -> None:
    frame = np.full((480, 640, 3), 90, np.uint8)
    result = decoded([([100.0, 100, 300, 300], 0.9, 1), ([400.0, 100, 500, 200], 0.1, 2)])
    out = detect.draw(frame, result, LABELS, PARAMS)
    assert (frame == 90).all()
    assert out[200, 100].tolist() == list(colour_of(1))
    assert (out[95:205, 395:505] == 90).all()  # not shown
    assert detect.draw(frame, decoded([]), LABELS, PARAMS).tobytes() == frame.tobytes()


def test_drawing_at_the_edges_and_on_small_frames() -> None:
    rows = [([-5.0, -5, 700, 3], 0.9, 0), ([630.0, 470, 640, 480], 0.8, 2), ([0.0, 0, 0.2, 0.2], 0.7, 1)]
    for size in ((480, 640, 3), (28, 28, 3)):
        assert detect.draw(np.zeros(size, np.uint8), decoded(rows), LABELS, PARAMS).shape == size


def test_neighbouring_classes_have_colours_far_apart() -> None:
    colours = np.array([colour_of(i) for i in range(24)], float)
    apart = np.abs(colours[:, None] - colours).max(axis=2) + 1000 * np.eye(24)
    assert apart.min() >= 40
    assert min(np.abs(colours[i] - colours[i + 1]).max() for i in range(23)) >= 90


def test_a_candidate_that_the_other_side_cut_off_is_no_difference() -> None:
    """Of K = 3 candidates here the last is another one than there, with the same score."""
    boxes = np.array([[[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]]], np.float32)
    want = {"boxes": boxes, "scores": np.array([[0.02, 0.01, 0.01]], np.float32), "classes": np.zeros((1, 3), np.int64)}
    got = {**want, "boxes": boxes.copy()}
    got["boxes"][0, 2] = (60, 0, 69, 9)
    ours, theirs = TASKS["detect"].align(got, want)
    for name in want:
        np.testing.assert_array_equal(ours[name], theirs[name])
    surer = {**got, "scores": np.array([[0.02, 0.01, 0.5]], np.float32)}
    ours, theirs = TASKS["detect"].align(surer, want)
    assert float(np.abs(ours["scores"] - theirs["scores"]).max()) == pytest.approx(0.49)


@pytest.mark.parametrize(
    ("twin", "is_alike"),
    [
        ((BESIDE, 0.4, 0), True),
        ((BESIDE, 0.3999, 0), False),  # a peak of its own
        ((BESIDE, 0.4, 1), False),
        ((FAR, 0.4, 0), False),
    ],
)
def test_one_peak_or_two_where_neighbours_score_alike(twin: Any, is_alike: bool) -> None:
    one, two = raw([(A, 0.4, 0)]), raw([(A, 0.4, 0), twin])
    for got, want in ((one, two), (two, one)):
        assert (largest(got, want)["scores"] == 0) is is_alike


def test_another_one_of_two_peaks_that_score_alike_is_no_difference_unless_many_are() -> None:
    """Two cells for one thing with one score but for rounding: chance says which one is the peak."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 600, (1000, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 60, (1000, 2))], axis=1).astype(np.float32)
    want = {
        "boxes": boxes.reshape(10, 100, 4),
        "scores": rng.uniform(0.01, 1, (10, 100)).astype(np.float32),
        "classes": np.arange(1000).reshape(10, 100) % 100,
    }

    def moved(count: int, by: float, surer: float = 0.0, larger: float = 1.0) -> dict[str, float]:
        got = {name: values.copy() for name, values in want.items()}
        first = got["boxes"].reshape(-1, 4)[:count]
        sides = first[:, 2:] - first[:, :2]
        first[:, 1::2] += by * sides[:, 1:]
        first[:, 2:] += (larger - 1) * sides
        got["scores"].ravel()[:count] += surer
        return largest(got, want)

    assert moved(1, 0.2) == {"boxes": 0, "scores": 0, "classes": 0}
    assert moved(2, 0.2)["boxes"] > 4  # more than one in a thousand
    assert moved(1000, 0.2)["boxes"] > 4
    assert moved(1, 0.05)["boxes"] > 1  # less than a cell
    assert moved(1, 0.2, surer=1e-4)["boxes"] > 4
    assert moved(1, 0.2, larger=1.15)["boxes"] > 4
