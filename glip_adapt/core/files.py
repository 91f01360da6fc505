"""Write files whole or not at all, lock folders, check for room, compute checksums."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_SUFFIX = ".partial"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ROOM_STEP = 2**20  # bytes
_PARTIAL = re.compile(r"\..+-[a-z0-9_]{8}\.partial")  # names that ``tempfile`` gives in ``scratch_folder``


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and move the file written there to ``path`` at the end; an error leaves the old file.

    Makes the folder of ``path`` if there is none. Removes temporary files of killed processes beside ``path``.

    Raises:
        OSError: if the file cannot be written; a full disk is named in the message.
    """
    if path.exists() and not path.is_file():  # a device or a pipe must not be replaced by a file
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each writer has its own folder and makes the file in it, with the usual permissions.
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
    """Lock an existing folder against other processes, and yield whether this process holds the lock.

    The lock belongs to the file system: it ends with the process, and leaves no file. On a system without such locks,
    every process holds the folder. With ``wait``, a process waits for the one that holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor, wait)
    finally:
        os.close(descriptor)


def check_room(folder: Path, size_bytes: int) -> None:
    """Check that ``size_bytes`` can be written to ``folder``, or to the place where it will be made.

    Raises:
        OSError: if they cannot, with the reason.
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
    """Remove temporary files of killed processes from ``folder``; those of living processes stay."""
    for left in folder.glob(".*" + _SUFFIX):
        if _PARTIAL.fullmatch(left.name):
            with suppress(OSError), locked(left, wait=False) as is_dead:
                if is_dead:
                    shutil.rmtree(left, ignore_errors=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` for making its content; it is removed at the end.

    Folders of killed processes are removed as well.
    """
    clear_partials(path.parent)
    with ExitStack() as held:
        folder = Path()
        while not folder.name or not folder.exists():  # another process may remove it before it is locked
            folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-", suffix=_SUFFIX))
            with suppress(FileNotFoundError):
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
