"""Your own pictures with any number of labels each: a folder with a `labels.csv`.

    file,cat,dog,outdoors,split
    photos/1.jpg,1,0,1,train
    photos/2.jpg,0,0,0,test

The first column is the picture, as a path inside the folder; `split` (train, val or test) may be there or not, in any
other place; every other column is a label, its cells 1 (has it) or 0 (has not). All zeros is a picture of none of them.
"""

from __future__ import annotations

import csv
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath
from typing import get_args

import numpy as np

from edge_demo.errors import InputError
from stages.data.annotated import Annotated, Item, Problems
from stages.data.folder import PICTURES
from stages.spec import Split

FILE = "labels.csv"
FIRST, SPLIT = "file", "split"
SPLITS: tuple[Split, ...] = get_args(Split)
CELLS = {"0": 0, "1": 1}
EXPECTED = "its first line names the columns, e.g. file,cat,dog,split"

Rows = list[tuple[int, list[str]]]


def recognized(path: Path) -> bool:
    """Whether there is a labels.csv."""
    return (path / FILE).is_file()


def files(path: Path) -> list[Path]:
    """labels.csv, and every picture below the folder."""
    return [path / FILE, *_pictures(path).values()]


def read(path: Path, task: str) -> Annotated:
    """Rows that cannot be used are counted and left out; so are pictures without a row: unlabelled is not "none".

    Raises:
        InputError: no labels.csv, one that is no table of that form, an unknown split, or no row of training.
    """
    file = path / FILE
    header, rows = _table(file)
    where = header.index(SPLIT) if SPLIT in header else None
    places = [at for at in range(1, len(header)) if at != where]
    problems, pictures = Problems(), _pictures(path)
    splits: dict[Split, Sequence[Item]] = {}
    found: dict[str, tuple[Split, Item]] = {}
    for line, cells in rows:
        trouble = _trouble(cells, len(header), places, pictures, found)
        if trouble:
            problems.add(f"{trouble} (left out)", f"{FILE}, line {line}")
            continue
        name = _key(cells[0])
        tags = np.array([CELLS[cells[at].strip()] for at in places], dtype=np.uint8)
        found[name] = _split(cells, where, file, line), Item(id=name, file=pictures[name], tags=tags)
    for name in sorted(set(pictures) - {_key(cells[0]) for _, cells in rows if cells}):
        problems.add(f"picture without a row in {FILE} (left out)", name)
    for split in SPLITS:
        if mine := [item for where_to, item in found.values() if where_to == split]:
            splits[split] = mine
    if "train" not in splits:
        raise InputError(f"{file}: no usable row for train", "type: pipeline data check")
    return Annotated(labels=tuple(header[at] for at in places), splits=splits, problems=problems)


def _table(file: Path) -> tuple[list[str], Rows]:
    """The names of the columns, and the rows behind them with their line numbers; empty lines are skipped."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})", "check the path and its permissions") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: is no table in UTF-8 ({error})", "save it as CSV with UTF-8") from None
    if len(header) == 1 and ";" in header[0]:
        raise InputError(f"{file}: the columns are divided by semicolons", "save it with commas")
    if not header or header[0] != FIRST:
        raise InputError(f"{file}: the first column is not '{FIRST}'", EXPECTED)
    labels = [name for name in header[1:] if name != SPLIT]
    if not labels or not all(labels):
        raise InputError(f"{file}: {'a label without a name' if labels else 'no label'} in the first line", EXPECTED)
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{file}: two columns are named '{twice[0]}'", "rename or remove one")
    return header, rows


def _pictures(path: Path) -> dict[str, Path]:
    """Path inside the folder -> picture file; names that start with a dot are left out."""
    found = (file for file in path.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
    inside = {file.relative_to(path).as_posix(): file for file in sorted(found)}
    return {name: file for name, file in inside.items() if not any(part[0] == "." for part in name.split("/"))}


def _key(cell: str) -> str:
    """A path as it is compared: a slash between folders, whatever system wrote it, and no `./` before them."""
    return PurePosixPath(cell.strip().replace("\\", "/")).as_posix()


def _trouble(
    cells: Sequence[str], width: int, places: Sequence[int], pictures: Container[str], known: Container[str]
) -> str:
    """What is wrong with a row; empty: nothing."""
    if len(cells) != width:
        return "row with another number of cells than the first"
    if any(cells[at].strip() not in CELLS for at in places):
        return "row with a cell that is neither 0 nor 1"
    if _key(cells[0]) not in pictures:
        return "row without its picture"
    return "second row of a picture" if _key(cells[0]) in known else ""


def _split(cells: Sequence[str], where: int | None, file: Path, line: int) -> Split:
    if where is None:
        return "train"
    for split in SPLITS:
        if cells[where].strip() == split:
            return split
    raise InputError(f"{file}, line {line}: split '{cells[where]}' is unknown", f"known: {', '.join(SPLITS)}")
