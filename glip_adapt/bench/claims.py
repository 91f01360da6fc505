"""Who does which run: a file lock per run, which the system drops with its process however that ends.

Processes that share a results folder share the work by it, whether one command started them or several. The locks are
those of the file system, so machines share a folder only where it has them (not on Windows: one runner at a time).
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from glip_adapt.bench.plan import RunKey
from glip_adapt.bench.records import PARTIAL, REPLACED, complete_replacement

if sys.platform != "win32":
    import fcntl

CLAIMS = ".claims"  # folder of empty files, which stay: removing one that somebody is about to lock would lose the lock


@contextlib.contextmanager
def claim_run(out: Path, name: str) -> Iterator[bool]:
    """Hold the run called ``name`` and yield True, or yield False where another process holds it.

    Raises:
        OSError: if the folder cannot be written, or its file system has no locks.
    """
    (out / CLAIMS).mkdir(parents=True, exist_ok=True)
    with (out / CLAIMS / name).open("a") as lock:
        try:
            mine = _try_lock(lock.fileno())
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
    """Yield an empty folder to fill; on leaving it is removed unless ``write_record`` gave it its final name.

    The run must be claimed: what an earlier process left of it is removed.
    """
    directory = out / f"{PARTIAL}{key.name}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def clear_leftovers(out: Path) -> None:
    """Remove what processes left half-written that are dead, save a run that was only about to get its final name.

    What a living process writes stays.
    """
    for leftover in out.glob(f"{PARTIAL}*"):
        name = leftover.name.removeprefix(REPLACED).removeprefix(PARTIAL)
        with claim_run(out, name) as free:
            if free:
                complete_replacement(out, name)
                shutil.rmtree(leftover, ignore_errors=True)


def _try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed, unless it is locked already."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
