"""What is benchmarked: bundles, run folders with one, or plain model files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_demo.bundle import open_bundle
from edge_demo.errors import InputError
from edge_demo.manifest import InputContract
from stages.bench.model_file import ModelFile, read_model_file
from stages.bench.pictures import keep_pictures

HINT = "give a bundle, a run folder, an .onnx or an .xml file"


@dataclass(frozen=True, slots=True)
class Sample:
    """A bundle's labelled frames, at network size: `frames` is an npy file, uint8 NHWC BGR."""

    frames: Path
    truths: list[Any]
    of: int
    task: str
    params: dict[str, Any]
    contract: InputContract
    sha256: str
    """Of frames and truths: two bundles with the same digest were scored on the very same items."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a path turned out to be. `models` by precision of the file."""

    name: str
    models: dict[str, ModelFile]
    sample: Sample | None
    fp32_because: str
    """The bundle's reason when it says FP32 should be deployed, else empty."""
    pictures: Path | None = None
    """Of a plain model: an npy file, uint8 NHWC RGB, to run it on; None: random inputs."""
    key: str = ""
    """What its rows' ids start with; empty where there is only one target."""


def open_targets(
    paths: Sequence[Path], scratch: Path, keys: Sequence[str] = (), images: Path | None = None
) -> list[Target]:
    """Open every path; where there are several, each gets a key: the one given, else made of its name.

    Plain models get the pictures of `images`, a file or folder.

    Raises:
        InputError: one of them is nothing that can be measured, or one is named twice; pictures that cannot be read, or
            that nothing here would be run on.
    """
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path, real in zip(paths, resolved, strict=True) if resolved.count(real) > 1)
        raise InputError(f"{twice}: named twice", "the same model is compared with itself in every run (A/A)")
    opened = []
    for number, path in enumerate(paths):
        folder = scratch / f"target-{number}"
        folder.mkdir(exist_ok=True)
        opened.append(open_target(path, folder))
    if images is not None:
        opened = _with_pictures(opened, images, scratch / "pictures.npy")
    if len(opened) == 1:
        return opened
    return [
        replace(target, key=key) for target, key in zip(opened, keys or _keys([t.name for t in opened]), strict=True)
    ]


def _with_pictures(targets: Sequence[Target], images: Path, file: Path) -> list[Target]:
    if all(target.sample for target in targets):
        raise InputError("--images has no effect on a bundle, which brings its own", "leave it off")
    keep_pictures(images, file)
    return [target if target.sample else replace(target, pictures=file) for target in targets]


def _keys(names: Sequence[str]) -> list[str]:
    """Short, different, and safe in a file name."""
    plain = [re.sub(r"[^A-Za-z0-9_.]+", "_", name.removesuffix(".onnx").removesuffix(".xml"))[:24] for name in names]
    return [key if plain.count(key) == 1 else f"{key}.{i + 1}" for i, key in enumerate(plain)]


def open_target(path: Path, scratch: Path) -> Target:
    """Find out what `path` is and make it ready for workers; files are written below `scratch`.

    Raises:
        InputError: nothing there, not something that can be measured, or a bundle that is refused.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder", HINT)
    if (path / "run.json").is_file():
        path = path / "bundle"
        if not path.is_dir():
            raise InputError(f"{path.parent}: this run has no bundle yet", f"type: pipeline bundle --run {path.parent}")
    if path.is_dir() or path.suffix == ".edge":
        return _bundle(path, scratch)
    if path.suffix in (".onnx", ".xml"):
        model = read_model_file(path)
        return Target(path.name, {model.precision: model}, None, "")
    raise InputError(f"{path}: not a model or bundle", HINT)


def _bundle(path: Path, scratch: Path) -> Target:
    """A verified bundle: its model bytes and frames are copied, so that workers see exactly what was checked."""
    bundle = open_bundle(path)
    manifest = bundle.manifest
    models: dict[str, ModelFile] = {}
    for variant in manifest.variants:
        data, copy = bundle.model_bytes(variant.precision), scratch / f"{variant.precision}.onnx"
        copy.write_bytes(data)
        sha256, file = hashlib.sha256(data).hexdigest(), Path(variant.file).name
        models[variant.precision] = ModelFile(copy, file, sha256, len(data), variant.precision, variant.opset)
    frames, truths = bundle.eval_sample()
    if not truths:
        raise InputError(f"{path}: its labelled sample is empty", "make the bundle again with eval_images > 0")
    np.save(scratch / "frames.npy", frames)
    digest = hashlib.sha256(frames.tobytes() + repr(truths).encode()).hexdigest()
    sample = Sample(
        scratch / "frames.npy", truths, manifest.eval.of, manifest.task, bundle.params, manifest.input, digest
    )
    return Target(manifest.name, models, sample, manifest.reason if manifest.recommended == "fp32" else "")
