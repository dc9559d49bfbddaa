"""The IDX format of MNIST and Fashion-MNIST, plain or gzip.

Source: http://yann.lecun.com/exdb/mnist/, "file formats": two zero bytes, type (8 = unsigned byte), number of
dimensions, each dimension as a big-endian 32-bit integer, then the values.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from stages.data.labelled import Labelled, Part
from stages.spec import Split

STEMS: dict[Split, str] = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 8
REPLACE = "replace it with an undamaged copy"


def located(places: Sequence[Path], wanted: Sequence[Split]) -> Path | None:
    """The first place that holds any wanted file of the set."""
    for place in places:
        if any(candidate.is_file() for name in _names(wanted) for candidate in _spellings(place, name)):
            return place
    return None


def files(name: str, places: Sequence[Path], wanted: Sequence[Split]) -> list[Path]:
    """The files of the wanted splits: images, labels, images, labels, ...

    Raises:
        InputError: none is there, or some are missing.
    """
    place = located(places, wanted)
    if place is None:
        looked = " and ".join(str(place) for place in places)
        raise InputError(
            f"data set {name}: no IDX files in {looked}",
            f"set PIPELINE_DATA or data.root to the folder that holds {name}/, or choose data.name = 'mnist-5k'",
        )
    found: list[Path] = []
    for wanted_name in _names(wanted):
        present = [candidate for candidate in _spellings(place, wanted_name) if candidate.is_file()]
        if not present:
            raise InputError(
                f"{place / wanted_name}: missing (also as .gz)", f"put the file beside the others of {name}"
            )
        found.append(present[0])
    return found


def _names(wanted: Sequence[Split]) -> Iterator[str]:
    for split, stem in STEMS.items():
        if split in wanted:
            yield f"{stem}-images-idx3-ubyte"
            yield f"{stem}-labels-idx1-ubyte"


def _spellings(place: Path, name: str) -> list[Path]:
    # Unpackers differ in the last separator: train-images-idx3-ubyte and train-images.idx3-ubyte are the same file.
    dotted = name.replace("-idx", ".idx")
    return [place / name, place / f"{name}.gz", place / dotted, place / f"{dotted}.gz"]


def read(name: str, labels: tuple[str, ...], places: Sequence[Path], wanted: Sequence[Split]) -> Labelled:
    """The wanted splits; pictures are gray (H, W, 1).

    Raises:
        InputError: a file is missing, damaged or truncated, or images and labels do not belong together.
    """
    parts: dict[Split, Part] = {}
    for split in STEMS:
        if split in wanted:
            images_file, labels_file = files(name, places, [split])
            parts[split] = _part(f"{name}/{split}", labels, images_file, labels_file)
    return Labelled(labels, parts)


def _part(prefix: str, labels: tuple[str, ...], images_file: Path, labels_file: Path) -> Part:
    pictures = read_array(images_file, dimensions=3)[..., None]
    truth = read_array(labels_file, dimensions=1).astype(np.int64)
    if len(pictures) != len(truth):
        raise InputError(
            f"{images_file} has {len(pictures)} images but {labels_file} has {len(truth)} labels",
            "take both files from the same source",
        )
    if len(truth) == 0 or pictures.size == 0:
        raise InputError(f"{images_file}: holds no images", REPLACE)
    if truth.max() >= len(labels):
        raise InputError(
            f"{labels_file}: label {truth.max()} at item {truth.argmax()}, but there are only {len(labels)} classes",
            REPLACE,
        )
    ids = [f"{prefix}/{index:05d}" for index in range(len(truth))]
    return Part(ids, truth, pictures.__getitem__)


def read_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes with that many dimensions.

    Raises:
        InputError: cannot be read, wrong magic number, or the size does not fit the header.
    """
    data = _content(path)
    if not data:
        raise InputError(f"{path}: is empty", REPLACE)
    magic, want = data[:4], bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if magic != want:
        raise InputError(f"{path}: wrong IDX magic number 0x{magic.hex()}, expected 0x{want.hex()}", REPLACE)
    start = 4 + 4 * dimensions
    shape = tuple(int(side) for side in np.frombuffer(data[4:start].ljust(4 * dimensions, b"\0"), dtype=">u4"))
    needed = start + int(np.prod(shape, dtype=object))
    if len(data) != needed:
        fault = "truncated" if len(data) < needed else "too long"
        size = " x ".join(str(side) for side in shape)
        raise InputError(f"{path}: {fault}: {size} values need {needed} bytes, the file has {len(data)}", REPLACE)
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", "check its permissions") from None
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except EOFError:
        raise InputError(f"{path}: truncated gzip file", REPLACE) from None
    except (OSError, zlib.error):
        raise InputError(f"{path}: not a gzip file, or damaged", REPLACE) from None
