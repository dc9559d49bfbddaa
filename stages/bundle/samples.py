"""The labelled sample a bundle carries, and files whose bytes depend on nothing but their content."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.archive import EPOCH
from edge_demo.bundle import canonical_json
from edge_demo.image import write_png
from stages.arrays import load_frames, stratified
from stages.spec import DataResult
from stages.tasks import TASKS

EVAL_SEED = 0


def write_eval(folder: Path, data: DataResult, count: int) -> dict[str, Any]:
    """Write about `count` test frames as `eval/<i>.png` and their truth; returns the manifest's `eval` entry."""
    task = TASKS[data.task]
    frames, truths = load_frames(data, "test"), task.truths(data, "test")
    chosen = stratified(task.strata(data, "test"), count, EVAL_SEED)
    names = [
        write_file(folder, f"eval/{number:05d}.png", write_png(np.asarray(frames[index])))
        for number, index in enumerate(chosen)
    ]
    truth_file = write_file(
        folder, "eval/truth.json", canonical_json([task.plain_truth(truths[index]) for index in chosen])
    )
    return {"frames": names, "truth": truth_file, "of": len(truths)}


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as the bytes of an npz file that depend on nothing but them (numpy's own may state the time)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", EPOCH), content.getvalue())
    return buffer.getvalue()


def write_file(folder: Path, name: str, content: bytes) -> str:
    """Write one file of the bundle, with its folders; returns its name."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return name
