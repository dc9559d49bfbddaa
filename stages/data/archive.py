"""Reading tar archives as a stream: members come as bytes, nothing is ever unpacked to disk."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from edge_demo.errors import InputError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
REPLACE = "replace it with an undamaged copy"
# Our own limits, well above the largest set read (60,000 members, 184 MB): beyond, an archive is not what it claims.
MOST_MEMBERS, MOST_BYTES = 1_000_000, 2**30
CHUNK_BYTES = 2**20


def is_archive(file: Path) -> bool:
    """Whether the name says that it is one we read."""
    return file.name.lower().endswith(SUFFIXES)


def member_names(file: Path) -> Iterator[str]:
    """Names of the regular files, read as far as they are asked for.

    Raises:
        InputError: as `members`.
    """
    with _opened(file) as archive:
        for member in _checked(file, archive):
            yield member.name


def members(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every regular file whose name is wanted, in the archive's order; read to its very end.

    Raises:
        InputError: cannot be read, truncated or damaged; holds a link, a device or a name that leads outside; or more
            than 1 GiB or a million members.
    """
    unpacked = 0
    with _opened(file) as archive:
        for member in _checked(file, archive):
            unpacked += member.size
            if unpacked > MOST_BYTES:
                raise InputError(f"{file}: holds more than {MOST_BYTES:,} bytes", "this is not the archive expected")
            stream = archive.extractfile(member) if wanted(member.name) else None
            if stream is not None:
                data = stream.read()
                if len(data) != member.size:
                    raise InputError(f"{file}: truncated inside {member.name}", REPLACE)
                yield member.name, data
        _drain(cast(IO[bytes], archive.fileobj))


@contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, "r:*") as archive:
            yield archive
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{file}: truncated, damaged or no tar archive ({error})", REPLACE) from None
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror or error})", "check it and its permissions"
        ) from None


def _checked(file: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for count, member in enumerate(archive, start=1):
        if count > MOST_MEMBERS:
            raise InputError(f"{file}: holds more than {MOST_MEMBERS:,} members", "this is not the archive expected")
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise InputError(f"{file}: member {member.name!r} leads outside the archive", REPLACE)
        if member.isfile():
            yield member
        elif not member.isdir():
            raise InputError(f"{file}: member {member.name!r} is a link or a device, not a file", REPLACE)


def _drain(stream: IO[bytes]) -> None:
    """Reads to the end: a cut between two members looks like the end to tarfile, but not to the decompressor."""
    while stream.read(CHUNK_BYTES):
        pass
