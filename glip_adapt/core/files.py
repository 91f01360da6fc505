"""Files that appear under their name only when they are complete, a lock for a folder, and checksums of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".partial"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ROOM_STEP = 2**20  # bytes
_PARTIAL = re.compile(r"\..+-[a-z0-9_]{8}\.partial")  # what ``tempfile`` makes of the name below


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield where to write what becomes ``path`` at the end; after an error, all is as it was.

    The folder of ``path`` is made if need be. What killed processes left beside it is removed.
    """
    if path.exists() and not path.is_file():  # a device or a pipe must not be replaced by a file
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each writer, in a folder, so that the file is made by whoever writes it.
    with scratch_folder(path) as folder:
        temporary = folder / path.name
        try:
            yield temporary
            flush_to_disk(temporary)  # else a power cut may leave an empty file under the final name
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise OSError(
                error.errno, f"{path} could not be written ({error.strerror}). Make room, or name another place"
            ) from error
        os.replace(temporary, path)


def flush_to_disk(file: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an existing folder against other processes that lock it, and yield whether it is held.

    The lock is the file system's: it falls with the process, and leaves no file. Where there are no such locks, every
    process holds the folder.

    Args:
        folder: what to hold.
        wait: whether to wait for a process that holds it.
    """
    if sys.platform == "win32":
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor, wait)
    finally:
        os.close(descriptor)


def check_room(folder: Path, size_bytes: int) -> None:
    """Write ``size_bytes`` where ``folder`` is or will be made, and remove them again.

    Raises:
        OSError: if that fails; says why, and what to do.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            for _ in range(0, size_bytes, _ROOM_STEP):
                file.write(bytes(min(_ROOM_STEP, size_bytes)))
    except OSError as error:
        raise OSError(
            f"{folder} cannot take the {size_bytes / 1e6:.1f} MB that are to be saved there ({error.strerror}). "
            "Make room, or name another folder."
        ) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_partials(folder: Path) -> None:
    """Remove what killed processes were about to write into ``folder``; what a living one writes stays."""
    for left in folder.glob(".*" + _SUFFIX):
        if _PARTIAL.fullmatch(left.name):
            with contextlib.suppress(OSError), locked(left, wait=False) as is_dead:
                if is_dead:
                    shutil.rmtree(left, ignore_errors=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, in which to make what becomes ``path``; it is removed at the end.

    Those of killed processes are removed as well.
    """
    clear_partials(path.parent)
    with contextlib.ExitStack() as held:
        folder = Path()
        while not folder.name or not folder.exists():  # one that is not locked yet may be taken for a dead one
            folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-", suffix=_SUFFIX))
            with contextlib.suppress(FileNotFoundError):
                held.enter_context(locked(folder))
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file until it is closed; return whether that was possible."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return wait
    return True
