"""The layouts of boxes and masks by name. Registry: `LAYOUTS`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_demo.errors import InputError
from stages.data import coco, labels, voc, yolo
from stages.data.annotated import Annotated, Item
from stages.data.splits import PRECEDENCE
from stages.spec import DataConfig, ScenesConfig, Split


@dataclass(frozen=True, slots=True)
class Layout:
    """How a folder of that layout is recognized and read."""

    items: str
    tasks: tuple[str, ...]
    """What its truth can be; the first is what `data.task = "auto"` takes."""
    recognized: Callable[[Path], bool]
    files: Callable[[Path], list[Path]]
    """Every file that `read` and its items read."""
    read: Callable[[Path, str], Annotated]


LAYOUTS: dict[str, Layout] = {
    "voc": Layout("your own, Pascal VOC: boxes or masks", ("detect", "segment"), voc.recognized, voc.files, voc.read),
    "coco": Layout(
        "your own, COCO json: boxes or masks", ("detect", "segment"), coco.recognized, coco.files, coco.read
    ),
    "yolo": Layout("your own, YOLO txt and yaml: boxes", ("detect",), yolo.recognized, yolo.files, yolo.read),
    "labels": Layout(
        "your own, labels.csv: any number of labels each", ("multilabel",), labels.recognized, labels.files, labels.read
    ),
}


def task_of(name: str, wanted: str, tasks: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The task of a set, and what was chosen by default.

    Raises:
        InputError: the set has no such truth.
    """
    if wanted == "auto":
        note = f"data.task = 'auto': {tasks[0]}, of {' and '.join(tasks)}."
        return tasks[0], (note,) if len(tasks) > 1 else ()
    if wanted not in tasks:
        raise InputError(f"data.task: '{name}' has no truth for {wanted}", f"known for it: {', '.join(tasks)}")
    return wanted, ()


def open_set(config: DataConfig) -> tuple[str, Annotated]:
    """The task, and the set with every split filled; no picture is opened.

    Raises:
        InputError: as the layout's reader, settings without effect, or a split that stays empty.
    """
    layout, path = LAYOUTS[config.name], _path(config)
    task, notes = task_of(config.name, config.task, layout.tasks)
    found = layout.read(path, task)
    splits, cut = _filled(found.splits, config)
    for split in PRECEDENCE:
        if not splits.get(split):
            raise InputError(f"data: no pictures for {split}", f"add pictures, or raise data.{split}_fraction")
    notes = (*notes, *found.notes, *cut)
    return task, Annotated(labels=found.labels, splits=splits, problems=found.problems, notes=notes)


def fingerprint(config: DataConfig) -> str:
    """sha256 over name, size and time of change of every file that would be read."""
    path = _path(config)
    digest = hashlib.sha256(config.name.encode())
    for file in LAYOUTS[config.name].files(path):
        stat = file.stat()
        digest.update(f"{file.relative_to(path).as_posix()}\0{stat.st_size} {stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _path(config: DataConfig) -> Path:
    if not config.path:
        raise InputError(f"data.path: empty, but data.name is '{config.name}'", "set data.path to the set's folder")
    for key, default in (("test_set", "own"), ("scenes", ScenesConfig()), ("limit", 0)):
        if getattr(config, key) != default:
            raise InputError(f"data.{key}: has no effect with data.name = '{config.name}'", f"remove data.{key}")
    path = Path(config.path).expanduser()
    if not path.is_dir():
        raise InputError(f"data.path: {path} is not a folder", "set data.path to the set's folder")
    return path


def _filled(
    brought: dict[Split, Sequence[Item]], config: DataConfig
) -> tuple[dict[Split, Sequence[Item]], tuple[str, ...]]:
    """The set's own splits, and those it lacks cut from its training pictures by the content of their files.

    Content decides, so a copy under another name lands in the same split, and a set that grows keeps its splits.

    Raises:
        InputError: the fractions leave nothing for training.
    """
    fractions: dict[Split, float] = {"test": config.test_fraction, "val": config.val_fraction}
    cut = {split: fraction for split, fraction in fractions.items() if split not in brought}
    if sum(cut.values()) >= 1:
        raise InputError("data.val_fraction, data.test_fraction: nothing is left for training", "lower them below 1")
    if not cut:
        return brought, ()
    parts: dict[Split, list[Item]] = {"train": [], **{split: list[Item]() for split in cut}}
    for item in brought["train"]:
        share = _share(item.file, config.seed)
        target: Split = "train"
        for split, fraction in cut.items():
            if share < fraction:
                target = split
                break
            share -= fraction
        parts[target].append(item)
    sizes = ", ".join(f"{split} {len(parts[split])}" for split in cut)
    return {**brought, **parts}, (f"Cut from the training pictures by their content: {sizes}.",)


def _share(file: Path, seed: int) -> float:
    """A number in [0, 1) that depends on the bytes of a file alone."""
    try:
        digest = hashlib.sha256(f"{seed}\0".encode() + file.read_bytes()).digest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})", "check its permissions") from None
    return float(int.from_bytes(digest[:7], "big") / 2**56)
