"""Prove that a bundle gives, on this device, the answers it gave where it was made; else say where it first differs.

Levels, from the picture to the answer; the first one that differs names the broken part:

    pixels    the golden PNG decodes to the recorded pixels       else: image decoder, or colour order
    batch     resizing gives the recorded network input           else: resize
    expected  the recorded raw outputs decode to the recorded     else: labels, decode parameters, or the files
              answers, no model involved
    raw       the model's outputs are within the tolerance        else: runtime, model file, or colour order
    decoded   and decode to the recorded answers
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.bundle import REMADE, Bundle, open_bundle
from edge_demo.errors import InputError
from edge_demo.manifest import Variant
from edge_demo.runtime import RUNTIMES, open_runtime
from edge_demo.tasks import TASKS, Task

SWAPPED = "channels are swapped (RGB/BGR)"
JSON_ATOL = 2e-6  # decoded JSON is rounded to 6 digits

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Check:
    """One level on one variant in one runtime; both are empty for what no model takes part in."""

    level: str
    passed: bool
    variant: str = ""
    runtime: str = ""
    n: int = 0
    """Golden frames compared."""
    max_abs: float | None = None
    """Largest absolute difference of raw outputs, over all outputs; only on level `raw`."""
    detail: str = ""
    """What differs and which part that points to; empty when the check passed."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Every check that ran. A level is only tried when the ones before it held."""

    bundle: str
    name: str
    version: str
    manifest_sha256: str
    files: int
    """How many had the digest and size the manifest states."""
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence per failed check, in order."""
        return tuple(
            " ".join(part for part in (check.variant, check.runtime, f"{check.level}: {check.detail}") if part)
            for check in self.checks
            if not check.passed
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, schema `edge-verify/1`."""
        return {"schema": "edge-verify/1", "ok": self.ok, **asdict(self), "failures": list(self.failures)}


def verify(path: Path, runtimes: Sequence[str] = tuple(RUNTIMES)) -> VerifyReport:
    """Open a bundle with all its checks, then run its golden frames through every variant in every runtime.

    Args:
        path: Bundle folder or .edge file.
        runtimes: Keys of `RUNTIMES`; each must have tolerances in the bundle. Models run on one thread, floats in f32.

    Raises:
        InputError: opening refused the bundle; a runtime is unknown or not installed.
    """
    bundle = open_bundle(path)
    checks = [_pixels(bundle)]
    if checks[-1].passed:
        checks.append(_batch(bundle))
    for variant in bundle.manifest.variants:
        checks.append(_expected(bundle, variant.precision))
        if all(check.passed for check in checks[:2]) and checks[-1].passed:
            for runtime in runtimes:
                checks += _run_golden(bundle, variant, runtime)
    manifest = bundle.manifest
    return VerifyReport(
        str(path), manifest.name, manifest.version, bundle.manifest_sha256, len(manifest.files), tuple(checks)
    )


def why_not(bundle: Bundle, precision: str, runtime: str) -> str:
    """Why a variant in a runtime does not give its golden answers here, in words; empty when it does.

    Raises:
        InputError: the runtime is not installed, or does not load the model.
    """
    checks = [_pixels(bundle), _batch(bundle)]
    if all(check.passed for check in checks):
        checks += _run_golden(bundle, bundle.manifest.variant(precision), runtime)
    return next((f"{check.level}: {check.detail}" for check in checks if not check.passed), "")


def digest(array: NDArray[np.uint8]) -> str:
    """SHA-256 of the elements in C order: what `pixels_sha256` and `batch_sha256` hold."""
    return hashlib.sha256(array.tobytes()).hexdigest()


def golden_outputs(bundle: Bundle, precision: str) -> dict[str, NDArray[Any]]:
    """The recorded raw outputs of one variant: name -> array, first axis = golden frame.

    Raises:
        InputError: the file is no npz of plain arrays, or has others than the variant's outputs.
    """
    name = bundle.manifest.golden.outputs[precision]
    try:
        with np.load(io.BytesIO(bundle.read(name)), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, KeyError, EOFError) as error:
        raise InputError(f"{bundle.path}: {name}: not an npz of arrays ({error})", REMADE) from error
    outputs = {output.name for output in bundle.manifest.variant(precision).outputs}
    if set(arrays) != outputs:
        raise InputError(f"{bundle.path}: {name}: has {sorted(arrays)}, not {sorted(outputs)}", REMADE)
    count = len(bundle.manifest.golden.frames)
    for key, array in arrays.items():
        if array.shape[:1] != (count,):
            raise InputError(f"{bundle.path}: {name}: {key} has shape {list(array.shape)} for {count} frames", REMADE)
    return arrays


def decode_json(bundle: Bundle, raw: Arrays) -> tuple[list[Any], list[dict[str, Any]]]:
    """Raw outputs -> the task's results, and the same as JSON values."""
    task, labels = TASKS[bundle.manifest.task], bundle.manifest.labels
    results = task.decode(raw, bundle.params)
    return results, [task.to_json(result, labels) for result in results]


# --- levels ----------------------------------------------------------------------------------------------------------


def _pixels(bundle: Bundle) -> Check:
    golden = bundle.manifest.golden
    frames = bundle.frames(golden.frames)
    for name, frame, want in zip(golden.frames, frames, golden.pixels_sha256, strict=True):
        if digest(frame) != want:
            swapped = digest(frame[..., ::-1]) == want
            reason = SWAPPED if swapped else "this device's image decoder gives other pixels, or the picture is another"
            return Check("pixels", passed=False, n=len(frames), detail=f"{name}: {reason}")
    return Check("pixels", passed=True, n=len(frames))


def _batch(bundle: Bundle) -> Check:
    golden = bundle.manifest.golden
    batch = bundle.batch(bundle.frames(golden.frames))
    if digest(batch) == golden.batch_sha256:
        return Check("batch", passed=True, n=len(batch))
    if digest(batch[..., ::-1]) == golden.batch_sha256:
        return Check("batch", passed=False, n=len(batch), detail=SWAPPED)
    reason = "resizing the golden frames gives another network input: the resize here or in the manifest differs"
    return Check("batch", passed=False, n=len(batch), detail=reason)


def _expected(bundle: Bundle, precision: str) -> Check:
    """Needs no model: catches labels and decode parameters that are not those the bundle was made with."""
    name = bundle.manifest.golden.decoded[precision]
    try:
        want = json.loads(bundle.read(name))
    except ValueError as error:
        raise InputError(f"{bundle.path}: {name}: not valid JSON ({error})", REMADE) from error
    _, got = decode_json(bundle, golden_outputs(bundle, precision))
    difference = first_difference(got, want)
    detail = f"{name}: {difference}: labels or decode parameters are not the original ones" if difference else ""
    return Check("expected", not difference, variant=precision, n=len(got), detail=detail)


def _run_golden(bundle: Bundle, variant: Variant, runtime: str) -> list[Check]:
    task = TASKS[bundle.manifest.task]
    batch = bundle.batch(bundle.frames(bundle.manifest.golden.frames))
    want = golden_outputs(bundle, variant.precision)
    raw = Check("raw", passed=True, variant=variant.precision, runtime=runtime, n=len(batch))
    session = open_runtime(runtime, bundle.model_bytes(variant.precision))
    try:
        got = session.infer({"frames": batch})
        problem = outside(*_aligned(task, got, want), variant, runtime)
        if problem and not np.array_equal(batch, batch[..., ::-1]):
            swapped = session.infer({"frames": np.ascontiguousarray(batch[..., ::-1])})
            problem = SWAPPED if not outside(*_aligned(task, swapped, want), variant, runtime) else problem
    finally:
        session.close()
    largest = _largest(*_aligned(task, got, want))
    if problem:
        return [replace(raw, passed=False, max_abs=largest, detail=problem)]
    return [replace(raw, max_abs=largest), replace(raw, level="decoded", **_decoded(bundle, got, want))]


def _aligned(task: Task, got: Arrays, want: Arrays) -> tuple[Arrays, Arrays]:
    return (got, want) if task.align is None else task.align(got, want)


def _largest(got: Arrays, want: Arrays) -> float | None:
    """Largest absolute difference; None where shapes differ. In float64: whole numbers without sign would wrap."""
    if any(got[name].shape != array.shape for name, array in want.items()):
        return None
    return max(float(np.max(np.abs(got[name].astype(np.float64) - array), initial=0.0)) for name, array in want.items())


def _decoded(bundle: Bundle, got: Arrays, want: Arrays) -> dict[str, Any]:
    same = TASKS[bundle.manifest.task].same
    got_results, got_json = decode_json(bundle, got)
    want_results, want_json = decode_json(bundle, want)
    for index, (ours, golden) in enumerate(zip(got_results, want_results, strict=True)):
        if not same(ours, golden):
            name = bundle.manifest.golden.frames[index]
            detail = f"{name}: {json.dumps(got_json[index])}, expected {json.dumps(want_json[index])}"
            return {"passed": False, "detail": detail}
    return {"passed": True}


def outside(got: Arrays, want: Arrays, variant: Variant, runtime: str) -> str:
    """What lies outside the variant's tolerance in this runtime, in words; empty when nothing does."""
    tolerances = {tolerance.output: tolerance for tolerance in variant.tolerances if tolerance.runtime == runtime}
    for name, expected in want.items():
        if name not in tolerances:
            return f"{name}: the bundle states no tolerance for {runtime}"
        if got[name].shape != expected.shape:
            return f"{name}: shape {list(got[name].shape)}, expected {list(expected.shape)}"
        tolerance = tolerances[name]
        difference = np.abs(got[name].astype(np.float64) - expected)
        # NaN compares false with everything, so the test is for "inside".
        inside = difference <= tolerance.atol + tolerance.rtol * np.abs(expected)
        if not inside.all():
            limit = f"{tolerance.atol:.1e} + {tolerance.rtol:.1e} of the value"
            worst = float(np.max(difference)) if np.isfinite(difference).all() else math.nan
            return f"{name}: differs by up to {worst:.2e}, allowed {limit}: another model, or a runtime that is wrong"
    return ""


def first_difference(got: Any, want: Any, where: str = "result") -> str:
    """The first place where two JSON values differ, in words; empty when none. Floats may differ by rounding."""
    told = f"{where} is {got!r}, expected {want!r}"
    if isinstance(got, bool) != isinstance(want, bool):
        return told
    if isinstance(got, float) and isinstance(want, int | float):
        return "" if abs(got - want) <= JSON_ATOL else told
    if isinstance(got, dict) and isinstance(want, dict) and set(got) == set(want):
        pairs: list[tuple[str, Any, Any]] = [(f"{where}.{key}", got[key], want[key]) for key in got]
    elif isinstance(got, list) and isinstance(want, list) and len(got) == len(want):
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(got, want, strict=True))]
    else:
        return "" if got == want else told
    for place, ours, expected in pairs:
        if difference := first_difference(ours, expected, place):
            return difference
    return ""
