"""Pascal VOC folders: `JPEGImages`, `Annotations/*.xml`, `SegmentationClass/*.png`, `ImageSets/*/{train,val,test}.txt`.

Coordinates are taken as the edges of the box, as most tools write them, not as VOC2012's own inclusive pixel numbers
from 1: a box whose two corners are equal has no area.
Source: The PASCAL Visual Object Classes Challenge 2012, Development Kit, sections 3 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from stages.data.annotated import DIFFICULT, Annotated, Boxes, Item, Problems, SizeWh, boxes_of, find_pictures
from stages.data.folder import PICTURES
from stages.data.masks import read_indices
from stages.spec import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
LISTS = {"detect": "Main", "segment": "Segmentation"}
"""Task -> folder of `ImageSets`. The other one's lists say nothing: its test may lack every xml or mask."""
BACKGROUND = "background"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def recognized(path: Path) -> bool:
    """Whether a folder looks like this layout."""
    return (path / "JPEGImages").is_dir()


def files(path: Path) -> list[Path]:
    """Every file that `read` and its items read, in a fixed order."""
    folders = [path / name for name in ("JPEGImages", "Annotations", "SegmentationClass")]
    found = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file()]
    return sorted([*found, *path.glob("ImageSets/*/*.txt"), *path.glob("labels.txt")])


def read(path: Path, task: str) -> Annotated:
    """The lists and annotations of a folder; no picture is opened.

    Class names come from `labels.txt` (one a line; the background, if it is there, first), for boxes else from the
    xml files of the training pictures.

    Raises:
        InputError: no such layout, or the class names of masks are nowhere.
    """
    if not recognized(path):
        raise InputError(f"data.path: {path} has no folder JPEGImages", "data.name = 'voc' reads Pascal VOC folders")
    pictures, problems, notes = find_pictures(path / "JPEGImages", PICTURES), Problems(), list[str]()
    listed = _listed(path, task, pictures, problems, notes)
    return {"detect": _boxes, "segment": _masks}[task](path, listed, problems, tuple(notes))


def _listed(
    path: Path, task: str, pictures: dict[str, Path], problems: Problems, notes: list[str]
) -> dict[Split, list[Path]]:
    """Split -> picture files; everything is `train` where there are no lists."""
    folder = path / "ImageSets" / LISTS[task]
    if not any((folder / f"{split}.txt").is_file() for split in SPLITS):
        notes.append(f"{path.name} has no split lists (ImageSets/{folder.name}/train.txt): split by content.")
        return {"train": list(pictures.values())}
    notes.append(f"Split as the set's own lists in ImageSets/{folder.name} say.")
    found: dict[Split, list[Path]] = {}
    for split in SPLITS:
        if (folder / f"{split}.txt").is_file():
            stems = _stems(folder / f"{split}.txt")
            for stem in stems:
                problems.add(
                    "listed picture without a file", f"{folder.name}/{split}.txt: {stem}", stem not in pictures
                )
            found[split] = [pictures[stem] for stem in stems if stem in pictures]
    if "train" not in found:
        raise InputError(f"{folder}: no train.txt", "add the list of training pictures, one name a line")
    used = {file for part in found.values() for file in part}
    for file in set(pictures.values()) - used:
        problems.add("picture in no split list", file.name)
    return found


def _stems(file: Path) -> list[str]:
    """The first word of every line; a second one, as in VOC's lists per class, is no concern of a split."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))


def _labels(path: Path) -> tuple[str, ...]:
    file = path / "labels.txt"
    if not file.is_file():
        return ()
    return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())


def _boxes(path: Path, listed: dict[Split, list[Path]], problems: Problems, notes: tuple[str, ...]) -> Annotated:
    found: dict[Split, list[tuple[Path, ET.Element]]] = {}
    for split, files_ in listed.items():
        found[split] = [(file, root) for file in files_ if (root := _xml(path, file, problems)) is not None]
    labels = tuple(label for label in _labels(path) if label != BACKGROUND)
    if not labels:
        labels = tuple(sorted({name for _, root in found["train"] for name in _names(root)}))
        notes += (f"No labels.txt: the {len(labels)} classes are those of the training pictures' boxes.",)
    splits = {
        split: [_item(path, file, root, labels, problems) for file, root in part] for split, part in found.items()
    }
    return Annotated(labels=labels, splits=dict(splits), problems=problems, notes=notes)


def _xml(path: Path, picture: Path, problems: Problems) -> ET.Element | None:
    file = path / "Annotations" / f"{picture.stem}.xml"
    if not file.is_file():
        # Nobody looked at it, which is not the same as having found nothing.
        problems.add("picture without an xml (unlabelled, left out)", picture.name)
        return None
    try:
        return ET.parse(file).getroot()
    except ET.ParseError:
        problems.add("xml that cannot be read (picture left out)", file.name)
        return None


def _names(root: ET.Element) -> list[str]:
    return [(entry.findtext("name") or "").strip() for entry in root.iter("object")]


def _item(path: Path, file: Path, root: ET.Element, labels: tuple[str, ...], problems: Problems) -> Item:
    corners, classes, flags = [], [], []
    for entry, name in zip(root.iter("object"), _names(root), strict=True):
        corners.append([_number(entry.findtext(f"bndbox/{corner}")) for corner in CORNERS])
        classes.append(labels.index(name) if name in labels else -1)
        flags.append(DIFFICULT if (entry.findtext("difficult") or "0").strip() == "1" else 0)
    width, height = (_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    stated = width > 0 and height > 0
    problems.add("xml without the picture's size", f"{file.stem}.xml", not stated)
    return Item(
        id=file.relative_to(path).as_posix(),
        file=file,
        declared_wh=(int(width), int(height)) if stated else None,
        boxes=_constant(boxes_of(corners, classes, flags)),
    )


def _number(text: str | None) -> float:
    """A number, or NaN, which is counted as a box with a coordinate that is no number."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _constant(boxes: Boxes) -> Callable[[SizeWh], Boxes]:
    return lambda size_wh: boxes


def _masks(path: Path, listed: dict[Split, list[Path]], problems: Problems, notes: tuple[str, ...]) -> Annotated:
    labels = _labels(path)
    if not labels:
        raise InputError(f"{path / 'labels.txt'}: missing", f"write the class names, one a line, '{BACKGROUND}' first")
    if labels[0] != BACKGROUND:
        raise InputError(f"{path / 'labels.txt'}: starts with '{labels[0]}'", f"class id 0 must be '{BACKGROUND}'")

    def item(file: Path) -> Item:
        mask: Callable[[SizeWh], NDArray[np.uint8]] = partial(
            read_indices, path / "SegmentationClass" / f"{file.stem}.png"
        )
        return Item(id=file.relative_to(path).as_posix(), file=file, mask=mask)

    splits: dict[Split, list[Item]] = {split: [item(file) for file in part] for split, part in listed.items()}
    return Annotated(labels=labels, splits=dict(splits), problems=problems, notes=notes)
