"""A folder, or the same folder as a zip, read so that no file outside it can be meant. Nothing is extracted."""

from __future__ import annotations

import os
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_demo.errors import InputError

MAX_ENTRIES = 50_000
MAX_BYTES = 4 * 1024**3
# Deflate cannot beat 1032:1; models, PNG and JSON stay far below 100:1.
MAX_RATIO = 100
RATIO_FREE_BYTES = 64 * 1024  # a small file of one repeated character is no bomb
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can state
REMADE = "copy or pack the bundle again from its source"


@dataclass(frozen=True, slots=True)
class Archive:
    """What lies at `path`: file name (with /) -> size in bytes, and how to read one file."""

    path: Path
    sizes: dict[str, int]
    read: Callable[[str], bytes]
    """name -> its bytes, as they are now; InputError when they cannot be read."""


def open_archive(path: Path) -> Archive:
    """List a folder or zip, refusing everything that could reach outside it or swamp the device.

    Raises:
        InputError: not there or neither folder nor zip; truncated; an absolute, escaping or odd name, a link or special
            file, names that collide, too many entries, too large, or compressed like a zip bomb.
    """
    if path.is_dir():
        archive = _folder(path)
    elif path.is_file():
        archive = _zip(path)
    else:
        raise InputError(f"{path}: no such bundle", "name a bundle folder or a .edge file")
    _check_names(path, list(archive.sizes))
    if len(archive.sizes) > MAX_ENTRIES:
        raise InputError(f"{path}: {len(archive.sizes)} entries, more than the {MAX_ENTRIES} a bundle may have", REMADE)
    total = sum(archive.sizes.values())
    if total > MAX_BYTES:
        raise InputError(f"{path}: {total} bytes when unpacked, more than the {MAX_BYTES} a bundle may have", REMADE)
    return archive


def write_zip(folder: Path, names: list[str], file: Path) -> None:
    """Write the named files as a zip whose bytes depend on nothing but their names and content.

    Stored, not deflated: deflate's output differs between zlib builds, and weights and PNG hardly shrink.
    The file appears only when it is complete.
    """
    partial = file.with_name(file.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name in sorted(names):
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.create_system = 3  # Unix, so that the permissions below count
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                archive.writestr(entry, (folder / name).read_bytes())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _folder(path: Path) -> Archive:
    sizes: dict[str, int] = {}
    for root, folders, files in os.walk(path, followlinks=False, onerror=_cannot_list):
        for name in sorted((*folders, *files)):
            entry = Path(root) / name
            mode = entry.lstat()
            if stat.S_ISLNK(mode.st_mode):
                raise InputError(f"{entry}: a symlink; a bundle holds regular files only", REMADE)
            if stat.S_ISREG(mode.st_mode):
                sizes[entry.relative_to(path).as_posix()] = mode.st_size
            elif not stat.S_ISDIR(mode.st_mode):
                raise InputError(f"{entry}: a special file; a bundle holds regular files only", REMADE)

    def read(name: str) -> bytes:
        try:
            # Not followed should the file have become a link since it was listed.
            descriptor = os.open(path / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            with os.fdopen(descriptor, "rb") as file:
                return file.read()
        except OSError as error:
            raise InputError(f"{path / name}: cannot be read ({error.strerror})", REMADE) from error

    return Archive(path, sizes, read)


def _cannot_list(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror})", "check its permissions")


def _zip(path: Path) -> Archive:
    try:
        # Stays open for as long as `read` is in use: the same file is read even if another takes its place.
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a zip file, or a truncated one ({error})", REMADE) from error
    entries = archive.infolist()
    if entries and min(entry.header_offset for entry in entries) != 0:
        # zipfile takes the last directory it finds: in a truncated bundle that of an npz inside.
        raise InputError(f"{path}: not a zip file, or a truncated one (its first entry is not at its start)", REMADE)
    _check_names(path, [entry.orig_filename for entry in entries])
    for entry in entries:
        _check_entry(path, entry)

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, KeyError, EOFError, RuntimeError) as error:
            raise InputError(f"{path}: {name} cannot be read from it ({error})", REMADE) from error

    return Archive(path, {entry.filename: entry.file_size for entry in entries}, read)


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name, mode = entry.orig_filename, entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise InputError(f"{path}: {name} is a symlink; a bundle holds regular files only", REMADE)
    if entry.is_dir() or stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise InputError(f"{path}: {name} is no regular file; a bundle holds regular files only", REMADE)
    if entry.flag_bits & 0x1:
        raise InputError(f"{path}: {name} is encrypted", REMADE)
    if entry.file_size > MAX_RATIO * entry.compress_size + RATIO_FREE_BYTES:
        told = f"{entry.compress_size} bytes that unpack to {entry.file_size}"
        raise InputError(f"{path}: {name} is compressed like a zip bomb ({told})", REMADE)


def _check_names(path: Path, names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if name.startswith("/") or "\\" in name or ":" in name:
            raise InputError(f"{path}: {name!r} is an absolute path or one of another system", REMADE)
        if ".." in name.split("/"):
            raise InputError(f"{path}: {name!r} reaches outside the bundle", REMADE)
        if any(part in ("", ".") for part in name.removesuffix("/").split("/")) or not name.isprintable():
            raise InputError(f"{path}: {name!r} is no plain file name", REMADE)
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            told = "is there twice" if seen[key] == name else f"and {seen[key]!r} differ only in case or accents"
            raise InputError(f"{path}: {name!r} {told}", REMADE)
        seen[key] = name
