"""The detection metric's speed: `python benchmarks/detect_metric.py [--images N] [--rounds R] [--out FILE.json]`.

Mean average precision of random boxes in N images, ours against faster-coco-eval (C++), in turn: CPU seconds, their
ratio within each round, and that both say the same.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np

from edge_demo.tasks import detect_metric

CLASSES = 20
MOST = 14  # true boxes of one image


def random_set(rng: np.random.Generator, images: int) -> tuple[list[Any], list[Any]]:
    """Per image true boxes, and found ones: two near each true one, three elsewhere. xyxy in pixels."""
    found, truths = [], []
    for _ in range(images):
        count = int(rng.integers(0, MOST))
        low = rng.uniform(0, 60, (count + 3, 2))
        boxes = np.concatenate([low, low + rng.uniform(2, 40, low.shape)], axis=1)
        ids = rng.integers(0, CLASSES, count + 3)
        near = np.repeat(boxes[:count], 2, axis=0) + rng.normal(0, 1.5, (2 * count, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
        truths.append({"boxes": boxes[:count], "classes": ids[:count]})
        ids_found = np.concatenate([np.repeat(ids[:count], 2), ids[count:]])
        found.append((np.concatenate([near, boxes[count:]]), rng.uniform(0.01, 1, len(ids_found)), ids_found))
    return found, truths


def in_coco_form(found: list[Any], truths: list[Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and results as COCO writes them: xywh, ids from 1."""

    def xywh(box: Any) -> list[float]:
        x, y, right, low = (float(value) for value in box)
        return [x, y, right - x, low - y]

    annotations = [
        {"image_id": image, "category_id": int(label), "bbox": xywh(box), "iscrowd": 0}
        for image, truth in enumerate(truths)
        for box, label in zip(truth["boxes"], truth["classes"], strict=True)
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation |= {"id": number, "area": annotation["bbox"][2] * annotation["bbox"][3]}
    results = [
        {"image_id": image, "category_id": int(label), "bbox": xywh(box), "score": float(score)}
        for image, row in enumerate(found)
        for box, score, label in zip(*row, strict=True)
    ]
    images = [{"id": image, "width": 100, "height": 100} for image in range(len(truths))]
    categories = [{"id": label, "name": str(label)} for label in range(CLASSES)]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}, results


def main() -> None:
    """Measure in turn, print, write."""
    from faster_coco_eval import COCO, COCOeval_faster

    parser = common.parser(__doc__ or "")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    document = common.begin("detect_metric")
    found, truths = random_set(np.random.default_rng(0), options.images)
    dataset, results = in_coco_form(found, truths)

    def theirs() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            true = COCO(dataset)
            evaluation = COCOeval_faster(true, true.loadRes(results), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, 2]
        return float(precision[precision > -1].mean())

    def ours() -> float:
        return detect_metric.mean_ap(detect_metric.curves(found, truths))["map50_95"]

    calls: dict[str, Callable[[], float]] = {"ours": ours, "faster-coco-eval": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    values: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, call in calls.items():
            start = time.process_time()
            values[name] = call()
            seconds[name].append(time.process_time() - start)
    ratios = [mine / other for mine, other in zip(*seconds.values(), strict=True)]
    document |= {"images": options.images, "cpu_seconds": seconds, "map50_95": values, "ratios": ratios}
    rows = [[name, common.spread(seconds[name]), f"{values[name]:.6f}"] for name in calls]
    note = f"Ours takes {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] of their CPU time."
    head = [f"{options.images:,} images, n = {options.rounds}", "CPU s", "mAP50-95"]
    common.end(document, [common.table(head, rows), note], options.out)


if __name__ == "__main__":
    main()
