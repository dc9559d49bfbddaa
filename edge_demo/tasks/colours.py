"""One colour per class that stays the same from run to run, and that no neighbour in the list of labels comes near."""

from __future__ import annotations

import colorsys
from functools import lru_cache

GOLDEN_ANGLE = 137.508 / 360  # a turn by it never comes back near an earlier one; Source: Vogel (1979)
FIRST_HUE = 0.33  # green, as for classify
LEVELS = ((0.85, 1.0), (0.55, 1.0), (0.95, 0.75))  # saturation, value: bright enough for a camera's picture

Bgr = tuple[int, int, int]


@lru_cache(maxsize=4096)
def colour_of(class_id: int) -> Bgr:
    """BGR colour of a class; the same number always has the same one."""
    saturation, value = LEVELS[(class_id // 8) % len(LEVELS)]
    red, green, blue = colorsys.hsv_to_rgb((FIRST_HUE + class_id * GOLDEN_ANGLE) % 1.0, saturation, value)
    return round(255 * blue), round(255 * green), round(255 * red)


def ink_on(colour: Bgr) -> Bgr:
    """Black or white, whichever reads better on it. Source: luma, ITU-R BT.601."""
    blue, green, red = colour
    return (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 128 else (255, 255, 255)
