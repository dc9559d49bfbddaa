"""`scenes-detect`, `scenes-segment`: fixed splits of composed scenes, and what a trainer draws fresh ones from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from edge_demo.image import Frame, fit, read_frame
from edge_demo.manifest import Resize
from stages.arrays import FlatBoxes
from stages.data import sets
from stages.data.annotated import Boxes
from stages.data.annotated_prepare import result
from stages.data.annotated_sets import task_of
from stages.data.annotated_write import Ready, SplitWriter, Written, write_items
from stages.data.folder import PICTURES
from stages.data.labelled import content_hash
from stages.data.prepare import network_frame
from stages.data.splits import PRECEDENCE, Selection, read_and_split
from stages.scenes import Composer, composer, fresh_scenes, procedural
from stages.spec import DataConfig, DataResult, OnStep, ScenesConfig, Split, Step, ignore

TASKS = {"scenes-detect": "detect", "scenes-segment": "segment"}
TEXTURES, ROOM = 48, 1.5
"""Drawn textures a split, and their side as a multiple of the frame's: each is used at many offsets."""
CHUNK = 64  # scenes composed at a time
SEEDS: dict[Split, int] = {"train": 1, "val": 2, "test": 3}
"""Splits of one `data.seed` differ by these, in textures and in scenes."""


def glyph_config(config: DataConfig) -> DataConfig:
    """The config of the set whose pictures are the objects."""
    return DataConfig(
        name=config.scenes.source,
        root=config.root,
        test_set=config.test_set,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
        limit=config.limit,
    )


def fingerprint(config: DataConfig) -> str:
    """sha256 over the files of the objects' set, and the photos of the grounds by size and time of change."""
    digest = hashlib.sha256(sets.fingerprint(glyph_config(config)).encode())
    for file in _photos(config.scenes):
        stat = file.stat()
        digest.update(f"{file.name}\0{stat.st_size} {stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def run(config: DataConfig, *, out_dir: Path, on_step: OnStep = ignore) -> DataResult:
    """Composes val and test, and a fixed sample of training scenes; beside it the training glyphs and textures.

    Training scenes hold training pictures only, and so on. Pictures that two splits have in common are used by test,
    or by val, alone. `stages.scenes.load_composer` reads what is left for the trainer.

    Raises:
        InputError: the objects' set is missing, settings without effect, or too few photos.
    """
    written: dict[Split, Written] = {}
    for split, source, labels, seed in opened(config, on_step):
        if split == "train":
            _keep(out_dir, source)
        writer = SplitWriter(out_dir, split, source.task, config, len(labels))
        try:
            for ready in _scenes(source, split, seed, config, on_step):
                writer.add(ready)
        finally:
            written[split] = writer.close()
    write_items(out_dir, written)
    composed = f"Composed by the program from {config.scenes.source}: real objects, artificial scenes."
    made = result(config, source.task, labels, written, out_dir, {}, (composed,))
    return made.model_copy(update={"composed": True, "scenes": config.scenes})


def opened(config: DataConfig, on_step: OnStep = ignore) -> Iterator[tuple[Split, Composer, tuple[str, ...], int]]:
    """Each split, test first: what its scenes are composed from, the labels, and the seed of its fixed scenes.

    Raises:
        InputError: as `run`.
    """
    _refuse(config)
    task, _ = task_of(config.name, config.task, (TASKS[config.name],))
    data = read_and_split(glyph_config(config), sets.plan(glyph_config(config)))
    for note in data.notes:
        on_step(Step("data", note=note))
    labels = data.labels if task == "detect" else ("background", *data.labels)
    seen: set[str] = set()
    for split in PRECEDENCE:
        glyphs, classes = _glyphs(data.splits[split], seen)
        textures = _textures(config, split)
        source = composer(config.scenes, task, config.size_wh, glyphs, classes, textures)
        yield split, source, labels, scene_seed(config.seed, split)


def _keep(out_dir: Path, source: Composer) -> None:
    """What `stages.scenes.load_composer` reads."""
    np.save(out_dir / "train.glyphs.npy", source.glyphs, allow_pickle=False)
    np.save(out_dir / "train.glyph_classes.npy", source.classes, allow_pickle=False)
    np.save(out_dir / "train.textures.npy", source.textures, allow_pickle=False)


def _scenes(source: Composer, split: Split, seed: int, config: DataConfig, on_step: OnStep) -> Iterator[Ready]:
    total = getattr(config.scenes, f"{split}_frames")
    for start in range(0, total, CHUNK):
        count = min(CHUNK, total - start)
        frames, truth = fresh_scenes(source, seed, start // CHUNK, count)
        for at, frame in enumerate(frames):
            one = boxes_at(truth, at) if isinstance(truth, FlatBoxes) else truth[at]
            yield Ready(f"{config.name}/{split}/{start + at:05d}", content_hash(frame), frame, config.size_wh, one)
        on_step(Step(split, start + count, total))


def scene_seed(seed: int, split: Split) -> int:
    """The seed of a split's fixed scenes: far from the small numbers a trainer's own seed is."""
    return 1_000_003 * (SEEDS[split] + 3 * seed)


def boxes_at(truth: FlatBoxes, at: int) -> Boxes:
    """The boxes of one frame."""
    mine = truth.items == at
    return Boxes(xyxy=truth.xyxy[mine].astype(np.float64), classes=truth.classes[mine], flags=truth.flags[mine])


def _refuse(config: DataConfig) -> None:
    for key, default in (("path", ""), ("strict", False), ("resize", Resize())):
        if getattr(config, key) != default:
            raise InputError(f"data.{key}: has no effect with data.name = '{config.name}'", f"remove data.{key}")
    if min(config.size_wh) < 64:
        size = "x".join(map(str, config.size_wh))
        raise InputError(f"data.size_wh: {size} is too small for scenes", "type --set data.size_wh=[128,128]")


def _glyphs(selection: Selection, seen: set[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The pictures (G, S, S) of a split that no split before it has, and their classes."""
    own = {index: selection.part.picture(index) for index in selection.indices.tolist()}
    keys = {index: content_hash(picture) for index, picture in own.items()}
    kept = [index for index in own if keys[index] not in seen]
    seen.update(keys.values())
    return np.stack([own[index][:, :, 0] for index in kept]), selection.part.truth[kept]


def _textures(config: DataConfig, split: Split) -> NDArray[np.uint8]:
    size_wh = (round(config.size_wh[0] * ROOM), round(config.size_wh[1] * ROOM))
    channels = 1 if config.colour == "gray" else 3
    drawn = procedural(TEXTURES, size_wh, channels, scene_seed(config.seed, split))
    files = _photos_of(_photos(config.scenes), split)
    photos = [_photo(file, size_wh, config) for file in files]
    return np.concatenate([drawn, np.stack(photos)]) if photos else drawn


def _photos(config: ScenesConfig) -> list[Path]:
    if not config.backgrounds:
        return []
    folder = Path(config.backgrounds).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.scenes.backgrounds: {folder} is not a folder", "set it to a folder of photos")
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if len(found) < 5:
        raise InputError(f"data.scenes.backgrounds: {len(found)} photos in {folder}", "add photos: five or more")
    return found


def _photos_of(files: Sequence[Path], split: Split) -> Sequence[Path]:
    """Every fifth photo is test's, the next one val's, the others are training's."""
    places: dict[Split, tuple[int, ...]] = {"test": (0,), "val": (1,), "train": (2, 3, 4)}
    return [file for at, file in enumerate(files) if at % 5 in places[split]]


def _photo(file: Path, size_wh: tuple[int, int], config: DataConfig) -> Frame:
    filling = Resize(mode="crop")
    picture, _ = fit(read_frame(file), size_wh, filling)
    return network_frame(picture, config.model_copy(update={"size_wh": size_wh, "resize": filling}))
