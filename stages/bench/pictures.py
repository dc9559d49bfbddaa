"""Pictures for plain models: decoded once by the parent, fitted to the input in the worker, which needs no OpenCV."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_demo.errors import InputError
from edge_demo.image import fit, read_frame
from edge_demo.manifest import Resize
from edge_demo.stills import IMAGE_SUFFIXES

SIDE = 512  # px; larger than what most networks take, so that the worker only shrinks
MOST = 16


def keep_pictures(path: Path, file: Path) -> Path:
    """Write `MOST` pictures of a file or folder (at any depth, evenly chosen) to `file`: uint8 (n, SIDE, SIDE, 3) RGB.

    Raises:
        InputError: nothing there, no picture in it, or one that cannot be read.
    """
    if not path.exists():
        raise InputError(f"--images {path}: no such file or folder", "give a picture, or a folder with pictures")
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"--images {path}: no pictures in it", f"known: {', '.join(sorted(IMAGE_SUFFIXES))}")
    chosen = found[:: -(-len(found) // MOST)]
    whole = Resize(mode="stretch", interpolation="area")
    np.save(file, np.stack([fit(read_frame(one), (SIDE, SIDE), whole)[0][..., ::-1] for one in chosen]))
    return file
