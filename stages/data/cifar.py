"""CIFAR-10 in every form it is passed around: binary and python batches, and class folders; unpacked or as a tar.

They lie in ROOT/cifar10. Where there are several, the first in this order is read and a note says which: sets whose
name does not say `subset` before those whose name does; binary batches, then python batches, then class folders (the
only form whose pixels may be lossy); unpacked before an archive; then by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from edge_demo.image import Frame, decode_frame, read_frame
from stages.data import archive
from stages.data.cifar_batches import (
    LABELS,
    REPLACE,
    check_names,
    frame_of,
    names_of_pickle,
    names_of_text,
    read_binary,
    read_pickled,
)
from stages.data.folder import PICTURES
from stages.data.labelled import Labelled, Part
from stages.spec import Split

NAME = "cifar10"
Form = Literal["binary batches", "python batches", "class folders"]
Member = tuple[Split, str, str]
"""Split, class and file name of a picture in class folders."""
FORMS: tuple[Form, ...] = get_args(Form)
BATCHES: dict[Form, dict[Split, tuple[str, ...]]] = {
    "binary batches": {
        "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test": ("test_batch.bin",),
    },
    "python batches": {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
}
META: dict[Form, str] = {"binary batches": "batches.meta.txt", "python batches": "batches.meta"}
FOLDERS: dict[str, Form] = {"cifar-10-batches-bin": "binary batches", "cifar-10-batches-py": "python batches"}
FULL: dict[Split, int] = {"train": 50_000, "test": 10_000}
LOSSY = frozenset({".jpg", ".jpeg", ".webp"})
LOSSY_NOTE = (
    "Lossy JPEG copy of CIFAR-10: its pixels are not the published ones, so its accuracies cannot be held against "
    "published figures."
)
EXPECTED = "put cifar-10-batches-bin/, cifar-10-batches-py/, class folders in train/ and test/, or a tar of one there"


@dataclass(frozen=True, slots=True)
class Source:
    """One form of the set: a folder, or an archive of it."""

    form: Form
    path: Path

    @property
    def rank(self) -> tuple[bool, int, bool, str]:
        """Sorts by the order at the top of this file."""
        return "subset" in self.path.name.lower(), FORMS.index(self.form), self.path.is_file(), self.path.name


# --- what is there ---------------------------------------------------------------------------------------------------


def located(places: Sequence[Path], wanted: Sequence[Split]) -> Path | None:
    """The first place that holds the set in any form."""
    return next((place for place in places if sources(place)), None)


def sources(place: Path) -> list[Source]:
    """Every form of the set in a folder, the one that is read first.

    Raises:
        InputError: an archive in it cannot be read.
    """
    if not place.is_dir():
        return []
    found = [Source(form, place / name) for name, form in FOLDERS.items() if (place / name).is_dir()]
    if any((place / split).is_dir() for split in FULL):
        found.append(Source("class folders", place))
    archives = [file for file in place.iterdir() if file.is_file() and archive.is_archive(file)]
    found += [Source(form, file) for file in archives if (form := _form_of(archive.member_names(file)))]
    return sorted(found, key=lambda source: source.rank)


def _form_of(names: Iterable[str]) -> Form | None:
    """Read as far as the first telling name."""
    for name in names:
        for form, batches in BATCHES.items():
            if PurePosixPath(name).name in (*batches["train"], *batches["test"]):
                return form
        key = _class_member(name)
        if key is not None and key[1] in LABELS:
            return "class folders"
    return None


def _chosen(places: Sequence[Path]) -> tuple[Source, list[Source]]:
    """What is read, and the forms beside it that are not."""
    for place in places:
        if found := sources(place):
            return found[0], found[1:]
    looked = " and ".join(str(place) for place in places)
    raise InputError(
        f"data set {NAME}: not in {looked}", f"{EXPECTED}; PIPELINE_DATA or data.root says where {NAME}/ is"
    )


def files(places: Sequence[Path], wanted: Sequence[Split]) -> list[Path]:
    """Every file that `read` reads.

    Raises:
        InputError: the set is not there, or a part of it is missing.
    """
    source, _ = _chosen(places)
    if source.path.is_file():
        return [source.path]
    if source.form == "class folders":
        return [file for split in FULL if split in wanted for _, file in _listing(source.path, split)]
    present = sorted(file.name for file in source.path.iterdir())
    names = [name for batches in _batch_names(source, wanted, present).values() for name in batches]
    return [source.path / name for name in (*names, META[source.form]) if name in present]


# --- reading ---------------------------------------------------------------------------------------------------------


def read(places: Sequence[Path], wanted: Sequence[Split]) -> Labelled:
    """The wanted splits, pictures BGR (32, 32, 3); which form was read and what it lacks is in the notes.

    Raises:
        InputError: the set is not there, or a file of it is missing, damaged, truncated or mislabelled.
    """
    source, others = _chosen(places)
    if source.form == "class folders":
        parts, left_out, lossy = _class_parts(source, wanted)
    else:
        parts, left_out, lossy = _batch_parts(source, wanted), {}, False
    notes = [f"{NAME} read from {source.path.name} ({source.form})."]
    if others:
        beside = ", ".join(f"{other.path.name} ({other.form})" for other in others)
        notes.append(f"Also there and not read: {beside}.")
    if lossy:
        notes.append(LOSSY_NOTE)
    short = [f"{len(part.truth):,} of {FULL[split]:,} {split}" for split, part in parts.items()]
    if any(len(part.truth) != FULL[split] for split, part in parts.items()):
        notes.append(f"Not the whole of CIFAR-10: {' and '.join(short)} pictures.")
    return Labelled(LABELS, parts, left_out, tuple(notes))


def _batch_names(source: Source, wanted: Sequence[Split], present: Iterable[str]) -> dict[Split, list[str]]:
    """Split -> the names of its batches that are there."""
    names: dict[Split, list[str]] = {}
    for split, batches in BATCHES[source.form].items():
        if split in wanted:
            names[split] = [name for name in batches if name in present]
            if not names[split]:
                raise InputError(f"{source.path}: {batches[0]} is missing", "put it beside the other batches")
    return names


def _batch_parts(source: Source, wanted: Sequence[Split]) -> dict[Split, Part]:
    data = _batch_files(source, wanted)
    parse = read_binary if source.form == "binary batches" else read_pickled
    parts: dict[Split, Part] = {}
    for split, names in _batch_names(source, wanted, data).items():
        batches = [parse(data[name], f"{source.path}/{name}") for name in names]
        planes = np.concatenate([planes for planes, _ in batches])
        ids = [f"{NAME}/{split}/{index:05d}" for index in range(len(planes))]
        parts[split] = Part(ids, np.concatenate([truth for _, truth in batches]), _picture_of(planes))
    return parts


def _picture_of(planes: NDArray[np.uint8]) -> Callable[[int], Frame]:
    return lambda index: frame_of(planes[index])


def _batch_files(source: Source, wanted: Sequence[Split]) -> dict[str, bytes]:
    """File name -> content of every batch of the wanted splits; the class names beside them are checked."""
    meta = META[source.form]
    known = {name for split, names in BATCHES[source.form].items() if split in wanted for name in names} | {meta}
    data: dict[str, bytes] = {}
    for name, content in _contents(source.path, known):
        if name in data:
            raise InputError(f"{source.path}: holds two files {name}", REPLACE)
        data[name] = content
    if meta in data:
        where = f"{source.path}/{meta}"
        text = source.form == "binary batches"
        check_names(names_of_text(data[meta]) if text else names_of_pickle(data[meta], where), where)
    return data


def _contents(path: Path, known: set[str]) -> Iterator[tuple[str, bytes]]:
    if path.is_file():
        for member, content in archive.members(path, lambda member: PurePosixPath(member).name in known):
            yield PurePosixPath(member).name, content
        return
    for file in sorted(path.iterdir()):
        if file.name in known:
            try:
                yield file.name, file.read_bytes()
            except OSError as error:
                raise InputError(f"{file}: cannot be read ({error.strerror})", "check its permissions") from None


# --- class folders ---------------------------------------------------------------------------------------------------


def _class_parts(source: Source, wanted: Sequence[Split]) -> tuple[dict[Split, Part], dict[str, int], bool]:
    """The wanted splits, files left out by reason, and whether the pixels are lossy."""
    if source.path.is_file():
        packed = _unpacked(source.path, wanted)
        listings = {split: [key for key in packed if key[0] == split] for split in FULL if split in wanted}

        def picture(key: Member) -> Frame:
            return decode_frame(packed[key], f"{source.path}/{'/'.join(key)}")
    else:
        listings = {split: [key for key, _ in _listing(source.path, split)] for split in FULL if split in wanted}

        def picture(key: Member) -> Frame:
            return read_frame(source.path.joinpath(*key))

    parts: dict[Split, Part] = {}
    lossy, left_out = False, 0
    for split, listing in listings.items():
        keys = sorted(key for key in listing if _suffix(key) in PICTURES)
        left_out += len(listing) - len(keys)
        lossy = lossy or any(_suffix(key) in LOSSY for key in keys)
        parts[split] = _class_part(source.path, split, keys, picture)
    return parts, {"file that is not a picture": left_out} if left_out else {}, lossy


def _class_part(path: Path, split: Split, keys: list[Member], picture: Callable[[Member], Frame]) -> Part:
    truth = np.array([LABELS.index(label) for _, label, _ in keys], dtype=np.int64)
    for class_id, label in enumerate(LABELS):
        if class_id not in truth:
            raise InputError(f"{path}: no pictures in {split}/{label}", REPLACE)
    return Part([f"{NAME}/{'/'.join(key)}" for key in keys], truth, lambda index: picture(keys[index]))


def _unpacked(file: Path, wanted: Sequence[Split]) -> dict[Member, bytes]:
    """The files of the class folders in an archive, still compressed as the pictures they are."""
    packed: dict[Member, bytes] = {}
    for name, content in archive.members(file, lambda name: _class_member(name) is not None):
        key = _class_member(name)
        if key is None or key[0] not in wanted:
            continue
        if key in packed:
            raise InputError(f"{file}: holds two files {'/'.join(key)}", REPLACE)
        packed[_known_class(key, file)] = content
    return packed


def _class_member(name: str) -> Member | None:
    """(split, class, file name) of an archive's member; None for what lies elsewhere, or is hidden."""
    parts = name.split("/")[-3:]
    if len(parts) < 3 or parts[0] not in FULL or parts[2].startswith("."):
        return None
    return parts[0], parts[1], parts[2]


def _listing(path: Path, split: Split) -> list[tuple[Member, Path]]:
    """The files in the class folders of a split, sorted."""
    found: list[tuple[Member, Path]] = []
    if not (path / split).is_dir():
        raise InputError(f"{path / split}: missing", f"put it beside the other split of {NAME}")
    for folder in sorted(path.joinpath(split).iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            _known_class((split, folder.name, ""), path)
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208  60,000 files
            found += [((split, folder.name, name), folder / name) for name in names]
    return found


def _known_class(key: Member, path: Path) -> Member:
    if key[1] not in LABELS:
        raise InputError(f"{path}: {key[0]}/{key[1]} is no class of CIFAR-10", f"its classes: {', '.join(LABELS)}")
    return key


def _suffix(key: Member) -> str:
    return PurePosixPath(key[2]).suffix.lower()
