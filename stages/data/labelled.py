"""What a reader returns: labelled pictures, not yet resized, not yet split where the set brings no split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_demo.image import Frame
from stages.spec import Split


@dataclass(frozen=True, slots=True)
class Part:
    """A split as the set brings it; a set that brings none has only `train`."""

    ids: Sequence[str]
    """Unique in the set and the same on every machine."""
    truth: NDArray[np.int64]
    """Class ids (N,), indices into the set's labels."""
    picture: Callable[[int], Frame]
    """index -> uint8 (H, W, 1) gray or (H, W, 3) BGR at source size; InputError naming the file when unreadable."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A whole data set, or the parts of it that were asked for."""

    labels: tuple[str, ...]
    parts: dict[Split, Part]
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> number of files that are no items, e.g. files that are no pictures."""
    notes: tuple[str, ...] = ()
    """What a reader has to say about what it read, in sentences."""


def content_hash(picture: Frame) -> str:
    """sha256 over size and decoded pixels. A grey picture has one hash, whether stored with one channel or three."""
    picture = without_repeats(picture)
    digest = hashlib.sha256(repr(picture.shape).encode())
    digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()


def without_repeats(picture: Frame) -> Frame:
    """A grey picture stored with three equal channels as (H, W, 1); any other one as it is."""
    if picture.shape[2] == 3 and (picture == picture[:, :, :1]).all():
        return picture[:, :, :1]
    return picture
