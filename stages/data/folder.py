"""Your own data: one sub-folder per class, or the same inside `train/`, and if you like `val/` and `test/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from edge_demo.errors import InputError
from edge_demo.image import Frame, read_frame
from stages.data.labelled import Labelled, Part
from stages.spec import Split

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SPLITS: tuple[Split, ...] = get_args(Split)
EXPECTED = "expected one sub-folder per class, e.g. PATH/cat/1.png, or the same inside PATH/train"


def files(path: Path, wanted: Sequence[Split]) -> list[Path]:
    """Every picture file of the wanted splits, in a fixed order.

    Raises:
        InputError: as `read`, but no picture is opened.
    """
    return [file for split, root in _roots(path).items() if split in wanted for _, file in _listing(root)]


def read(path: Path, wanted: Sequence[Split]) -> Labelled:
    """The wanted splits; labels are the names of the training class folders, sorted.

    Pictures may lie deeper inside a class folder. Names that start with a dot are not looked at.

    Raises:
        InputError: no such folder, no pictures, an empty class, fewer than two classes, or a class that only val or
            test has. An unreadable picture raises when it is opened.
    """
    roots = _roots(path)
    labels = tuple(folder.name for folder in _folders(roots["train"]))
    if len(labels) < 2:
        raise InputError(f"{roots['train']}: only one class ({labels[0]!r})", "a classifier needs at least two classes")
    parts: dict[Split, Part] = {}
    for split, root in roots.items():
        if extra := sorted({folder.name for folder in _folders(root)} - set(labels)):
            raise InputError(f"{root / extra[0]}: a class that {roots['train']} does not have", "rename or remove it")
        if split in wanted:
            parts[split] = _part(path, _listing(root), labels)
    return Labelled(labels, parts, _left_out(roots, wanted))


def _roots(path: Path) -> dict[Split, Path]:
    """The folder that holds the classes of each split; only `train` where the set brings no splits."""
    if not path.is_dir():
        raise InputError(f"data.path: {path} is not a folder", EXPECTED)
    folders = {folder.name for folder in _folders(path)}
    if not folders:
        raise InputError(f"data.path: {path} has no class folders", EXPECTED)
    if "train" not in folders or not _folders(path / "train"):
        return {"train": path}
    if other := sorted(folders - set(SPLITS)):
        raise InputError(
            f"{path / other[0]}: beside {path / 'train'}, only val and test are read", "rename it or move it away"
        )
    return {split: path / split for split in SPLITS if split in folders}


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _files(path: Path) -> list[Path]:
    found = (child for child in path.rglob("*") if child.is_file())
    return sorted(child for child in found if not any(part.startswith(".") for part in child.relative_to(path).parts))


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURES


def _listing(root: Path) -> list[tuple[str, Path]]:
    """(class name, picture file) of one split."""
    listing: list[tuple[str, Path]] = []
    for folder in _folders(root):
        pictures = [(folder.name, file) for file in _files(folder) if _is_picture(file)]
        if not pictures:
            known = ", ".join(sorted(suffix[1:] for suffix in PICTURES))
            raise InputError(f"{folder}: class without a picture ({known})", "add pictures or remove the folder")
        listing += pictures
    if not listing:
        raise InputError(f"{root}: no class folders", EXPECTED)
    return listing


def _part(path: Path, listing: list[tuple[str, Path]], labels: tuple[str, ...]) -> Part:
    paths = [file for _, file in listing]

    def picture(index: int) -> Frame:
        return read_frame(paths[index])

    truth = np.array([labels.index(name) for name, _ in listing], dtype=np.int64)
    return Part([file.relative_to(path).as_posix() for file in paths], truth, picture)


def _left_out(roots: dict[Split, Path], wanted: Sequence[Split]) -> dict[str, int]:
    counts = {"file that is not a picture": 0, "picture outside a class folder": 0}
    for split, root in roots.items():
        if split in wanted:
            outside = [child for child in root.iterdir() if child.is_file() and not child.name.startswith(".")]
            counts["picture outside a class folder"] += sum(map(_is_picture, outside))
            inside = (file for folder in _folders(root) for file in _files(folder))
            counts["file that is not a picture"] += sum(not _is_picture(file) for file in inside)
    return {reason: count for reason, count in counts.items() if count}
