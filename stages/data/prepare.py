"""The stage: every picture is decoded once, hashed, brought to network size and written; duplicates are dropped."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError
from edge_demo.image import Frame, fit, load_cv2
from stages.data.ahead import ahead
from stages.data.labelled import content_hash, without_repeats
from stages.data.sets import plan
from stages.data.splits import PRECEDENCE, Selection, SplitSet, read_and_split, walk
from stages.spec import DataConfig, DataResult, OnStep, Split, Step, ignore


@dataclass(slots=True)
class Written:
    """What is known about a split once its frames are on disk."""

    ids: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    truth: list[int] = field(default_factory=list)
    levels: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 256), np.int64))
    """Histogram (C, 256) of the frames' values."""
    sizes_wh: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Source size -> pictures."""
    gray: int = 0
    """Pictures without colour."""
    digest: str = ""


def run(config: DataConfig, *, out_dir: Path, on_step: OnStep = ignore) -> DataResult:
    """Reads, splits and resizes a data set into `out_dir`.

    Splits share no picture: a training or val picture whose decoded pixels also are in test is dropped, and likewise
    a training picture that is in val; test stays as it is. Duplicates inside one split stay.

    Raises:
        InputError: a set is missing or damaged, a picture cannot be read, a class has no training images.
    """
    data = read_and_split(config, plan(config))
    _say(data.notes, on_step)
    seen: dict[str, Split] = {}
    dropped: Counter[str] = Counter(data.left_out)
    written: dict[Split, Written] = {}
    for split in PRECEDENCE:
        written[split] = _write_split(out_dir, split, data.splits[split], config, seen, dropped, on_step)
    counts = {split: _class_counts(written[split], len(data.labels)) for split in written}
    found = [*_mixtures(list(written.values()), config), *_gaps(counts, data)]
    _say(found, on_step)
    _write_items(out_dir, written)
    normalized = normalization(written["train"].levels, config.colour)
    return DataResult(
        folder=out_dir,
        name=config.name,
        task="classify",
        labels=data.labels,
        size_wh=config.size_wh,
        resize=config.resize,
        colour=config.colour,
        counts={split: len(part.ids) for split, part in written.items()},
        class_counts=dict(counts),
        digests={split: part.digest for split, part in written.items()},
        mean=normalized.mean,
        std=normalized.std,
        centre=normalized.centre,
        dropped=dict(dropped),
        notes=(*data.notes, *found),
    )


def network_frame(picture: Frame, config: DataConfig) -> Frame:
    """A picture as the network gets it: resized by the device's own code, then reduced to what the network sees.

    Returns:
        uint8 (H, W, 1) gray or (H, W, 3) BGR at `config.size_wh`. OpenCV's gray is the BT.601 luma of the deployed
        graph rounded to a whole level: at most 0.51 of 255 away from it (measured on all 2^24 colours: 0.503).
    """
    frame, _ = fit(picture, config.size_wh, config.resize)
    if config.colour == "rgb":
        return frame if frame.shape[2] == 3 else np.repeat(frame, 3, axis=2)
    if frame.shape[2] == 1:
        return frame
    cv2 = load_cv2()
    gray: Frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    return gray[:, :, None]


def _write_split(
    out_dir: Path,
    split: Split,
    selection: Selection,
    config: DataConfig,
    seen: dict[str, Split],
    dropped: Counter[str],
    on_step: OnStep,
) -> Written:
    """Streams one split to disk, decoded in the background; only a few pictures lie in memory together."""
    channels = 1 if config.colour == "gray" else 3
    written, digest, total = (
        Written(levels=np.zeros((channels, 256), np.int64)),
        hashlib.sha256(),
        len(selection.indices),
    )
    shape = (config.size_wh[1], config.size_wh[0], channels)
    # Plain writes, not a memory map: a full disk is then an OSError and not a killed process.
    with (out_dir / f"{split}.frames.npy").open("wb") as file:
        file.write(npy_header(total, shape))
        for index, decoded in ahead(walk(split, selection, on_step), selection.part.picture):
            picture = without_repeats(decoded)
            key = content_hash(picture)
            if seen.setdefault(key, split) != split:
                dropped[f"duplicate of {seen[key]}"] += 1
                continue
            frame = network_frame(picture, config)
            pixels = frame.tobytes()
            file.write(pixels)
            digest.update(pixels)
            for channel in range(channels):
                written.levels[channel] += np.bincount(frame[:, :, channel].ravel(), minlength=256)
            written.sizes_wh[picture.shape[1], picture.shape[0]] += 1
            written.gray += picture.shape[2] == 1
            written.ids.append(selection.part.ids[index])
            written.hashes.append(key)
            written.truth.append(int(selection.part.truth[index]))
        file.seek(0)
        file.write(npy_header(len(written.ids), shape))
    truth = np.array(written.truth, dtype=np.int64)
    with (out_dir / f"{split}.truth.npy").open("wb") as file:
        np.save(file, truth, allow_pickle=False)
    digest.update(truth.tobytes())
    written.digest = digest.hexdigest()
    return written


def npy_header(count: int, shape: tuple[int, ...]) -> bytes:
    """The header of a uint8 C-order array (count, *shape); numpy pads it, so every count gives the same length."""
    header = io.BytesIO()
    layout = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(header, layout)
    return header.getvalue()


def _class_counts(written: Written, classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(np.array(written.truth, dtype=np.int64), minlength=classes).tolist())


def _say(notes: Sequence[str], on_step: OnStep) -> None:
    for note in notes:
        on_step(Step("data", note=note))


def _mixtures(written: Sequence[Written], config: DataConfig) -> list[str]:
    """A sentence where pictures of several kinds or sizes are brought to one, or colour is not what it seems."""
    sentences: list[str] = []
    total, gray = sum(len(split.ids) for split in written), sum(split.gray for split in written)
    sees = "their luma only" if config.colour == "gray" else "three channels of each"
    if 0 < gray < total:
        sentences.append(f"{gray:,} of {total:,} pictures are gray, the others in colour; the network sees {sees}.")
    elif gray == 0 and config.colour == "gray":
        sentences.append(f"All {total:,} pictures are in colour; data.colour = 'gray' shows the network {sees}.")
    elif gray == total and config.colour == "rgb":
        sentences.append(f"All {total:,} pictures are gray; data.colour = 'rgb' shows the network {sees}, all alike.")
    sizes_wh = sorted(set().union(*(split.sizes_wh for split in written)), key=math.prod)
    if len(sizes_wh) > 1:
        small, large = ("x".join(map(str, size_wh)) for size_wh in (sizes_wh[0], sizes_wh[-1]))
        fitted = f"{config.resize.mode}, {config.resize.interpolation}"
        sentences.append(
            f"{len(sizes_wh):,} source sizes, from {small} to {large}, brought to "
            f"{config.size_wh[0]}x{config.size_wh[1]} ({fitted})."
        )
    return sentences


def _gaps(counts: dict[Split, tuple[int, ...]], data: SplitSet) -> list[str]:
    """A sentence for every split that lacks classes; an error where training lacks one or a split has nothing left."""
    sentences: list[str] = []
    for split, per_class in counts.items():
        missing = [label for label, count in zip(data.labels, per_class, strict=True) if count == 0]
        if len(missing) == len(data.labels) or (missing and split == "train"):
            raise InputError(
                f"data: {split} has no images of {', '.join(missing)} once duplicates of other splits are dropped",
                "add images; `pipeline data check` lists the duplicates",
            )
        if missing:
            sentences.append(f"{split} has no images of {', '.join(missing)}: its numbers say nothing about them.")
    return sentences


def _write_items(out_dir: Path, written: dict[Split, Written]) -> None:
    items = {
        split: [{"id": item, "sha256": key} for item, key in zip(part.ids, part.hashes, strict=True)]
        for split, part in written.items()
    }
    (out_dir / "items.json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Normalization:
    """What is subtracted from, and divides, each network channel on the 0..1 scale; and the mean of the result."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    centre: tuple[float, ...]


def normalization(levels: NDArray[np.int64], colour: str) -> Normalization:
    """From the histograms (C, 256) of the training frames.

    Grey pictures: their mean and standard deviation, exact. Colour pictures: each channel's standard deviation, and for
    all three the one level of a byte that is nearest their common mean, so that a picture's bytes can be the input of
    an INT8 convolution as they are: its one zero point is that level, and what pads the picture is 0 in both.
    """
    values = np.arange(256, dtype=np.float64) / 255.0
    share = levels / levels.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    if std.min() == 0:
        raise InputError(
            "data: a colour channel has one and the same value in every training image", "check the images"
        )
    if colour == "rgb":
        mean, std = mean[::-1], std[::-1]
    subtracted = np.full(3, np.rint(255 * mean.mean()) / 255) if colour == "rgb" else mean
    centre = (mean - subtracted) / std
    return Normalization(tuple(subtracted.tolist()), tuple(std.tolist()), tuple(centre.tolist()))
