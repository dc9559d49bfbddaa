"""A stage's key: one digest over everything its result depends on. Same key, same result, no need to run."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "stages", "edge_demo")
# Text search, because parsing took 0.5 s for all stages. A line of prose that looks like an import does no harm.
FROM_IMPORT = re.compile(r"^[ \t]*from[ \t]+(?P<module>[\w.]+)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n#]*)", re.M)
IMPORT = re.compile(r"^[ \t]*import[ \t]+(?P<names>[^\n#]+)", re.M)


def stage_key(
    *,
    name: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    code: str,
    libraries: Mapping[str, str],
    outside: str = "",
) -> str:
    """sha256 over a stage's config, inputs, code, library versions, and what it reads outside the run folder."""
    parts = {
        "stage": name,
        "config": config,
        "inputs": inputs,
        "code": code,
        "libraries": libraries,
        "outside": outside,
    }
    return hashlib.sha256(canonical(parts)).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        ValueError: NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def code_digest(module: str, globs: Iterable[str] = (), root: Path = ROOT) -> str:
    """sha256 over a module's source and that of every module of ours it imports, at any depth, in functions too.

    Following the imports, instead of listing files by hand, cannot miss one that a stage begins to use later.

    Args:
        module: Dotted name; a package counts with all its modules.
        globs: Further files, relative to `root`, e.g. templates.
        root: The folder that holds our packages.
    """
    files = {file for glob in globs for file in root.glob(glob)} | sources(module, root)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def sources(module: str, root: Path = ROOT) -> set[Path]:
    """Every source file that `code_digest` covers."""
    folder = root.joinpath(*module.split("."))
    start = set(folder.rglob("*.py")) if folder.is_dir() else {folder.with_suffix(".py")}
    found: set[Path] = set()
    queue = sorted(start)
    while queue:
        file = queue.pop()
        if file not in found:
            found.add(file)
            queue += [target for name in _imports(file, root) for target in _files(name, root)]
    return found


@cache
def _imports(file: Path, root: Path) -> frozenset[str]:
    """Dotted names of ours that a file imports; `from a import b` gives `a` and `a.b`."""
    text = file.read_text(encoding="utf-8")
    package = file.parent.relative_to(root).parts
    names = {_first_word(part) for match in IMPORT.finditer(text) for part in match["names"].split(",")}
    for match in FROM_IMPORT.finditer(text):
        base = _absolute(match["module"], package)
        names |= {base} | {f"{base}.{_first_word(part)}" for part in match["names"].strip("()").split(",")}
    return frozenset(name for name in names if name.split(".")[0] in PACKAGES)


def _first_word(text: str) -> str:
    return text.split()[0] if text.strip() else ""


def _absolute(module: str, package: tuple[str, ...]) -> str:
    name = module.lstrip(".")
    level = len(module) - len(name)
    above = package[: len(package) - level + 1] if level else ()
    return ".".join((*above, name)).strip(".")


def _files(name: str, root: Path) -> list[Path]:
    """The files that importing a dotted name runs: each package on the way, and the module."""
    parts = name.split(".")
    packages = [root.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    return [file for file in (*packages, root.joinpath(*parts).with_suffix(".py")) if file.is_file()]


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Distribution name -> installed version, without importing any; those not installed are left out."""
    return {name: version for name in names if (version := installed_version(name))}


@cache
def installed_version(name: str) -> str:
    """The installed version of a distribution; empty when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def software(names: Iterable[str]) -> dict[str, str]:
    """Python's version, and those of the libraries."""
    return {"python": platform.python_version(), **library_versions(names)}
