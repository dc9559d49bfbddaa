"""COCO JSON: `annotations/instances_{train,val,test}*.json` beside folders of pictures, or one file for all.

Source: COCO data format (cocodataset.org), "Object Detection".
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from stages.data.annotated import CROWD, VOID, Annotated, Boxes, Item, Problems, SizeWh, Unusable, boxes_of
from stages.data.folder import PICTURES
from stages.data.masks import polygon_mask, rle_mask
from stages.spec import Split

SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
"""Split -> the words files and folders call it by."""
PATTERNS = ("annotations/instances_{0}*.json", "annotations/{0}.json", "{0}/_annotations.coco.json", "{0}.json")
WHOLE = ("annotations/instances*.json", "annotations.json", "instances.json", "_annotations.coco.json")
MOST_CLASSES = 254  # class ids 1..254 fit a uint8 mask beside background and void

Record = dict[str, Any]


def annotation_files(path: Path) -> dict[Split, Path]:
    """Split -> its json file; only `train` where one file holds all; empty when this is no such layout."""
    found: dict[Split, Path] = {}
    for split, words in SPLITS.items():
        matches = [file for word in words for pattern in PATTERNS for file in sorted(path.glob(pattern.format(word)))]
        if matches:
            found[split] = matches[0]
    if not found:
        whole = [file for pattern in WHOLE for file in sorted(path.glob(pattern))]
        return {"train": whole[0]} if whole else {}
    return found


def recognized(path: Path) -> bool:
    """Whether a folder looks like this layout."""
    return bool(annotation_files(path))


def files(path: Path) -> list[Path]:
    """Every file that `read` and its items may read, in a fixed order."""
    pictures = (file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
    return sorted([*annotation_files(path).values(), *pictures])


def read(path: Path, task: str) -> Annotated:
    """The json files of a folder; no picture is opened.

    Class ids are the categories in the order of their COCO ids, which have gaps; for masks 0 is the background.

    Raises:
        InputError: no such layout, a file that is no COCO json, or splits of different categories.
    """
    found = annotation_files(path)
    if "train" not in found:
        raise InputError(
            f"data.path: {path} has no annotations/instances_train*.json", "data.name = 'coco' reads COCO json"
        )
    documents = {split: _document(file) for split, file in found.items()}
    categories = _categories(documents["train"], found["train"])
    for split, document in documents.items():
        if _categories(document, found[split]) != categories:
            raise InputError(f"{found[split]}: other categories than {found['train']}", "use one list for all splits")
    problems = Problems()
    index = {category: at for at, category in enumerate(categories)}
    splits = {
        split: _items(path, found[split], split, document, index, task, problems)
        for split, document in documents.items()
    }
    labels = tuple(categories.values())
    if task == "segment":
        if len(labels) > MOST_CLASSES:
            raise InputError(f"{found['train']}: {len(labels)} categories; masks hold {MOST_CLASSES}", "remove some")
        labels = ("background", *labels)
    listed = ", ".join(file.name for file in found.values())
    note = (
        f"Split as the set's own files say: {listed}." if len(found) > 1 else f"{listed} is one list: split by content."
    )
    return Annotated(labels=labels, splits=dict(splits), problems=problems, notes=(note,))


def _document(file: Path) -> Record:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error})", "replace it with an undamaged copy") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in keys):
        raise InputError(f"{file}: no COCO json (needs the lists {', '.join(keys)})", "use an `instances` file")
    return document


def _categories(document: Record, file: Path) -> dict[int, str]:
    try:
        found = {int(entry["id"]): str(entry["name"]) for entry in document["categories"]}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: a category without id or name", "repair the file") from None
    return dict(sorted(found.items()))


def _items(
    path: Path, file: Path, split: Split, document: Record, index: dict[int, int], task: str, problems: Problems
) -> list[Item]:
    by_image: dict[Any, list[Record]] = defaultdict(list)
    for annotation in document["annotations"]:
        by_image[annotation.get("image_id")].append(annotation)
    folders = _folders(path, file, split)
    items: list[Item] = []
    for image in document["images"]:
        annotations = by_image.pop(image.get("id"), [])
        name = str(image.get("file_name", ""))
        picture = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if picture is None or not name:
            problems.add("listed picture without a file", f"{file.name}: {name or image.get('id')}")
            continue
        width, height = image.get("width"), image.get("height")
        items.append(
            Item(
                id=picture.relative_to(path).as_posix(),
                file=picture,
                declared_wh=(int(width), int(height)) if width and height else None,
                boxes=_boxes(annotations, index) if task == "detect" else None,
                mask=_mask(annotations, index, name, problems) if task == "segment" else None,
            )
        )
    for image_id, orphans in by_image.items():
        problems.add("annotation of a picture that is not listed", f"{file.name}: image_id {image_id}", len(orphans))
    return items


def _folders(path: Path, file: Path, split: Split) -> list[Path]:
    """Where the pictures of a json file may lie, in the order they are looked for."""
    names = dict.fromkeys((file.stem.rsplit("_", 1)[-1], *SPLITS[split], "images"))
    return [path / top / name for top in ("", "images") for name in names] + [file.parent, path]


def _boxes(annotations: list[Record], index: dict[int, int]) -> Callable[[SizeWh], Boxes]:
    corners, classes, flags = [], [], []
    for annotation in annotations:
        x, y, width, height = _xywh(annotation)
        corners.append((x, y, x + width, y + height))
        classes.append(index.get(annotation.get("category_id", -1), -1))
        flags.append(CROWD if annotation.get("iscrowd") else 0)
    boxes = boxes_of(corners, classes, flags)
    return lambda size_wh: boxes


def _xywh(annotation: Record) -> tuple[float, float, float, float]:
    """Left, top, width, height; NaN (counted later) where it is not four numbers."""
    try:
        x, y, width, height = map(float, annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        return (float("nan"),) * 4
    return x, y, width, height


def _mask(
    annotations: list[Record], index: dict[int, int], name: str, problems: Problems
) -> Callable[[SizeWh], NDArray[np.uint8]]:
    """Objects painted from the largest to the smallest, so that what lies on a table is not hidden by it."""

    def paint(size_wh: SizeWh) -> NDArray[np.uint8]:
        canvas = np.zeros((size_wh[1], size_wh[0]), np.uint8)
        layers: list[tuple[int, int, NDArray[np.bool_]]] = []
        for annotation in annotations:
            try:
                area = instance_mask(annotation.get("segmentation"), size_wh)
            except Unusable as trouble:
                problems.add(f"{trouble} (left out)", f"{name}: annotation {annotation.get('id')}")
                continue
            class_id = index.get(annotation.get("category_id", -1))
            if class_id is None:
                problems.add("mask of an unknown class (left out)", f"{name}: annotation {annotation.get('id')}")
                continue
            layers.append((int(area.sum()), VOID if annotation.get("iscrowd") else class_id + 1, area))
        # A crowd is void: inside it single objects were not drawn, but those that were stay.
        for _, value, area in sorted(layers, key=lambda layer: (layer[1] != VOID, -layer[0])):
            canvas[area] = value
        return canvas

    return paint


def instance_mask(segmentation: Any, size_wh: SizeWh) -> NDArray[np.bool_]:
    """One annotation's pixels, bool (H, W): polygons united, or run lengths.

    Raises:
        Unusable: neither, or damaged.
    """
    if isinstance(segmentation, list) and segmentation:
        area = np.zeros((size_wh[1], size_wh[0]), np.bool_)
        for polygon in segmentation:
            area |= polygon_mask(polygon, size_wh)
        return area
    if isinstance(segmentation, dict) and "counts" in segmentation:
        if tuple(segmentation.get("size", ())) != (size_wh[1], size_wh[0]):
            raise Unusable("RLE of another size than its picture")
        return rle_mask(segmentation["counts"], size_wh)
    raise Unusable("annotation without polygon or RLE")
