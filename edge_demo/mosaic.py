"""Several pictures as one: a grid of equal cells, each picture whole in its cell, with its name and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_demo.image import Frame, load_cv2

CANVAS_WH = (960, 720)
TITLE = 24  # px of each cell
BACK, GREY, AMBER = (24, 24, 24), (200, 200, 200), (60, 190, 255)


@dataclass(frozen=True, slots=True)
class Tile:
    """One cell; `frame` BGR uint8 HWC of any size, None before the first."""

    frame: Frame | None
    name: str
    warning: str = ""


def mosaic(tiles: Sequence[Tile], canvas_wh: tuple[int, int] = CANVAS_WH) -> Frame:
    """The tiles in reading order on a canvas of always the same size, BGR uint8 HWC."""
    cv2 = load_cv2()
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = canvas_wh[0] // columns, canvas_wh[1] // rows
    canvas = np.full((canvas_wh[1], canvas_wh[0], 3), BACK, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        x, y = number % columns * width, number // columns * height
        text = f"{tile.name}: {tile.warning}" if tile.warning else tile.name
        cell = canvas[y : y + height, x : x + width]
        colour = AMBER if tile.warning else GREY
        cv2.putText(cell, text, (6, TITLE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
        if tile.frame is not None:
            _place(cell[TITLE:], tile.frame)
    return canvas


def _place(cell: Frame, frame: Frame) -> None:
    """Draw the frame into the middle of the cell, as large as fits, its proportions kept."""
    cv2 = load_cv2()
    scale = min(cell.shape[1] / frame.shape[1], cell.shape[0] / frame.shape[0])
    width, height = max(1, int(frame.shape[1] * scale)), max(1, int(frame.shape[0] * scale))
    x, y = (cell.shape[1] - width) // 2, (cell.shape[0] - height) // 2
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    cell[y : y + height, x : x + width] = cv2.resize(frame, (width, height), interpolation=way)
