"""Check and unpack untrusted zip files: the directory is checked first, and unpacking keeps to its sizes."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from glip_adapt.core.errors import GlipAdaptError

MAX_ENTRIES = 200_000
MAX_DIRECTORY_BYTES = 32 * 2**20  # 160 per entry; it is read as a whole, and takes 10 times as much memory
MAX_PARTS = 32  # of a path
MAX_NAME_BYTES = 255  # of each, the limit of common file systems
MAX_UNPACKED_BYTES = 64 * 2**30
MAX_RATIO = 100  # unpacked bytes per byte of the file; images reach 1.1, COCO files 30, deflate 1032
_MOST_SHOWN = 100  # characters of a name
_PLAIN_FLAGS = 0x2 | 0x4 | 0x8 | 0x800  # level of compression, sizes behind the data, names in UTF-8


class UnsafeArchiveError(GlipAdaptError, ValueError):
    """A zip file is damaged, or has entries that no dataset needs."""


class _Directory:
    """A zip file that refuses to read more than a directory of a sound size at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size} bytes, more than {MAX_DIRECTORY_BYTES}")
        return self._file.read(size)


def check_archive(file: IO[bytes], folder: str) -> list[ZipInfo]:
    """Return the files in a top folder of an opened, seekable zip file, after checking that all of them are harmless.

    Entries outside the folder (``__MACOSX/``, ``.DS_Store``) are neither checked nor returned. Device names of Windows,
    such as ``aux.jpg``, are allowed.

    Raises:
        UnsafeArchiveError: if it is no zip file; if an entry in ``folder`` leads out of it, lies below a file, has too
            long a name, is a link or a device, is encrypted or comes twice; or if the entries are too many, too large
            or compressed too much.
    """
    size = file.seek(0, os.SEEK_END)
    try:
        everything = ZipFile(cast(IO[bytes], _Directory(file))).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise UnsafeArchiveError(f"it is not a zip file ({error})") from error
    if len(everything) > MAX_ENTRIES:
        raise UnsafeArchiveError(f"it has {len(everything)} entries, more than {MAX_ENTRIES}")
    entries = [entry for entry in everything if entry.filename.startswith(f"{folder}/")]
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
            raise UnsafeArchiveError(f"entry {_shown(entry)} comes twice")
        seen[path] = entry
    for above, below in pairwise(sorted(seen, key=lambda path: path.parts)):  # entries below a path follow it
        if not seen[above].is_dir() and below.parts[: len(above.parts)] == above.parts:
            raise UnsafeArchiveError(f"entry {_shown(seen[below])} lies below {str(above)!r}, which is a file")
    return [entry for entry in entries if not entry.is_dir()]


def unpack(file: IO[bytes], entries: list[ZipInfo], folder: Path, on_bytes: Callable[[int], None]) -> None:
    """Write ``entries``, all or some that ``check_archive`` returned for ``file``, below ``folder``, made if need be.

    ``on_bytes`` is called with the number of bytes written so far.

    Raises:
        UnsafeArchiveError: if an entry does not have the size and checksum of the directory.
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
                        shutil.copyfileobj(source, copy, 2**20)
                except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
                    raise UnsafeArchiveError(f"entry {_shown(entry)} is damaged ({error})") from error
            done += entry.file_size
            on_bytes(done)


def _check_entry(entry: ZipInfo) -> None:
    """Refuse paths that lead out or are too long, entries other than files and folders, and unknown compression."""
    path = PureWindowsPath(entry.filename)  # takes both kinds of slash, and drive letters
    if path.anchor or ".." in path.parts or not path.parts:
        raise UnsafeArchiveError(f"entry {_shown(entry)} lies outside the folder it would be unpacked into")
    if len(path.parts) > MAX_PARTS or max(len(part.encode(errors="replace")) for part in path.parts) > MAX_NAME_BYTES:
        raise UnsafeArchiveError(
            f"entry {_shown(entry)} has a name of more than {MAX_NAME_BYTES} bytes, or lies more than {MAX_PARTS} "
            "folders deep"
        )
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeArchiveError(f"entry {_shown(entry)} is a {'link' if kind == stat.S_IFLNK else 'device'}")
    if entry.flag_bits & ~_PLAIN_FLAGS or entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise UnsafeArchiveError(f"entry {_shown(entry)} is encrypted, or compressed by another method than deflate")


def _shown(entry: ZipInfo) -> str:
    name = entry.filename
    return repr(name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}…")
