"""Composed scenes: real digits or clothes on textured grounds, with exact boxes and masks, as many as one asks for.

The data stage writes fixed splits with it; a trainer draws fresh ones from the training glyphs that stage left behind:

    composer = load_composer(data)
    frames, truth = fresh_scenes(composer, seed=0, step=17, batch=32)

The same (seed, step, place in the batch) gives the same scene on every machine of one OpenCV version.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_demo.image import load_cv2
from stages.arrays import FlatBoxes
from stages.spec import DataResult, ScenesConfig

INK = 128
"""A pixel belongs to an object from half covered on."""
TRIES = 8  # places tried for an object before it is left out
CONTRAST = 70.0  # grey levels of 255 between an object and its ground, at least
NOISE_VALUES = 1 << 20

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Composer:
    """Everything scenes are drawn from; read-only."""

    config: ScenesConfig
    task: str
    """`detect` or `segment`: which truth comes back."""
    size_wh: tuple[int, int]
    alpha: Pixels
    """(G, S, S): how much each pixel of a glyph covers the ground."""
    glyphs: Pixels
    """(G, S, S): the pictures themselves; clothes take their shading from it."""
    classes: NDArray[np.int64]
    """(G,)"""
    ink_xyxy: NDArray[np.float64]
    """(G, 4): bounds of what a glyph covers, in its pixels."""
    textures: Pixels
    """(T, TH, TW, C), C = 1 gray or 3 BGR, larger than a frame."""


@dataclass(frozen=True, slots=True)
class _Object:
    glyph: int
    matrix: NDArray[np.float64]
    """(2, 3), from the glyph's to the patch's pixels."""
    patch_xywh: tuple[int, int, int, int]


def composer(
    config: ScenesConfig,
    task: str,
    size_wh: tuple[int, int],
    glyphs: Pixels,
    classes: NDArray[np.int64],
    textures: Pixels,
) -> Composer:
    """Prepares glyphs (G, S, S), light on dark, and textures (T, TH, TW, C) at least as large as a frame."""
    alpha = np.stack([_silhouette(glyph) for glyph in glyphs]) if config.source == "fashion-mnist" else glyphs
    bounds = np.array([_bounds(pixels >= INK) or (0, 0, *pixels.shape[::-1]) for pixels in alpha], np.float64)
    return Composer(
        config=config,
        task=task,
        size_wh=size_wh,
        alpha=alpha,
        glyphs=glyphs,
        classes=classes,
        ink_xyxy=bounds,
        textures=textures,
    )


def load_composer(data: DataResult) -> Composer:
    """The composer of a data stage's training split; it knows no glyph of val or test.

    Raises:
        ValueError: the data is not composed.
    """
    if data.scenes is None:
        raise ValueError(f"data '{data.name}' is not composed")
    glyphs, classes, textures = (
        np.load(data.folder / f"train.{part}.npy", allow_pickle=False)
        for part in ("glyphs", "glyph_classes", "textures")
    )
    return composer(data.scenes, data.task, data.size_wh, glyphs, classes, textures)


def fresh_scenes(source: Composer, seed: int, step: int, batch: int) -> tuple[Pixels, FlatBoxes | Pixels]:
    """A batch of new scenes.

    Returns:
        uint8 (batch, H, W, C) frames and the truth: for detect `FlatBoxes`, the tight bounds of what is visible of
        each object; for segment uint8 (batch, H, W) class ids, 0 the background.
    """
    width, height = source.size_wh
    frames = np.empty((batch, height, width, source.textures.shape[3]), np.uint8)
    masks = np.zeros((batch, height, width), np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    items: list[int] = []
    classes: list[int] = []
    for at in range(batch):
        rng = np.random.default_rng((seed, step, at))
        frames[at], owners, objects = _compose(source, rng)
        for number, thing in enumerate(objects, start=1):
            x, y, w, h = thing.patch_xywh
            visible = owners[y : y + h, x : x + w] == number
            bounds = _bounds(visible)
            if bounds is None:
                continue
            class_id = int(source.classes[thing.glyph])
            boxes.append((x + bounds[0], y + bounds[1], x + bounds[2], y + bounds[3]))
            items.append(at)
            classes.append(class_id)
            masks[at, y : y + h, x : x + w][visible] = class_id + 1
    if source.task == "segment":
        return frames, masks
    return frames, FlatBoxes(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        items=np.array(items, np.int64),
        classes=np.array(classes, np.int64),
        flags=np.zeros(len(boxes), np.uint8),
        frames=batch,
    )


def _compose(source: Composer, rng: np.random.Generator) -> tuple[Pixels, Pixels, list[_Object]]:
    """One frame (H, W, C), which object each pixel shows (H, W; 0 none, else its number), and the objects."""
    cv2, config = load_cv2(), source.config
    frame = _ground(source, rng)
    level = float(frame[::8, ::8].mean())
    objects = _arrange(source, rng)
    owners = np.zeros(frame.shape[:2], np.uint8)
    for number, thing in enumerate(objects, start=1):
        x, y, w, h = thing.patch_xywh
        alpha = cv2.warpAffine(source.alpha[thing.glyph], thing.matrix, (w, h), flags=cv2.INTER_LINEAR)
        colour = _colour(rng, level, frame.shape[2])
        ink = colour * (1.0 / 255)
        under = frame[y : y + h, x : x + w]
        cover = alpha[:, :, None].astype(np.float32) * np.float32(1 / 255)
        if config.source == "fashion-mnist":
            shade = cv2.warpAffine(source.glyphs[thing.glyph], thing.matrix, (w, h), flags=cv2.INTER_LINEAR)
            paint = shade[:, :, None] * ink
        else:
            paint = colour
        under[:] = (under + (paint - under) * cover + np.float32(0.5)).astype(np.uint8)
        owners[y : y + h, x : x + w][alpha >= INK] = number
    if rng.random() < config.blur:
        frame = cv2.GaussianBlur(frame, (3, 3), float(rng.uniform(0.4, 1.0))).reshape(frame.shape)
    return _lit(frame, config, rng), owners, objects


def _ground(source: Composer, rng: np.random.Generator) -> Pixels:
    """A random part of a random texture, mirrored or not, at random brightness and contrast."""
    width, height = source.size_wh
    texture = source.textures[int(rng.integers(len(source.textures)))]
    y, x = (int(rng.integers(whole - part + 1)) for whole, part in zip(texture.shape, (height, width), strict=False))
    part = texture[y : y + height, x : x + width, :]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    low, high = np.sort(rng.uniform(0, 256, 2))
    # one look-up per pixel is the fastest way to a linear change in uint8
    levels = (low + (high - low) / 255 * np.arange(256)).astype(np.uint8)
    looked_up: Pixels = load_cv2().LUT(np.ascontiguousarray(part), levels)
    return looked_up.reshape(part.shape)


def _colour(rng: np.random.Generator, level: float, channels: int) -> NDArray[np.float32]:
    """A colour (C,) whose luma is at least `CONTRAST` away from the ground's mean level."""
    # Every luma that is far enough away is as likely as any other: first the dark ones, then the light ones.
    dark, light = max(0.0, level - CONTRAST), max(0.0, 255.0 - level - CONTRAST)
    at, *tint = rng.random(4).tolist()
    luma = at * (dark + light)
    if luma > dark:
        luma += level + CONTRAST - dark
    if channels == 1:
        return np.array([luma], np.float32)
    blue, green, red = (120 * share - 60 for share in tint)
    own = 0.114 * blue + 0.587 * green + 0.299 * red  # BT.601: taken off, the tint leaves the luma as it is
    return np.array([min(255.0, max(0.0, luma + value - own)) for value in (blue, green, red)], np.float32)


def _arrange(source: Composer, rng: np.random.Generator) -> list[_Object]:
    """Which glyphs, how large, how turned, where; what finds no place is left out."""
    config, (width, height) = source.config, source.size_wh
    objects: list[_Object] = []
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(int(rng.integers(config.objects[0], config.objects[1] + 1))):
        glyph = int(rng.integers(len(source.classes)))
        matrix, (w, h) = _pose(source, glyph, rng)
        if w > width or h > height:
            continue
        for x_share, y_share in rng.random((TRIES, 2)).tolist():
            x, y = int(x_share * (width - w + 1)), int(y_share * (height - h + 1))
            box = (x, y, x + w, y + h)
            if all(_covered(box, other) <= config.overlap for other in taken):
                taken.append(box)
                objects.append(_Object(glyph, matrix, (x, y, w, h)))
                break
    return objects


def _pose(source: Composer, glyph: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """A random size and turn of a glyph: the (2, 3) matrix into the smallest patch that holds its ink, and its size."""
    config = source.config
    x0, y0, x1, y1 = source.ink_xyxy[glyph]
    # Sizes are those of the ink's longer side, as a share of the frame's shorter one.
    scale = rng.uniform(*config.size) * min(source.size_wh) / max(x1 - x0, y1 - y0)
    angle = math.radians(rng.uniform(-config.rotate_deg, config.rotate_deg))
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    w = math.ceil(abs(cos) * (x1 - x0) + abs(sin) * (y1 - y0)) + 2
    h = math.ceil(abs(sin) * (x1 - x0) + abs(cos) * (y1 - y0)) + 2
    # warpAffine's coordinates are those of pixel centres, the bounds are edges: half a pixel less
    cx, cy = (x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5
    shift_x, shift_y = (w - 1) / 2 - (cos * cx - sin * cy), (h - 1) / 2 - (sin * cx + cos * cy)
    return np.array([[cos, -sin, shift_x], [sin, cos, shift_y]]), (w, h)


def _covered(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The common area of two boxes, as a share of the smaller one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _lit(frame: Pixels, config: ScenesConfig, rng: np.random.Generator) -> Pixels:
    """Uneven light across the frame, and sensor noise."""
    height, width = frame.shape[:2]
    to_x, to_y = rng.uniform(-config.light, config.light, 2)
    across = np.linspace(1 - to_x, 1 + to_x, width, dtype=np.float32)
    down = np.linspace(1 - to_y, 1 + to_y, height, dtype=np.float32)
    out = frame * (down[:, None] * across)[:, :, None]
    if config.noise:
        # Drawing a normal value per pixel would take longer than all the rest: a part of one long list instead.
        start = int(rng.integers(NOISE_VALUES))
        values = _noise(frame.size)[start : start + frame.size]
        out += values.reshape(frame.shape) * np.float32(255 * rng.uniform(0, config.noise))
    np.clip(out, 0, 255, out=out)
    return out.astype(np.uint8)


@lru_cache(maxsize=4)
def _noise(room: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(NOISE_VALUES + room, dtype=np.float32)


def _bounds(inside: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Tight xyxy of the true pixels of (H, W), right and bottom exclusive; None when there are none."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if len(rows) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _silhouette(glyph: Pixels) -> Pixels:
    """The outline of a piece of clothing filled: dark cloth covers the ground as light cloth does."""
    cv2 = load_cv2()
    closed = cv2.morphologyEx((glyph > 8).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    found, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(glyph)
    cv2.drawContours(filled, found, -1, 255, thickness=-1)
    return filled


def procedural(count: int, size_wh: tuple[int, int], channels: int, seed: int) -> Pixels:
    """Textures (count, H, W, C): smooth to rough noise, stripes, checks and plain grounds, in random colours."""
    cv2, rng = load_cv2(), np.random.default_rng(seed)
    width, height = size_wh
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    out = np.empty((count, height, width, channels), np.uint8)
    for at in range(count):
        angle, period = rng.uniform(0, math.pi), rng.uniform(4, 40)
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        waves = np.sin(2 * math.pi / period * along)
        pattern = (
            np.zeros_like(x),
            waves,
            np.sign(waves) * np.sign(np.sin(2 * math.pi / period * across)),
            along / max(width, height),
        )[at % 4]
        rough = sum(
            cv2.resize(rng.standard_normal((cells, cells), dtype=np.float32), (width, height)) * (4.0 / cells) ** 0.5
            for cells in (4, 8, 16, 32, 64)
        )
        values = pattern * rng.uniform(0.1, 1.0) + rough * rng.uniform(0.05, 0.6)
        low, high = values.min(), values.max()
        unit = ((values - low) / max(high - low, 1e-6))[:, :, None]
        first, second = rng.uniform(0, 255, (2, channels))
        out[at] = (first + (second - first) * unit).astype(np.uint8)
    return out
