"""Open a bundle and refuse everything wrong with it; write one. What `open_bundle` returns has been checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edge_demo import __version__
from edge_demo.archive import Archive, open_archive, write_zip
from edge_demo.errors import InputError
from edge_demo.image import decode_frame, fit, to_batch
from edge_demo.manifest import SCHEMA, FileEntry, Manifest, Variant
from edge_demo.onnx_file import OnnxFile, Value, inspect
from edge_demo.tasks import TASKS

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
REMADE = "make the bundle again or get a clean copy"
CHANNELS = {"gray": 1, "rgb": 3}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every file was just checked against the manifest."""

    path: Path
    manifest: Manifest
    manifest_sha256: str
    params: dict[str, Any]
    """The task's decode parameters, completed."""
    archive: Archive

    def read(self, name: str) -> bytes:
        """The bytes of one listed file, checked again: these very bytes have the digest in the manifest.

        Raises:
            InputError: the file is not listed, or was changed since the bundle was opened.
        """
        if name not in self.manifest.files:
            raise InputError(f"{self.path}: {name} is not listed in {MANIFEST}", REMADE)
        return read_checked(self.archive, name, self.manifest.files[name])

    def model_bytes(self, precision: str) -> bytes:
        """The ONNX model of one precision (`fp32`, `int8`).

        Raises:
            InputError: the bundle has no such variant.
        """
        known = [variant.precision for variant in self.manifest.variants]
        if precision not in known:
            raise InputError(f"{self.path}: no variant {precision!r}", f"it has: {', '.join(known)}")
        return self.read(self.manifest.variant(precision).file)

    def frames(self, names: Sequence[str]) -> list[NDArray[np.uint8]]:
        """Listed pictures as BGR uint8 HWC frames, of whatever size they have."""
        return [decode_frame(self.read(name), f"{self.path}: {name}") for name in names]

    def batch(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Whole frames of any size -> uint8 NHWC BGR at the network's size, as the manifest's resize says."""
        contract = self.manifest.input
        return to_batch([fit(frame, contract.size_wh, contract.resize)[0] for frame in frames])

    def eval_sample(self) -> tuple[NDArray[np.uint8], list[Any]]:
        """The labelled sample: uint8 NHWC BGR batch (N, H, W, 3) and its N truths, as the task scores them."""
        sample = self.manifest.eval
        truths = json.loads(self.read(sample.truth))
        return self.batch(self.frames(sample.frames)), truths


# --- opening ---------------------------------------------------------------------------------------------------------


def open_bundle(path: Path) -> Bundle:
    """Open a bundle folder or .edge file and check all of it that can be checked without running a model.

    Raises:
        InputError: whatever is wrong first, in this order: what lies at `path`, the manifest, missing and unlisted
            files, sizes and digests, the manifest against itself and its task, the models against the manifest.
    """
    path = Path(path)
    archive = open_archive(path)
    if MANIFEST not in archive.sizes:
        nested = path / "bundle"
        hint = f"did you mean {nested}?" if (nested / MANIFEST).is_file() else "name a bundle folder or a .edge file"
        raise InputError(f"{path}: no {MANIFEST} in it, so it is no bundle", hint)
    raw = archive.read(MANIFEST)
    manifest = parse_manifest(raw, f"{path}: {MANIFEST}")
    _check_listed(archive, manifest)
    for name, entry in manifest.files.items():
        read_checked(archive, name, entry)
    params = _check_contents(path, manifest)
    bundle = Bundle(path, manifest, hashlib.sha256(raw).hexdigest(), params, archive)
    for variant in manifest.variants:
        _check_model(bundle, variant)
    _check_truth(bundle)
    return bundle


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """Strictly typed manifest; `where` begins every message.

    Raises:
        InputError: no JSON, a key twice, a newer schema, a program too old for it, an unknown key or a wrong value.
    """
    try:
        document = json.loads(raw, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})", REMADE) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        newer = isinstance(schema, str) and schema.startswith(SCHEMA.split("/")[0] + "/")
        hint = "update this program" if newer else REMADE
        raise InputError(f"{where}: schema {schema!r}, this program reads {SCHEMA!r}", hint)
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {key}: {first['msg']}", REMADE) from error
    if _version(manifest.min_runner, where) > _version(__version__, where):
        raise InputError(
            f"{where}: needs version {manifest.min_runner} of this program, this is {__version__}", "update it"
        )
    return manifest


def read_checked(archive: Archive, name: str, entry: FileEntry) -> bytes:
    """One file's bytes, when they have the size and digest the manifest states.

    Raises:
        InputError: they have not.
    """
    data = archive.read(name)
    where = f"{archive.path}: {name}"
    if len(data) != entry.size_bytes:
        raise InputError(f"{where} has {len(data)} bytes, the manifest says {entry.size_bytes}", REMADE)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InputError(f"{where} was changed: its SHA-256 is not the one in the manifest", REMADE)
    return data


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"key {key!r} is there twice")
        unique[key] = value
    return unique


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _version(text: str, where: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError as error:
        raise InputError(f"{where}: min_runner: {text!r} is no version like 0.1.0", REMADE) from error


def _check_listed(archive: Archive, manifest: Manifest) -> None:
    if SIGNATURE in archive.sizes:
        # Passing over it would look like having checked it.
        raise InputError(
            f"{archive.path}: signed ({SIGNATURE}), which this version cannot check", "update this program"
        )
    present = set(archive.sizes) - {MANIFEST}
    listed = set(manifest.files)
    for name in sorted(listed - present):
        raise InputError(f"{archive.path}: {name} is missing, the manifest lists it", REMADE)
    for name in sorted(present - listed):
        raise InputError(f"{archive.path}: {name} is not listed in {MANIFEST}", "remove it, or " + REMADE)


def _check_contents(path: Path, manifest: Manifest) -> dict[str, Any]:
    """The manifest against itself and its task; returns the completed decode parameters."""
    where = f"{path}: {MANIFEST}"
    for key, name in _references(manifest):
        if name not in manifest.files:
            raise InputError(f"{where}: {key}: {name} is not among the bundle's files", REMADE)
    if manifest.task not in TASKS:
        raise InputError(f"{where}: task {manifest.task!r} is unknown", f"this program knows: {', '.join(TASKS)}")
    if not manifest.labels or len(set(manifest.labels)) != len(manifest.labels):
        raise InputError(f"{where}: labels: empty, or one is there twice", REMADE)
    precisions = [variant.precision for variant in manifest.variants]
    if len(set(precisions)) != len(precisions) or manifest.recommended not in precisions:
        raise InputError(f"{where}: variants: {precisions}, recommended {manifest.recommended!r}", REMADE)
    contract, channels = manifest.input, CHANNELS[manifest.input.colour]
    if (len(contract.mean), len(contract.std)) != (channels, channels) or min(contract.std) <= 0:
        raise InputError(f"{where}: input: {contract.colour} needs {channels} mean and positive std values", REMADE)
    _check_golden(where, manifest, set(precisions))
    try:
        return TASKS[manifest.task].check_params(manifest.decode, manifest.labels)
    except InputError as error:
        raise InputError(f"{where}: {error.message}", error.hint) from error


def _check_golden(where: str, manifest: Manifest, precisions: set[str]) -> None:
    golden = manifest.golden
    if not golden.frames or len(golden.pixels_sha256) != len(golden.frames):
        raise InputError(f"{where}: golden: no frames, or not one digest for each", REMADE)
    if set(golden.outputs) != precisions or set(golden.decoded) != precisions:
        raise InputError(f"{where}: golden: not the expected results of every variant", REMADE)
    if not manifest.eval.frames or manifest.eval.of < len(manifest.eval.frames):
        raise InputError(f"{where}: eval: no frames, or more than the test split has", REMADE)


def _references(manifest: Manifest) -> list[tuple[str, str]]:
    """(key, file) of every file the manifest names outside its table."""
    golden, sample = manifest.golden, manifest.eval
    return [
        *((f"variants.{variant.precision}", variant.file) for variant in manifest.variants),
        *(("golden.frames", name) for name in golden.frames),
        *((f"golden.outputs.{precision}", name) for precision, name in golden.outputs.items()),
        *((f"golden.decoded.{precision}", name) for precision, name in golden.decoded.items()),
        *(("eval.frames", name) for name in sample.frames),
        ("eval.truth", sample.truth),
    ]


def _check_truth(bundle: Bundle) -> None:
    sample = bundle.manifest.eval
    where = f"{bundle.path}: {sample.truth}"
    try:
        truths = json.loads(bundle.read(sample.truth))
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error})", REMADE) from error
    if not isinstance(truths, list) or len(truths) != len(sample.frames):
        raise InputError(f"{where}: not a list of one truth for each of {len(sample.frames)} frames", REMADE)


def _check_model(bundle: Bundle, variant: Variant) -> None:
    """One model file against the manifest, by what the file says about itself."""
    where = f"{bundle.path}: {variant.file}"
    try:
        model = inspect(bundle.read(variant.file))
    except ValueError as error:
        raise InputError(f"{where}: not an ONNX model ({error})", REMADE) from error
    if model.external:
        raise InputError(f"{where}: keeps weights outside itself, in {model.external[0]}", "save it as one file")
    for told, got, want in _contract(bundle.manifest, variant, model):
        if got != want:
            raise InputError(f"{where}: {told} {_shown(got)}, the manifest says {_shown(want)}", REMADE)
    task, stated = TASKS[bundle.manifest.task], {o.name: (o.dtype, o.shape) for o in variant.outputs}
    absent = [name for name in task.outputs if name not in stated]
    if absent:
        raise InputError(f"{where}: no output {absent[0]!r}, the task {bundle.manifest.task} needs it", REMADE)
    if told := task.check_outputs(stated, bundle.manifest.labels):
        raise InputError(f"{bundle.path}: {MANIFEST}: labels: {told} in {variant.file}", REMADE)


def _contract(manifest: Manifest, variant: Variant, model: OnnxFile) -> list[tuple[str, Any, Any]]:
    """(what, in the model, in the manifest), for everything both state."""
    width, height = manifest.input.size_wh
    stated = [Value(output.name, output.dtype, output.shape) for output in variant.outputs]
    rows: list[tuple[str, Any, Any]] = [
        ("its inputs are", list(model.inputs), [Value(manifest.input.name, "uint8", (-1, height, width, 3))]),
        ("its outputs are", list(model.outputs), stated),
        ("its opset is", model.opset, variant.opset),
    ]
    # The exporter writes these into the file, so that a manifest cannot say something else unnoticed.
    own = {
        "task": manifest.task,
        "labels": list(manifest.labels),
        "input": manifest.input.model_dump(mode="json"),
    }
    for key, want in own.items():
        if key in model.metadata:
            rows.append((f"its metadata {key!r} is", _plain(key, model.metadata[key]), want))
    return rows


def _plain(key: str, text: str) -> Any:
    """A metadata value as data; text that is no JSON stays text and will differ."""
    if key == "task":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, Value) for item in value):
        return ", ".join(f"{item.name} {item.dtype} {list(item.shape)}" for item in value)
    return json.dumps(value, ensure_ascii=False, default=str)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_bundle(folder: Path, contents: Mapping[str, Any]) -> str:
    """List every file of a folder in a manifest, write it there, and open the result as a device would.

    Args:
        folder: Holds all files of the bundle already.
        contents: The manifest without `schema` and `files`.

    Returns:
        SHA-256 of the manifest, which stands for the whole bundle.

    Raises:
        InputError: what is in the folder and in `contents` is no valid bundle.
    """
    archive = open_archive(folder)
    files: dict[str, dict[str, Any]] = {}
    for name in sorted(set(archive.sizes) - {MANIFEST}):
        data = archive.read(name)
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    manifest = Manifest.model_validate({"schema": SCHEMA, **contents, "files": files})
    (folder / MANIFEST).write_bytes(canonical_json(manifest.model_dump(mode="json", by_alias=True)))
    return open_bundle(folder).manifest_sha256


def canonical_json(value: Any) -> bytes:
    """The one way this project writes JSON whose bytes are hashed: UTF-8, sorted keys, indent 1, newline at the end.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    return (json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def pack(folder: Path, file: Path) -> Path:
    """Write a bundle folder as one .edge file; the same folder always gives the same bytes.

    Raises:
        InputError: the folder is no valid bundle, or the file cannot be written.
    """
    bundle = open_bundle(folder)
    try:
        write_zip(folder, list(bundle.archive.sizes), file)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror})", "choose another place") from error
    return file
