"""Fetch known datasets from the Hub: download or resume, verify, unpack, rename.

Work happens in the folder ``.NAME.zip-CHECKSUM`` beside the future dataset. It is locked, resumed by the next try and
removed at the end. A dataset folder appears only when it is complete; ``fetched.json`` in it says where it came from.
A refused archive is kept, and the message says where.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from glip_adapt.core.downloads import DownloadError, HubFile, check_space, describe, download
from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.core.files import locked
from glip_adapt.data.archive import UnsafeArchiveError, check_archive, unpack
from glip_adapt.data.glyphs13 import find_glyph_set
from glip_adapt.data.odinw import (
    ARCHIVE_REPOSITORY,
    DatasetSpec,
    dataset_roots,
    find_known,
    find_spec,
    folder_of,
    groups,
    missing_files,
)

RECORD_FILE = "fetched.json"

OnBytes = Callable[[Literal["download", "unpack"], int, int], None]

_UNPACKED = "unpacked"

logger = logging.getLogger(__name__)


class FetchError(GlipAdaptError, RuntimeError):
    """A dataset could not be fetched. Existing datasets are unharmed, and a second try resumes."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A dataset on this machine.

    Attributes:
        name: official name.
        folder: for ``load_dataset``, which also takes the name with the same root.
        is_new: False if it was there already, and nothing was done.
    """

    name: str
    folder: Path
    is_new: bool


def fetchable(names: list[str]) -> list[DatasetSpec]:
    """Return the datasets with these names, once each; ``odinw13`` and ``odinw35`` stand for all theirs.

    Raises:
        FileNotFoundError, ValueError: if there is no such dataset, or it cannot be fetched.
    """
    found: dict[str, DatasetSpec] = {}
    for name in names:
        if name == "glyphs13" or find_glyph_set(name) is not None:
            raise ValueError(f"{name} is synthetic: it is rendered on first use, there is nothing to fetch.")
        specs = groups().get(name) or (find_spec(name),)
        for spec in specs:
            if not spec.archive:
                get = spec.how_to_get(dataset_roots(None, spec)[0])
                raise ValueError(f"{spec.official_name} is not fetched: it has no archive to verify. {get}.")
            found[spec.official_name] = spec
    return list(found.values())


def fetch_dataset(name: str, root: Path | None = None, on_bytes: OnBytes | None = None) -> Fetched:
    """Return the place of a known dataset; fetch it from the Hub (``HF_ENDPOINT``) if it is not there yet.

    Args:
        name: official or short name.
        root: the folder for datasets; by default ``$GLIP_ADAPT_DATA``, then ``./odinw``.
        on_bytes: called with ``"download"`` or ``"unpack"``, the bytes done so far, and all bytes.

    Raises:
        FileNotFoundError, ValueError: if the name is unknown.
        FetchError: if the Hub cannot be reached or does not send the archive, the archive is damaged or unsafe, the
            disk is full or not writable, or another file is in the way.
    """
    (spec,) = fetchable([name])
    first = dataset_roots(root, spec)[0]
    base = first / "odinw" if (first / "odinw").is_dir() else first
    found = find_known(spec, dataset_roots(root, spec))
    if found is not None:
        present = _present(spec, *found)
        _clear_leftovers(base, spec)  # of a process that was killed while it did this
        return present
    target = base / spec.folder
    if target.exists():
        raise FetchError(f"{target} is in the way: it holds no {spec.official_name}. Move it, or name another --root.")
    try:
        file = describe(ARCHIVE_REPOSITORY, spec.archive_path).pinned()
        if len(file.checksum) != 64:
            raise DownloadError(f"{file.url} was not answered by a Hub: the SHA-256 of the file is missing.")
        with _scratch(base / f".{spec.archive}-{file.checksum[:12]}") as scratch:
            if not target.exists():  # another process may just have made it
                _fetch(spec, file, scratch, target, on_bytes or (lambda *_: None))
    except DownloadError as error:
        raise FetchError(f"{error} By hand: fetch {spec.archive_url}, and unpack it in {base}.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"The disk of {base} is full. Free some space and call again: it goes on from here."
        else:
            text = f"{spec.official_name} could not be written ({error}). Name another --root, or mend that."
        raise FetchError(text) from error
    _clear_leftovers(base, spec)
    return Fetched(name=spec.official_name, folder=folder_of(base, spec, depth=1), is_new=True)


def _present(spec: DatasetSpec, base: Path, depth: int) -> Fetched:
    """Return a dataset that is there. One without a needed split did not come from here, and raises FetchError."""
    folder = folder_of(base, spec, depth)
    if missing := _missing(base, spec, depth):
        raise FetchError(
            f"{folder} is incomplete: {', '.join(map(str, missing))} is missing. "
            "Move the folder away, or name another --root."
        )
    return Fetched(name=spec.official_name, folder=folder, is_new=False)


def _missing(base: Path, spec: DatasetSpec, depth: int) -> list[Path]:
    """Return the missing annotation files of the splits that every dataset needs."""
    needed = {name: split for name, split in spec.splits.items() if name in ("train", "val", "test")}
    return missing_files(base, replace(spec, splits=needed), depth)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a folder for unfinished files, locked by this process; if it stays empty, it is removed."""
    with ExitStack() as held:
        while not _hold(folder, held):
            pass
        try:
            yield folder
        finally:
            shutil.rmtree(folder / _UNPACKED, ignore_errors=True)
            if not _size(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _hold(folder: Path, held: ExitStack) -> bool:
    """Make and lock a folder; return False if the last holder removed it meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        before = folder.stat()
        with locked(folder, wait=False) as is_free:
            if not is_free:
                logger.warning("%s is in use by another process: waiting for it.", folder)
        held.enter_context(locked(folder))
        return os.path.samestat(before, folder.stat())
    return False


def _fetch(spec: DatasetSpec, file: HubFile, scratch: Path, target: Path, report: OnBytes) -> None:
    """Download an archive into ``scratch``, unpack it there, and give the dataset its name."""
    shutil.rmtree(scratch / _UNPACKED, ignore_errors=True)  # of a process that was killed
    check_space(scratch, 2 * file.size_bytes - _size(scratch))  # images unpack to at least the size of the archive
    archive = download(file, scratch, lambda done, total: report("download", done, total))
    try:
        _unpack(spec, file, archive, scratch / _UNPACKED, report)
    except UnsafeArchiveError as error:
        raise FetchError(
            f"{file.url} is as the Hub states, but is not used: {error}. Tell its owner. The archive is kept as "
            f"{archive}: unpack it by hand if you trust it."
        ) from error
    os.rename(scratch / _UNPACKED / spec.folder, target)


def _unpack(spec: DatasetSpec, file: HubFile, archive: Path, folder: Path, report: OnBytes) -> None:
    """Write a dataset and its record below ``folder``."""
    with archive.open("rb") as content:
        entries = check_archive(content, spec.folder)
        total = sum(entry.file_size for entry in entries)
        check_space(folder.parent, total)
        unpack(content, entries, folder, lambda done: report("unpack", done, total))
    if missing := _missing(folder, spec, depth=1):
        raise UnsafeArchiveError(f"{missing[0].relative_to(folder)} is missing in it")
    for path in missing_files(folder, spec, depth=1):
        logger.warning("%s comes without %s, and is used without it.", spec.official_name, path.relative_to(folder))
    record = {
        "dataset": spec.official_name,
        "url": file.url,  # of the zip file, at its commit
        "commit": file.commit,
        "size_bytes": file.size_bytes,  # of the zip file
        "sha256": file.checksum,  # of the zip file, stated by the Hub and verified
        "files": len(entries),
        "unpacked_bytes": total,
    }
    text = json.dumps(record, indent=2) + "\n"
    (folder / spec.folder / RECORD_FILE).write_text(text, encoding="utf-8")


def _clear_leftovers(base: Path, spec: DatasetSpec) -> None:
    """Remove unfinished files of a dataset that is complete, also those of older archives."""
    for left in base.glob(f".{spec.archive}-*"):
        with suppress(OSError):
            if not left.is_dir():  # of an earlier release
                left.unlink()
                continue
            with locked(left, wait=False) as is_dead:
                if is_dead:
                    shutil.rmtree(left, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
