"""Claims on runs: one file lock per run, released by the operating system when its process exits or is killed.

Processes that share a results folder share the work by these locks, whether one command started them or several.
Machines can share a folder if its file system has locks. ``flock`` is called directly: on file systems without locks,
the releases 3.13 and 3.20 of filelock report a lock as held, and a runner would wait for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from glip_adapt.bench.plan import RunKey
from glip_adapt.bench.records import PARTIAL, REPLACED, complete_replacement

CLAIMS = ".claims"  # folder of empty files, never removed: another process may be about to lock one


@contextlib.contextmanager
def claim_run(out: Path, name: str) -> Iterator[bool]:
    """Hold the run called ``name`` and yield True, or yield False where another process holds it.

    Raises:
        OSError: if the folder cannot be written, or its file system has no locks.
    """
    (out / CLAIMS).mkdir(parents=True, exist_ok=True)
    with (out / CLAIMS / name).open("a") as lock:
        mine = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the file is closed
        except BlockingIOError:
            mine = False
        except OSError as error:  # Lustre and some network file systems: two runners would do one run at a time
            raise OSError(
                error.errno, f"{out} is on a file system without locks ({error.strerror}). Put the results on another"
            ) from error
        yield mine


def is_claimed(out: Path, name: str) -> bool:
    """Say whether a process holds the run called ``name``."""
    with claim_run(out, name) as free:
        return not free


@contextlib.contextmanager
def partial_run(out: Path, key: RunKey) -> Iterator[Path]:
    """Yield an empty folder to fill; it is removed at the end unless ``write_record`` gave it its final name.

    The run must be claimed: files that an earlier process left of it are removed.
    """
    directory = out / f"{PARTIAL}{key.name}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def clear_leftovers(out: Path) -> None:
    """Remove half-written runs, but for those that a process holds; one that only lacked its final name gets it."""
    for leftover in out.glob(f"{PARTIAL}*"):
        name = leftover.name.removeprefix(REPLACED).removeprefix(PARTIAL)
        with claim_run(out, name) as free:
            if free:
                complete_replacement(out, name)
                shutil.rmtree(leftover, ignore_errors=True)
