"""COCO json: boxes, polygons, run lengths and crowds against pycocotools; every trouble by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_demo.errors import InputError
from stages.arrays import load_boxes, load_flat_boxes, load_masks
from stages.data import run
from stages.data.annotated import VOID, Unusable
from stages.data.check import check
from stages.data.coco import instance_mask
from stages.data.masks import polygon_mask, rle_mask
from stages.spec import DataConfig

coco_masks = pytest.importorskip("pycocotools.mask")
REAL = Path(os.environ.get("PIPELINE_DATA", "/nowhere"))
WIDTH, HEIGHT = 48, 32
CATEGORIES = [{"id": 90, "name": "brush"}, {"id": 1, "name": "person"}, {"id": 7, "name": "train"}]


def annotation(category: int, **changes: Any) -> dict[str, Any]:
    left = {1: 0, 7: 16, 90: 32}.get(category, 40)  # beside each other, so that none hides another
    square = [left, 8.0, left + 8, 8.0, left + 8, 24.0, left, 24.0]
    return {"category_id": category, "bbox": [8, 8, 16, 16], "segmentation": [square], "iscrowd": 0} | changes


ALL = [annotation(1), annotation(7), annotation(90)]


def write(root: Path, split: str, pictures: list[list[dict[str, Any]]], **changes: Any) -> None:
    folder = root / f"{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for at, found in enumerate(pictures):
        pixels = np.random.default_rng([at, len(split), ord(split[1])]).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{at}.png"), pixels)
        images.append({"id": 100 + at, "file_name": f"{at}.png", "width": WIDTH, "height": HEIGHT})
        annotations += [{"image_id": 100 + at, "id": len(annotations) + i} | one for i, one in enumerate(found)]
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES} | changes
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))


def own(root: Path, first: list[dict[str, Any]]) -> Path:
    for split in ("train", "val", "test"):
        write(root, split, [first if split == "train" else ALL, ALL])
    return root


def config(root: Path, **changes: object) -> DataConfig:
    values = {"name": "coco", "task": "detect", "path": str(root), "size_wh": (WIDTH, HEIGHT), "colour": "rgb"}
    return DataConfig.model_validate(values | changes)


def test_categories_with_gaps_crowds_and_empty_pictures(tmp_path: Path) -> None:
    crowd = annotation(90, iscrowd=1, bbox=[0, 0, 48, 32])
    write(tmp_path, "train", [[crowd, annotation(1)], [], ALL])
    write(tmp_path, "val", [ALL])
    write(tmp_path, "test", [ALL])
    (tmp_path / "out").mkdir()
    result = run(config(tmp_path), out_dir=tmp_path / "out")
    assert result.labels == ("person", "train", "brush")
    first, empty, _ = load_boxes(result, "train")
    assert first == {"boxes": [[0, 0, 48, 32], [8, 8, 24, 24]], "classes": [2, 0], "crowd": [True, False]}
    assert empty == {"boxes": [], "classes": [], "crowd": []}
    assert load_flat_boxes(result, "train").frames == 3
    assert result.dropped == {}


def test_masks_are_painted_small_on_large_and_crowds_are_void(tmp_path: Path) -> None:
    large = annotation(1, segmentation=[[0, 0, 48, 0, 48, 16, 0, 16]])
    small = annotation(7, segmentation=[[4, 4, 8, 4, 8, 8, 4, 8]])
    everywhere = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    own(tmp_path, [small, large, annotation(90, segmentation=everywhere, iscrowd=1)])
    (tmp_path / "out").mkdir()
    result = run(config(tmp_path, task="segment"), out_dir=tmp_path / "out")
    mask = load_masks(result, "train")[0]
    assert result.labels == ("background", "person", "train", "brush")
    assert (mask[16:] == VOID).all()
    assert (mask[4:8, 4:8] == 2).all()
    assert (mask[:16] != 1).sum() == 16


@pytest.mark.parametrize(
    ("bad", "task", "what"),
    [
        (annotation(1, bbox=[8, 8, 0, 5]), "detect", "box without area"),
        (annotation(1, bbox=[8, 8]), "detect", "box with a coordinate that is no number"),
        (annotation(1, bbox=[100, 8, 5, 5]), "detect", "box outside its picture"),
        (annotation(5), "detect", "box of an unknown class"),
        (annotation(5), "segment", "mask of an unknown class (left out)"),
        (annotation(1, segmentation=[[1, 1, 5, 5]]), "segment", "polygon of fewer than three points (left out)"),
        (annotation(1, segmentation=[]), "segment", "annotation without polygon or RLE (left out)"),
        (
            annotation(1, segmentation={"size": [HEIGHT, WIDTH], "counts": [5, 5]}),
            "segment",
            "RLE of another length than its picture (left out)",
        ),
        (
            annotation(1, segmentation={"size": [9, 9], "counts": [81]}),
            "segment",
            "RLE of another size than its picture (left out)",
        ),
    ],
)
def test_each_trouble_is_named_and_counted(tmp_path: Path, bad: dict[str, Any], task: str, what: str) -> None:
    own(tmp_path, [*ALL, bad])
    (tmp_path / "out").mkdir()
    assert run(config(tmp_path, task=task), out_dir=tmp_path / "out").dropped == {what: 1}
    assert check(config(tmp_path, task=task)).left_out == {what: 1}
    with pytest.raises(InputError, match=r"data\.strict: 1 x"):
        run(config(tmp_path, task=task, strict=True), out_dir=tmp_path / "out")


def test_pictures_without_a_file_and_sizes_that_disagree(tmp_path: Path) -> None:
    own(tmp_path, ALL)
    file = tmp_path / "annotations/instances_train2017.json"
    document = json.loads(file.read_text())
    document["images"][0]["width"] = 999
    document["images"].append({"id": 1, "file_name": "gone.png", "width": WIDTH, "height": HEIGHT})
    document["annotations"].append(annotation(1, image_id=55))
    file.write_text(json.dumps(document))
    (tmp_path / "out").mkdir()
    assert run(config(tmp_path), out_dir=tmp_path / "out").dropped == {
        "listed picture without a file": 1,
        "annotation of a picture that is not listed": 1,
        "annotation of another size than its picture (left out)": 1,
    }


def test_splits_of_other_categories_are_refused(tmp_path: Path) -> None:
    own(tmp_path, ALL)
    write(tmp_path, "val", [ALL], categories=CATEGORIES[:2])
    with pytest.raises(InputError, match="other categories"):
        run(config(tmp_path), out_dir=tmp_path)


def test_a_broken_json_is_an_error_that_names_it(tmp_path: Path) -> None:
    own(tmp_path, ALL)
    (tmp_path / "annotations/instances_val2017.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"instances_val2017\.json: cannot be read as JSON"):
        run(config(tmp_path), out_dir=tmp_path)


@given(bits=st.lists(st.booleans(), min_size=1, max_size=400), height=st.integers(1, 12))
@settings(max_examples=120, deadline=None)
def test_run_lengths_are_those_of_pycocotools(bits: list[bool], height: int) -> None:
    width = -(-len(bits) // height)
    mask = np.resize(np.array(bits), (height, width))
    encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (rle_mask(encoded["counts"].decode(), (width, height)) == mask).all()
    flat = mask.T.ravel().astype(np.int8)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    runs = np.diff([0, *changes, flat.size]).tolist()
    assert (rle_mask(runs, (width, height)) == mask).all()


def test_damaged_run_lengths() -> None:
    for counts in ([5, -1, 2], "\x7f", "P", [7]):
        with pytest.raises(Unusable, match="RLE"):
            rle_mask(counts, (3, 2))


@given(
    points=st.lists(st.tuples(st.floats(-10, 90), st.floats(-10, 70)), min_size=3, max_size=8),
)
@settings(max_examples=100, deadline=None)
def test_a_polygon_holds_the_pixels_whose_centres_are_inside(points: list[tuple[float, float]]) -> None:
    """Against the even-odd rule, pixel by pixel."""
    xy = np.array(points)
    mask = polygon_mask(xy, (20, 16))
    ends = np.roll(xy, -1, axis=0)
    for row in range(0, 16, 3):
        for column in range(0, 20, 3):
            x, y = column + 0.5, row + 0.5
            crossings = [
                x0 + (y - y0) * (x1 - x0) / (y1 - y0)
                for (x0, y0), (x1, y1) in zip(xy, ends, strict=True)
                if (y0 <= y) != (y1 <= y)
            ]
            if all(abs(cross - x) > 1e-6 for cross in crossings) and all(abs(py - y) > 1e-6 for _, py in points):
                assert mask[row, column] == (sum(cross > x for cross in crossings) % 2 == 1)


@pytest.mark.skipif(not (REAL / "coco-mini").is_dir(), reason="PIPELINE_DATA has no coco-mini")
# https://numpy.org/devdocs/numpy_2_0_migration_guide.html: pycocotools 2.0.11 has the older signature
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_mask_of_coco_mini_is_that_of_pycocotools() -> None:
    document = json.loads((REAL / "coco-mini/annotations/instances_train2017.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in document["images"]}
    overlaps: list[float] = []
    for one in document["annotations"]:
        width, height = sizes[one["image_id"]]
        mine, found = instance_mask(one["segmentation"], (width, height)), one["segmentation"]
        if isinstance(found, list):
            rle = coco_masks.merge(coco_masks.frPyObjects(found, height, width))
        else:
            rle = coco_masks.frPyObjects(found, height, width)
        theirs = coco_masks.decode(rle).astype(bool)
        if one["iscrowd"]:
            assert (mine == theirs).all()
        elif theirs.sum() >= 500:
            overlaps.append((mine & theirs).sum() / (mine | theirs).sum())
            assert abs(mine.sum() - one["area"]) <= max(8, 0.03 * one["area"])
    # pycocotools rounds the outline to a fifth of a pixel, so the border may differ, and nothing else.
    assert np.mean(overlaps) > 0.98
    assert min(overlaps) > 0.9


@pytest.mark.skipif(not (REAL / "coco-mini").is_dir(), reason="PIPELINE_DATA has no coco-mini")
def test_coco_mini_as_it_is(tmp_path: Path) -> None:
    result = run(config(REAL / "coco-mini", size_wh=(64, 64)), out_dir=tmp_path)
    assert result.counts["val"] == 79
    assert result.counts["train"] + result.counts["test"] == 80
    boxes = [load_flat_boxes(result, split) for split in ("train", "val", "test")]
    assert sum(len(part.classes) for part in boxes) == 739 + 624
    assert sum(int((part.flags & 1).sum()) for part in boxes) == 13
