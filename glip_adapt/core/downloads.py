"""Download files from the Hub: weights, vocabularies, adapters and archives.

``hf_hub_download`` keeps the cache: layout, links, branches. Its transfer is not used (huggingface_hub 2.4,
file_download.py). When a connection breaks for good, it drops the bytes received so far. It appends the body of any
answer to a range request, and compares no checksum. It waits as long as a server asks, and gives up at the first 503.
So a file is received here, under the lock of ``hf_hub_download`` and at the place where it looks first.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, tqdm

from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.core.plain_text import excerpt
from glip_adapt.core.retries import Patience, StatusError, advice, busy_is_an_error, is_busy, patiently, reason

SLOW_WINDOW_S, SLOW_BYTES = 20.0, 20_000  # a download with fewer bytes in this time is given up
ENOUGH_BYTES = 2**20  # an answer with so many bytes is no failed try, even if it breaks off

OnBytes = Callable[[int, int], None]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_PAGE_STARTS = (b"<!doctype html", b"<html")


class DownloadError(GlipAdaptError, RuntimeError):
    """A file could not be fetched; the received part is kept, and the next call continues it."""


class DamagedDownloadError(DownloadError):
    """A received file had another checksum than the Hub states, and was removed."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """Facts of a file on the Hub.

    Attributes:
        repository: ``"owner/name"``.
        name: path of the file in the repository.
        revision: requested branch, tag or commit.
        commit: commit of the revision.
        size_bytes: size of the file.
        checksum: SHA-256 of a large file, git's SHA-1 of a small file, as hex.
    """

    repository: str
    name: str
    revision: str
    commit: str
    size_bytes: int
    checksum: str

    @property
    def url(self) -> str:
        """Address of the file."""
        return hf_hub_url(self.repository, self.name, revision=self.revision, endpoint=hub_endpoint())

    def pinned(self) -> HubFile:
        """Return the file at its commit, which stays when the branch moves."""
        return replace(self, revision=self.commit)


def hub_cache() -> Path:
    """Return the folder in which fetched files are kept."""
    return Path(constants.HF_HUB_CACHE)


def hub_is_offline() -> bool:
    """Return whether ``HF_HUB_OFFLINE`` forbids requests to the Hub."""
    return bool(constants.HF_HUB_OFFLINE)


def hub_endpoint() -> str:
    """Return the address of the Hub, or of the mirror that ``HF_ENDPOINT`` names."""
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def cached(repository: str, name: str) -> Path | None:
    """Return the path of a file in the Hub's cache, or None; sends nothing."""
    try:
        return Path(hf_hub_download(repository, name, local_files_only=True, cache_dir=constants.HF_HUB_CACHE))
    except FileNotFoundError:
        return None


def describe(repository: str, name: str, revision: str = "main") -> HubFile:
    """Ask the Hub for commit, size and checksum of a file, without fetching it.

    Raises:
        DownloadError: if the Hub cannot be reached or refuses, there is no such file, or another server answered.
    """
    with _one_error(f"{name} of {repository}"):
        url = hf_hub_url(repository, name, revision=revision, endpoint=hub_endpoint())
        facts = patiently(lambda: get_hf_file_metadata(url, endpoint=hub_endpoint()))
    commit, checksum = facts.commit_hash or "", facts.etag or ""
    if not (_COMMIT.fullmatch(commit) and _CHECKSUM.fullmatch(checksum) and facts.size is not None and facts.size >= 0):
        raise DownloadError(
            f"{url} was not answered by a Hub: commit, size or checksum of the file are missing. It may be the page of "
            "a login or a proxy. Check the network, and HF_ENDPOINT if it is set."
        )
    return HubFile(
        repository=repository, name=name, revision=revision, commit=commit, size_bytes=facts.size, checksum=checksum
    )


def download(file: HubFile, cache: Path | None = None, on_bytes: OnBytes | None = None) -> Path:
    """Return the local path of a file with the stated checksum; download it if it is not in the cache.

    Continues the part that an earlier call has received. A second process waits for the first.

    Args:
        file: facts from ``describe``.
        cache: folder with the layout of the Hub's cache; that cache by default.
        on_bytes: called with (bytes received, bytes in all); by default, a progress bar is shown.

    Raises:
        DownloadError: if the connection breaks, stalls or is refused, the server stays busy, the answer is not the
            file, or the disk is full.
        DamagedDownloadError: if the checksum differs.
    """
    cache = cache or Path(constants.HF_HUB_CACHE)
    folder = repo_folder_name(repo_id=file.repository, repo_type="model")
    blob = cache / folder / "blobs" / file.checksum
    lock = cache / ".locks" / folder / f"{file.checksum}.lock"
    with _one_error(f"{file.name} of {file.repository}"):
        for parent in (blob.parent, lock.parent):
            parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not blob.exists() or _checksum(blob, file) != file.checksum:
                _fetch(file, blob, on_bytes)
        path = _linked(file, cache)
    if not path.samefile(blob):  # the branch has moved meanwhile, or there are no links on this disk
        _check(path, file)
    return path


@contextmanager
def _one_error(what: str) -> Iterator[None]:
    """Turn any error of the Hub client or the disk into a DownloadError with advice."""
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:  # the client raises OS, HTTP, value and its own errors alike
        raise DownloadError(f"{what} could not be fetched ({reason(error)}). {advice(error)}") from error


def _fetch(file: HubFile, blob: Path, on_bytes: OnBytes | None) -> None:
    """Write the whole file to ``blob``; continue the ``.incomplete`` part beside it."""
    part = blob.with_name(f"{blob.name}.incomplete")
    part.touch()
    try:
        with part.open("r+b") as target:
            have = target.seek(0, os.SEEK_END)
            if have > file.size_bytes:
                have = target.truncate(0)
            check_space(part.parent, file.size_bytes - have)
            with _progress(file, have, on_bytes) as report:
                _receive(file, target, report)
            os.fsync(target.fileno())
        _check(part, file)
        os.replace(part, blob)
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise DownloadError if the disk of ``folder`` has less free space than ``needed_bytes``."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DownloadError(
            f"{folder} has {free / 1e9:.2f} GB free, and {needed_bytes / 1e9:.2f} GB are needed. "
            "Free some, or name another folder."
        )


@contextmanager
def _progress(file: HubFile, have: int, on_bytes: OnBytes | None) -> Iterator[OnBytes]:
    """Yield ``on_bytes``, or a function that moves a progress bar of the Hub client."""
    if on_bytes is not None:
        yield on_bytes
        return
    options = {"unit": "B", "unit_scale": True, "desc": file.name, "disable": None}  # None: only on a terminal
    with tqdm(total=file.size_bytes, initial=have, **options) as bar:
        yield lambda done, _: bar.update(done - bar.n)


def _receive(file: HubFile, target: BinaryIO, report: OnBytes) -> None:
    """Append to ``target`` until it has the stated size; ask again while answers bring enough bytes."""
    patience = Patience()
    while (have := target.seek(0, os.SEEK_END)) < file.size_bytes:
        error: Exception | None = None
        try:
            _take_answer(file, target, have, report)
        except DownloadError:
            raise
        except Exception as caught:  # the client raises many kinds
            if isinstance(caught, OSError) and caught.errno is not None:  # of the disk: the client wraps network errors
                raise
            error = caught
        came = target.seek(0, os.SEEK_END) - have
        if came >= min(ENOUGH_BYTES, (file.size_bytes - have) / 4):
            patience = Patience()
        elif not ((came > 0 or is_busy(error)) and patience.allows(error)):
            if error is not None and have + came <= 0:
                raise error
            raise DownloadError(
                f"{file.name} broke off after {have + came} of {file.size_bytes} bytes ({reason(error)}). "
                f"{advice(error)} Call again: it goes on from there."
            ) from error


def _take_answer(file: HubFile, target: BinaryIO, have: int, report: OnBytes) -> None:
    """Write the bytes of one answer: those after ``have``, or all where the server knows no ranges."""
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", file.url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        done = start = _first_byte(response, file, have)
        window_s, window_bytes = monotonic(), start
        for chunk in response.iter_bytes():
            if done == start == 0:
                if chunk.lstrip()[:14].lower().startswith(_PAGE_STARTS):
                    raise _page(file)
                target.truncate(target.seek(0))  # not earlier, for the answer might be a page
            done += target.write(chunk[: file.size_bytes - done])
            report(done, file.size_bytes)
            if done == file.size_bytes:
                return
            if monotonic() - window_s > SLOW_WINDOW_S:
                if done - window_bytes < SLOW_BYTES:
                    raise DownloadError(
                        f"{file.name} comes too slowly: {done - window_bytes} bytes in {SLOW_WINDOW_S:.0f} s. Call "
                        f"again later: it goes on from {done} of {file.size_bytes} bytes."
                    )
                window_s, window_bytes = monotonic(), done


def _first_byte(response: Any, file: HubFile, have: int) -> int:
    """Return the byte of the file at which an answer begins; raise for an error, a page, another part or file."""
    headers: Mapping[str, str] = response.headers
    if response.status_code >= 400:
        raise StatusError(response)
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() in _PAGE_TYPES:
        raise _page(file)
    if response.status_code == 206:
        span = headers.get("Content-Range", "")
        found = _RANGE.fullmatch(span)
        if found is None or (int(found[1]), int(found[2])) != (have, file.size_bytes):
            raise DownloadError(
                f"{file.url} was answered with another part than asked for: expected the bytes from {have} of "
                f"{file.size_bytes}, got {excerpt(span) or 'no Content-Range'}. A proxy may be at fault; call again."
            )
        return have
    length = None if "Content-Encoding" in headers else headers.get("Content-Length")
    if response.status_code != 200 or length not in (None, str(file.size_bytes)):
        raise DownloadError(
            f"{file.url} was not answered with the file: expected status 200 and {file.size_bytes} bytes, got "
            f"{response.status_code} and {excerpt(length or 'no length')}. A proxy may be at fault; call again."
        )
    return 0


def _page(file: HubFile) -> DownloadError:
    return DownloadError(
        f"{file.url} was answered by a page, of a login perhaps, not by the file. Check the network, then call again."
    )


def _check(path: Path, file: HubFile) -> None:
    """Remove a file with another checksum than stated, and raise DamagedDownloadError."""
    found = _checksum(path, file)
    if found != file.checksum:
        path.unlink()
        kind = "SHA-256" if len(file.checksum) == 64 else "SHA-1"
        raise DamagedDownloadError(
            f"{file.name} arrived damaged: {kind} {found}, expected {file.checksum}. Call again."
        )


def _checksum(path: Path, file: HubFile) -> str:
    """Return the checksum of the file at ``path``: SHA-256 or that of a git blob, as the Hub states."""
    with path.open("rb") as content:
        if len(file.checksum) == 64:
            return hashlib.file_digest(content, "sha256").hexdigest()
        blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        return hashlib.file_digest(content, lambda: blob).hexdigest()


def _linked(file: HubFile, cache: Path) -> Path:
    """Link a received file into the cache, and return its path there."""

    @busy_is_an_error()
    def link() -> str:
        return hf_hub_download(
            file.repository, file.name, revision=file.revision, endpoint=hub_endpoint(), cache_dir=cache
        )

    return Path(patiently(link))
