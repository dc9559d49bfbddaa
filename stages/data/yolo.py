"""YOLO folders: a yaml with `train`, `val`, `test` and `names`; a txt beside every picture, one box a line.

A line is `class x y width height`, centre and size as shares of the picture; or `class x0 y0 x1 y1 x2 y2 ...`, a
polygon, whose bounds are taken. `images` in a picture's path becomes `labels`. A picture without a txt has no objects:
so the format says, other than VOC. Source: Ultralytics documentation, "Object Detection Datasets Overview".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_demo.errors import InputError, missing_extra
from stages.data.annotated import NO_BOXES, Annotated, Boxes, Item, Problems, SizeWh, boxes_of
from stages.data.folder import PICTURES
from stages.spec import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
YAML = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")


def settings_file(path: Path) -> Path | None:
    """The yaml of a folder: one of the usual names, or the only yaml there is."""
    named = [path / name for name in YAML if (path / name).is_file()]
    others = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    return named[0] if named else (others[0] if len(others) == 1 else None)


def recognized(path: Path) -> bool:
    """Whether a folder looks like this layout: a yaml that names training pictures and classes."""
    file = settings_file(path)
    if file is None:
        return False
    text = file.read_text(encoding="utf-8", errors="replace")
    return all(any(line.startswith(f"{key}:") for line in text.splitlines()) for key in ("train", "names"))


def files(path: Path) -> list[Path]:
    """Every file that `read` and its items may read, in a fixed order."""
    kinds = PICTURES | {".txt", ".yaml", ".yml"}
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in kinds and file.is_file())


def read(path: Path, task: str) -> Annotated:
    """The yaml and every txt; no picture is opened.

    Raises:
        InputError: no yaml, one without `train` or `names`, or a place it names is not there.
    """
    file = settings_file(path)
    if file is None:
        raise InputError(f"data.path: {path} has no data.yaml", "data.name = 'yolo' reads YOLO folders")
    settings = _settings(file)
    labels = _labels(settings, file)
    base = _base(path, settings)
    problems, splits, unlabelled = Problems(), dict[Split, list[Item]](), 0
    for split in SPLITS:
        if settings.get(split):
            pictures = _pictures(base, settings[split], f"{file}: {split}", problems)
            splits[split] = [_item(path, picture, problems) for picture in pictures]
            unlabelled += sum(not _label_file(picture).is_file() for picture in pictures)
    notes = [f"Split as {file.name} says: {', '.join(splits)}."]
    if unlabelled:
        notes.append(f"{unlabelled:,} pictures have no txt: taken as pictures without objects, as the format says.")
    return Annotated(labels=labels, splits=dict(splits), problems=problems, notes=tuple(notes))


def _settings(file: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise missing_extra("reading a YOLO set", "PyYAML", "train") from None
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read as YAML ({' '.join(str(error).split())})", "repair it") from None
    if not isinstance(settings, dict) or not settings.get("train") or not settings.get("names"):
        raise InputError(f"{file}: names no `train` and `names`", "write where the pictures are and the class names")
    return settings


def _labels(settings: dict[str, Any], file: Path) -> tuple[str, ...]:
    names = settings["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise InputError(f"{file}: the class ids in `names` are not 0 to {len(names) - 1}", "number them so")
        names = [names[at] for at in range(len(names))]
    if settings.get("nc", len(names)) != len(names):
        raise InputError(f"{file}: nc is {settings['nc']}, but there are {len(names)} names", "make them agree")
    return tuple(str(name) for name in names)


def _base(path: Path, settings: dict[str, Any]) -> Path:
    """The folder that `train` is relative to; where `path` is another machine's, the yaml's own."""
    stated = Path(str(settings.get("path", ".")))
    return path / stated if (path / stated).is_dir() else path


def _pictures(base: Path, places: Any, where: str, problems: Problems) -> list[Path]:
    """The pictures of a folder, of a txt that lists them, or of several of these."""
    found: list[Path] = []
    for place in places if isinstance(places, list) else [places]:
        # Exports of one popular service write ../train/images for a folder beside the yaml.
        candidates = [base / str(place), base / str(place).removeprefix("../")]
        target = next((candidate for candidate in candidates if candidate.exists()), None)
        if target is None:
            raise InputError(f"{where}: {place} is not there", "correct the yaml")
        if target.is_dir():
            found += [file for file in sorted(target.rglob("*")) if file.suffix.lower() in PICTURES]
            continue
        for line in filter(None, map(str.strip, target.read_text(encoding="utf-8").splitlines())):
            picture = target.parent / line if (target.parent / line).is_file() else base / line
            problems.add("listed picture without a file", f"{target.name}: {line}", not picture.is_file())
            found += [picture] if picture.is_file() else []
    return found


def _label_file(picture: Path) -> Path:
    """The last `images` of the path becomes `labels`; without one, the txt lies beside the picture."""
    parts = list(picture.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _item(path: Path, picture: Path, problems: Problems) -> Item:
    file = _label_file(picture)
    rows: list[list[float]] = []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(line)
        problems.add("txt line that is no box (left out)", f"{file.name}:{number}", row is None)
        rows += [row] if row is not None else []
    name = picture.relative_to(path) if picture.is_relative_to(path) else picture
    return Item(id=name.as_posix(), file=picture, boxes=_scaled(rows))


def _row(line: str) -> list[float] | None:
    """class, x0, y0, x1, y1 as shares of the picture; None for a line of another kind."""
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        return None
    if len(values) == 5:
        kind, x, y, width, height = values
        return [kind, x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if len(values) >= 7 and len(values) % 2:
        return [values[0], min(values[1::2]), min(values[2::2]), max(values[1::2]), max(values[2::2])]
    return None


def _scaled(rows: list[list[float]]) -> Callable[[SizeWh], Boxes]:
    if not rows:
        return lambda size_wh: NO_BOXES
    table = np.array(rows, dtype=np.float64)
    # A class id that is no whole number is no class.
    whole = np.isfinite(table[:, 0]) & (table[:, 0] == np.floor(np.nan_to_num(table[:, 0])))
    classes = np.where(whole, np.nan_to_num(table[:, 0]), -1).astype(np.int64)
    return lambda size_wh: boxes_of(table[:, 1:] * np.tile(size_wh, 2), classes, np.zeros(len(table)))
