"""Known datasets from the Hub: downloaded where an earlier try stopped, verified, unpacked aside, then renamed.

While it works, ``.NAME.zip-CHECKSUM.part`` lies where the dataset will be; it is locked, continued by the next try, and
removed at the end. A dataset folder appears only when complete, with ``fetched.json`` in it: where it came from.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import PARTIAL_CONTENT
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from glip_adapt.config import to_mapping
from glip_adapt.data.archive import UnsafeArchiveError, check_archive, unpack
from glip_adapt.data.odinw import (
    ARCHIVE_REPOSITORY,
    DatasetSpec,
    dataset_roots,
    find_known,
    find_spec,
    known_datasets,
    missing_files,
    rendered_datasets,
)

RECORD_FILE = "fetched.json"
SUITE = "odinw13"

OnBytes = Callable[[Literal["download", "unpack"], int, int], None]

_ZIP_MAGIC = b"PK\x03\x04"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class FetchError(RuntimeError):
    """A dataset could not be fetched; what is there is whole, and a second try goes on."""


@dataclass(frozen=True, kw_only=True)
class FetchRecord:
    """Where a dataset came from; the content of ``fetched.json``."""

    dataset: str
    url: str
    "of the zip file, at its commit"
    commit: str
    size_bytes: int
    "of the zip file"
    sha256: str
    "of the zip file, as the Hub states it and as it was found"
    files: int
    unpacked_bytes: int


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A dataset on this machine.

    Attributes:
        name: official name.
        folder: pass it to ``load_dataset``; or the name, with the same root.
        is_new: False where it was there already, and nothing was done.
    """

    name: str
    folder: Path
    is_new: bool


@dataclass(frozen=True)
class _Archive:
    """A zip file as the Hub describes it."""

    url: str
    commit: str
    size_bytes: int
    sha256: str


def fetchable(names: list[str]) -> list[DatasetSpec]:
    """Return the datasets that ``names`` stand for, once each; ``odinw13`` is all thirteen.

    Raises:
        FileNotFoundError, ValueError: if a name is not that of a dataset that can be fetched.
    """
    found: dict[str, DatasetSpec] = {}
    for name in names:
        if name in rendered_datasets() or name == "glyphs13":
            raise ValueError(f"{name} is synthetic: it is rendered on first use, there is nothing to fetch.")
        specs = known_datasets() if name == SUITE else (find_spec(name),)
        found |= {spec.official_name: spec for spec in specs}
    return list(found.values())


def fetch_dataset(name: str, root: Path | None = None, on_bytes: OnBytes | None = None) -> Fetched:
    """Return where a known dataset lies, fetched from the Hub (``HF_ENDPOINT``) if it is not there yet.

    Args:
        name: official or short name.
        root: the folder for datasets; without it ``$GLIP_ADAPT_DATA``, then ``./odinw``.
        on_bytes: called with what is being done, and bytes done and in all.

    Raises:
        FileNotFoundError, ValueError: if the name is unknown.
        FetchError: if the Hub cannot be reached or answers something else than the archive, the archive is damaged or
            unsafe, the disk is too full, another process fetches the same, or something else is in the way.
    """
    (spec,) = fetchable([name])
    found = find_known(spec, dataset_roots(root))
    if found is not None:
        return _present(spec, *found)
    base = _base(root)
    target = base / spec.folder
    if target.exists():
        raise FetchError(f"{target} is in the way: it holds no {spec.official_name}. Move it, or name another --root.")
    report = on_bytes or (lambda *_: None)
    remote = _describe(spec)
    try:
        base.mkdir(parents=True, exist_ok=True)
        with _open_part(base / f".{spec.archive}-{remote.sha256[:12]}.part", remote.size_bytes, report) as part:
            if not target.exists():  # another process may just have made it
                _download(spec, remote, part)
                _unpack(spec, remote, part, target, report)
            for left in base.glob(f".{spec.archive}-*.part"):  # this one, and those of an archive since replaced
                left.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise FetchError(
            f"The disk of {base} is full. Free some space and call again: it goes on from here."
        ) from error
    return Fetched(name=spec.official_name, folder=target, is_new=True)


class _PartFile(io.BufferedRandom):
    """A download on disk, written at its end; takes no more than it was told to expect."""

    def __init__(self, path: Path, size_bytes: int, report: OnBytes) -> None:
        path.touch()
        super().__init__(io.FileIO(path, "r+"))
        self.path = path
        self.size_bytes = size_bytes
        self._report = report
        self.seek(0, os.SEEK_END)

    def write(self, content: Any) -> int:
        end = self.tell() + len(content)
        if end > self.size_bytes:
            self.remove()
            raise FetchError(f"More than the {self.size_bytes} bytes came that the Hub states. Call again.")
        self._report("download", end, self.size_bytes)
        return super().write(content)

    def remove(self) -> None:
        """Take the file off the disk, so that the next try starts anew."""
        self.path.unlink(missing_ok=True)


def _base(root: Path | None) -> Path:
    """Return the folder that datasets go into: the one called odinw, where ``root`` holds one."""
    first = dataset_roots(root)[0]
    return first / "odinw" if (first / "odinw").is_dir() else first


def _present(spec: DatasetSpec, base: Path, depth: int) -> Fetched:
    """Return a dataset that is there; one that lacks a split was not made here, and is not touched."""
    missing = missing_files(base, spec, depth)
    folder = base.joinpath("odinw", spec.folder) if depth == 0 else base / spec.folder
    if missing:
        raise FetchError(
            f"{folder} is incomplete: {', '.join(map(str, missing))} is missing. "
            "Move the folder away, or name another --root."
        )
    return Fetched(name=spec.official_name, folder=folder, is_new=False)


def _describe(spec: DatasetSpec) -> _Archive:
    """Return what the Hub says about the archive of ``spec``, and its address at that commit."""
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    url = hf_hub_url(ARCHIVE_REPOSITORY, spec.archive_path, endpoint=endpoint)
    try:
        facts = get_hf_file_metadata(url, endpoint=endpoint)
    except Exception as error:  # the Hub client raises OS, HTTP and its own errors alike
        raise FetchError(
            f"{url} could not be reached ({_reason(error)}). Check the network, or set HF_ENDPOINT to a mirror of the "
            f"Hub; or unpack {spec.archive_url} by hand."
        ) from error
    if not (facts.commit_hash and facts.size and len(facts.etag or "") == 64):
        raise FetchError(
            f"{url} was not answered by a Hub: size and SHA-256 of the file are missing. It may be the page of a login "
            "or a proxy; check the network, and HF_ENDPOINT if it is set."
        )
    pinned = hf_hub_url(ARCHIVE_REPOSITORY, spec.archive_path, revision=facts.commit_hash, endpoint=endpoint)
    return _Archive(pinned, facts.commit_hash, facts.size, str(facts.etag))


@contextmanager
def _open_part(path: Path, size_bytes: int, report: OnBytes) -> Iterator[_PartFile]:
    """Yield the download at ``path``, held by this process alone, once the disk has room for all of it."""
    have = path.stat().st_size if path.exists() else 0
    _check_space(path.parent, 2 * size_bytes - have)  # pictures unpack to no less than the archive
    with _PartFile(path, size_bytes, report) as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)  # falls with the process
            if not os.path.samestat(os.fstat(part.fileno()), path.stat()):
                raise BlockingIOError("what is locked here was removed meanwhile, and another begun in its place")
        except (BlockingIOError, FileNotFoundError) as error:
            raise FetchError(f"Another process downloads into {path}. Wait for it, then call again.") from error
        try:
            yield part
        finally:
            if part.seek(0, os.SEEK_END) == 0:
                part.remove()


def _download(spec: DatasetSpec, remote: _Archive, part: _PartFile) -> None:
    """Bring ``part`` to the size and checksum that the Hub states; goes on by itself as long as bytes come."""
    while (have := part.seek(0, os.SEEK_END)) < remote.size_bytes:
        try:
            _receive(remote, part, have)
        except FetchError:
            raise
        except Exception as error:  # as above
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            if part.seek(0, os.SEEK_END) > have:
                continue
            raise FetchError(
                f"{spec.archive} broke off after {have} of {remote.size_bytes} bytes ({_reason(error)}). "
                "Call again: it goes on from there."
            ) from error
    part.seek(0)
    found = hashlib.file_digest(part, "sha256").hexdigest()
    if found != remote.sha256:
        part.remove()
        raise FetchError(f"{spec.archive} arrived damaged: SHA-256 {found}, expected {remote.sha256}. Call again.")


def _receive(remote: _Archive, part: _PartFile, have: int) -> None:
    """Write what comes after the first ``have`` bytes, or all of it where the server knows no ranges."""
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream(
        "GET", remote.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        chunks = response.iter_bytes()
        first = next(chunks, b"")
        if response.status_code != PARTIAL_CONTENT:
            if not first.startswith(_ZIP_MAGIC):  # before it takes the place of what is there
                raise FetchError(
                    f"{remote.url} was answered by a page, of a login perhaps, not a zip file. Call again."
                )
            part.seek(0)
            part.truncate()
        for chunk in chain([first], chunks):
            part.write(chunk)
    if part.tell() < remote.size_bytes:
        raise ConnectionError("the answer ended early")


def _unpack(spec: DatasetSpec, remote: _Archive, part: _PartFile, target: Path, report: OnBytes) -> None:
    """Unpack a verified archive aside, then give it its name."""
    staging = target.with_name(f"{part.path.name}-unpacked")
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    try:
        entries = [entry for entry in check_archive(part) if entry.filename.startswith(f"{spec.folder}/")]
        total = sum(entry.file_size for entry in entries)
        _check_space(target.parent, total)
        unpack(part, entries, staging, lambda done: report("unpack", done, total))
        record = FetchRecord(
            dataset=spec.official_name,
            url=remote.url,
            commit=remote.commit,
            size_bytes=remote.size_bytes,
            sha256=remote.sha256,
            files=len(entries),
            unpacked_bytes=total,
        )
        if missing := missing_files(staging, spec, depth=1):
            raise UnsafeArchiveError(f"{missing[0].relative_to(staging)} is missing in it")
        text = json.dumps(to_mapping(record), indent=2) + "\n"
        (staging / spec.folder / RECORD_FILE).write_text(text, encoding="utf-8")
        os.rename(staging / spec.folder, target)
    except UnsafeArchiveError as error:
        part.remove()
        raise FetchError(f"{remote.url} is as the Hub states, but is not used: {error}. Tell its owner.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise FetchError(
            f"{folder} has {free / 1e9:.2f} GB free, and {needed_bytes / 1e9:.2f} GB are needed. "
            "Free some, or name another --root."
        )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
