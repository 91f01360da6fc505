"""Zip files from others: judged by their directory before anything is written, then unpacked within what it states."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

MAX_ENTRIES = 200_000
MAX_UNPACKED_BYTES = 64 * 2**30
MAX_RATIO = 100  # unpacked bytes per byte of the file; pictures reach 1.1, COCO files 30, deflate 1032
_COPY_BYTES = 2**20
_PLAIN_FLAGS = 0x2 | 0x4 | 0x8 | 0x800  # level of compression, sizes behind the data, names in UTF-8


class UnsafeArchiveError(ValueError):
    """A zip file is damaged, or holds what no dataset needs."""


def check_archive(file: IO[bytes]) -> list[ZipInfo]:
    """Return the files in a zip file, without its folders, once every entry is known to be harmless.

    Args:
        file: opened for reading, seekable.

    Raises:
        UnsafeArchiveError: if it is no zip file; an entry lies outside the folder it is unpacked into or below a file,
            is a link or a device, is encrypted or comes twice; or the entries are too many, too large or pressed too
            hard.
    """
    size = file.seek(0, os.SEEK_END)
    try:
        entries = ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise UnsafeArchiveError(f"it is not a zip file ({error})") from error
    if len(entries) > MAX_ENTRIES:
        raise UnsafeArchiveError(f"it has {len(entries)} entries, more than {MAX_ENTRIES}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > min(MAX_UNPACKED_BYTES, MAX_RATIO * size):
        raise UnsafeArchiveError(
            f"its {size} bytes would unpack to {unpacked}, more than {MAX_RATIO} times as many or than "
            f"{MAX_UNPACKED_BYTES}"
        )
    seen: dict[PurePosixPath, ZipInfo] = {}
    for entry in entries:
        _check_entry(entry)
        path = PurePosixPath(entry.filename)
        if path in seen:
            raise UnsafeArchiveError(f"entry {entry.filename!r} comes twice")
        seen[path] = entry
    _check_parents(seen)
    return [entry for entry in entries if not entry.is_dir()]


def unpack(file: IO[bytes], entries: list[ZipInfo], folder: Path, on_bytes: Callable[[int], None]) -> None:
    """Write ``entries`` of a checked zip file below ``folder``.

    Args:
        file: what ``check_archive`` read.
        entries: what it returned, or a part of it.
        folder: where to write; made if need be.
        on_bytes: called with the number of bytes written so far.

    Raises:
        UnsafeArchiveError: if an entry does not unpack to the size and checksum that the directory states.
        OSError: if a file cannot be written.
    """
    done = 0
    with ZipFile(file) as archive:
        for entry in entries:
            target = folder.joinpath(*PurePosixPath(entry.filename).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as copy:
                try:
                    with archive.open(entry) as source:  # reads at most the stated size, then checks the CRC
                        shutil.copyfileobj(source, copy, _COPY_BYTES)
                except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
                    raise UnsafeArchiveError(f"entry {entry.filename!r} is damaged ({error})") from error
            done += entry.file_size
            on_bytes(done)


def _check_entry(entry: ZipInfo) -> None:
    """Refuse a path that leads out, anything that is neither file nor folder, and what cannot be read."""
    path = PureWindowsPath(entry.filename)  # takes both kinds of slash, and drive letters
    if path.anchor or ".." in path.parts or not path.parts:
        raise UnsafeArchiveError(f"entry {entry.filename!r} lies outside the folder it would be unpacked into")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeArchiveError(f"entry {entry.filename!r} is a {'link' if kind == stat.S_IFLNK else 'device'}")
    if entry.flag_bits & ~_PLAIN_FLAGS or entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise UnsafeArchiveError(f"entry {entry.filename!r} is encrypted, or compressed by another method than deflate")


def _check_parents(entries: dict[PurePosixPath, ZipInfo]) -> None:
    """Refuse an entry below one that is a file: there is no such place."""
    for above, below in pairwise(sorted(entries, key=lambda path: path.parts)):  # what lies below a path follows it
        if not entries[above].is_dir() and below.parts[: len(above.parts)] == above.parts:
            raise UnsafeArchiveError(f"entry {entries[below].filename!r} lies below {str(above)!r}, which is a file")
