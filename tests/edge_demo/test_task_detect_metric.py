"""Average precision against pycocotools, on random sets and on cases worked by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_demo.tasks import detect_metric

NONE: tuple[Any, Any, Any] = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


def coco_dataset(found: Any, truths: Any, classes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same in COCO's own form; every annotation has an id from 1 on, as pycocotools needs."""

    def xywh(box: Any) -> list[float]:
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    annotations = [
        {"id": 0, "image_id": image, "category_id": int(c), "bbox": xywh(box), "iscrowd": int(crowd),
         "area": float((box[2] - box[0]) * (box[3] - box[1]))}
        for image, truth in enumerate(truths)
        for box, c, crowd in zip(truth["boxes"], truth["classes"], truth.get("crowd", [0] * len(truth["boxes"])),
                                 strict=True)
    ]  # fmt: skip
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    dataset = {
        "info": {},
        "images": [{"id": i, "width": 100, "height": 100} for i in range(len(truths))],
        "categories": [{"id": c, "name": str(c)} for c in range(classes)],
        "annotations": annotations,
    }
    results = [
        {"image_id": image, "category_id": int(c), "bbox": xywh(box), "score": float(score)}
        for image, (boxes, scores, ids) in enumerate(found)
        for box, score, c in zip(boxes, scores, ids, strict=True)
    ]
    return dataset, results


def pycocotools(found: Any, truths: Any, classes: int) -> Any:
    """(10, 101, classes) precision, -1 for classes without a true box."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset, results = coco_dataset(found, truths, classes)
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO()
        true.dataset = dataset
        true.createIndex()
        evaluation = COCOeval(true, true.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 2]


def agrees(found: Any, truths: Any, classes: int) -> None:
    expected = pycocotools(found, truths, classes)
    curves = detect_metric.curves(found, truths)
    present = np.flatnonzero((expected > -1).all(axis=(0, 1)))
    assert curves.class_ids.tolist() == present.tolist()
    np.testing.assert_allclose(curves.precision, expected[:, :, present], atol=1e-9)
    if len(present):
        got = detect_metric.mean_ap(curves)
        assert got["map50_95"] == pytest.approx(expected[expected > -1].mean(), abs=1e-6)
        assert got["map50"] == pytest.approx(expected[0][expected[0] > -1].mean(), abs=1e-6)


def random_set(rng: np.random.Generator, images: int, classes: int, most: int, *, whole: bool) -> tuple[Any, Any]:
    """Boxes near the true ones and elsewhere; `whole` numbers and few scores make ties of IoU and score common."""
    found, truths = [], []
    for _ in range(images):
        count = int(rng.integers(0, most))
        low = rng.uniform(0, 60, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(2, 40, (count, 2))], axis=1)
        ids = rng.integers(0, classes, count)
        near = np.repeat(boxes, 2, axis=0) + rng.normal(0, 1.5, (2 * count, 4))
        low = rng.uniform(0, 60, (3, 2))
        boxes_found = np.concatenate([near, np.concatenate([low, low + rng.uniform(2, 40, (3, 2))], axis=1)])
        ids_found = np.concatenate([np.repeat(ids, 2), rng.integers(0, classes, 3)])
        scores = rng.uniform(0.01, 1, len(ids_found))
        if whole:
            boxes, boxes_found, scores = np.round(boxes), np.round(boxes_found), np.round(scores, 1)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
            boxes_found[:, 2:] = np.maximum(boxes_found[:, 2:], boxes_found[:, :2] + 1)
        truths.append({"boxes": boxes, "classes": ids, "crowd": rng.random(count) < 0.15})
        boxes_found[:, 2:] = np.maximum(boxes_found[:, 2:], boxes_found[:, :2])
        found.append((boxes_found, scores, ids_found))
    return found, truths


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 6), classes=st.integers(1, 4), whole=st.booleans())
def test_random_sets_agree_with_pycocotools(seed: int, images: int, classes: int, whole: bool) -> None:
    found, truths = random_set(np.random.default_rng(seed), images, classes, 7, whole=whole)
    agrees(found, truths, classes)


def test_more_boxes_than_count_agree_with_pycocotools() -> None:
    rng = np.random.default_rng(3)
    found, truths = random_set(rng, 3, 1, 120, whole=True)
    assert max(len(scores) for _, scores, _ in found) > detect_metric.MAX_PER_CLASS
    agrees(found, truths, 1)


BOX = [10, 10, 20, 20]


def test_one_box_found_is_one() -> None:
    got = detect_metric.curves([([BOX], [0.4], [0])], [{"boxes": [BOX], "classes": [0]}])
    assert detect_metric.mean_ap(got) == {"map50_95": 1.0, "map50": 1.0}
    assert got.counts.tolist() == [1]


def test_an_iou_of_exactly_a_level_counts_there() -> None:
    # 10 x 8 inside 10 x 10: IoU 0.8, so 7 of the ten levels (.50 to .80)
    got = detect_metric.curves([([[10, 10, 20, 18]], [0.9], [0])], [{"boxes": [BOX], "classes": [0]}])
    assert got.ap()[:, 0].tolist() == [1.0] * 7 + [0.0] * 3


def test_a_wrong_box_before_the_right_one_halves_the_precision() -> None:
    found = [([[50, 50, 60, 60], BOX], [0.9, 0.8], [0, 0])]
    assert detect_metric.mean_ap(detect_metric.curves(found, [{"boxes": [BOX], "classes": [0]}]))[
        "map50"
    ] == pytest.approx(0.5)


def test_boxes_inside_a_crowd_count_for_nothing() -> None:
    truth = {"boxes": [BOX, [40, 40, 90, 90]], "classes": [0, 0], "crowd": [False, True]}
    inside = [[45, 45, 50, 50], [60, 60, 70, 70]]
    found = [([*inside, BOX], [0.9, 0.8, 0.7], [0, 0, 0])]
    assert detect_metric.mean_ap(detect_metric.curves(found, [truth])) == {"map50_95": 1.0, "map50": 1.0}
    agrees([(np.array([*inside, BOX]), [0.9, 0.8, 0.7], [0, 0, 0])], [{k: np.array(v) for k, v in truth.items()}], 1)


def test_an_image_without_true_boxes_punishes_what_is_found_there() -> None:
    truths = [{"boxes": [BOX], "classes": [0]}, {"boxes": [], "classes": []}]
    wrong = ([BOX], [0.9], [0])
    alone = detect_metric.mean_ap(detect_metric.curves([([BOX], [0.5], [0]), NONE], truths))
    both = detect_metric.mean_ap(detect_metric.curves([([BOX], [0.5], [0]), wrong], truths))
    assert (alone["map50"], both["map50"]) == (1.0, pytest.approx(0.5))


def test_a_class_without_a_true_box_is_no_part_of_the_mean() -> None:
    found = [([BOX, [1, 1, 5, 5]], [0.9, 0.95], [0, 7])]
    assert detect_metric.mean_ap(detect_metric.curves(found, [{"boxes": [BOX], "classes": [0]}]))["map50"] == 1.0


def test_no_true_box_at_all_is_zero() -> None:
    assert detect_metric.mean_ap(detect_metric.curves([([BOX], [0.9], [0])], [{"boxes": [], "classes": []}])) == {
        "map50_95": 0.0,
        "map50": 0.0,
    }
    assert detect_metric.mean_ap(detect_metric.curves([NONE], [{"boxes": [BOX], "classes": [0]}]))["map50"] == 0.0


def test_a_truth_with_a_class_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="truth 0"):
        detect_metric.flat_truths([{"boxes": [BOX], "classes": []}])


@pytest.mark.slow
def test_five_thousand_images_agree_with_faster_coco_eval() -> None:
    from faster_coco_eval import COCO, COCOeval_faster

    found, truths = random_set(np.random.default_rng(0), 5000, 20, 14, whole=False)
    dataset, results = coco_dataset(found, truths, 20)
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO(dataset)
        evaluation = COCOeval_faster(true, true.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    theirs = evaluation.eval["precision"][:, :, :, 0, 2].mean()
    assert detect_metric.mean_ap(detect_metric.curves(found, truths))["map50_95"] == pytest.approx(theirs, abs=1e-6)


def test_images_that_count_several_times_are_as_images_that_are_there_several_times() -> None:
    """The bootstrap's way of counting, against the plain way on a list of repeated images."""
    rng = np.random.default_rng(4)
    found, truths = [], []
    for _ in range(30):
        corners = rng.uniform(0, 60, (rng.integers(0, 6), 2))
        boxes = np.concatenate([corners, corners + rng.uniform(10, 30, corners.shape)], axis=1)
        truths.append({"boxes": boxes, "classes": rng.integers(0, 3, len(boxes))})
        guesses = np.concatenate([boxes + rng.normal(0, 2, boxes.shape), boxes[:2] + 40])
        found.append((guesses, rng.random(len(guesses)), rng.integers(0, 3, len(guesses))))
    flat = detect_metric.flat_truths(truths)
    matches = detect_metric.match(found, flat)
    for _ in range(5):
        times = np.bincount(rng.integers(0, 30, 30), minlength=30)
        picked = np.repeat(np.arange(30), times)
        expected = detect_metric.curves([found[i] for i in picked], [truths[i] for i in picked])
        got = detect_metric.curves_of(matches, flat, times)
        assert got.counts.tolist() == expected.counts.tolist()
        np.testing.assert_allclose(got.precision, expected.precision, atol=1e-12)
    low, high = detect_metric.map_interval(found, truths)
    value = detect_metric.mean_ap(detect_metric.curves(found, truths))["map50_95"]
    assert low < value < high
    assert (high - value) == pytest.approx(value - low)
