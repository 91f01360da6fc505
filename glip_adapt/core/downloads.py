"""Downloads from the Hub, one function for weights, vocabularies, adapters and archives.

``hf_hub_download`` does the cache: layout, links, branches. Its transfer is not used (huggingface_hub 2.4,
file_download.py): it drops what has arrived when a connection breaks for good, appends the body of any answer to a
range request, compares no checksum, waits as long as a server asks, and gives up at the first 503. So a file is
received here, under the lock and in the place where ``hf_hub_download`` looks before it transfers anything.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import get_ident
from time import monotonic, sleep
from typing import Any, BinaryIO, TypeVar

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, parse_ratelimit_headers, tqdm

MOST_TRIES = 4  # in a row that bring little or nothing
MOST_WAIT_S = 45.0  # in all, for a server that is busy
SLOW_WINDOW_S, SLOW_BYTES = 20.0, 20_000  # less in that time is no download
ENOUGH_BYTES = 2**20  # of one answer, to go on without counting it as a failed try

OnBytes = Callable[[int, int], None]
Result = TypeVar("Result")

_BUSY = (408, 429, 500, 502, 503, 504)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_PAGE_STARTS = (b"<!doctype html", b"<html")
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
_ADVICE = {401: _LOG_IN, 403: _LOG_IN, 404: "Check the name."}
_MOST_REASON = 200  # characters of what a server says

logger = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """A file could not be fetched; what has arrived of it is kept, and the next call goes on."""


class DamagedDownloadError(DownloadError):
    """A file arrived with another checksum than the Hub states, and was removed."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file as the Hub describes it.

    Attributes:
        repository: ``"owner/name"``.
        name: path of the file in it.
        revision: branch, tag or commit that was asked for.
        commit: the one that the revision stands for.
        size_bytes: of the file.
        checksum: SHA-256 of a large file, git's SHA-1 of a small one, as hex.
    """

    repository: str
    name: str
    revision: str
    commit: str
    size_bytes: int
    checksum: str

    @property
    def url(self) -> str:
        """Where the file lies."""
        return hf_hub_url(self.repository, self.name, revision=self.revision, endpoint=hub_endpoint())

    def pinned(self) -> HubFile:
        """Return the file at its commit, whatever becomes of the branch."""
        return replace(self, revision=self.commit)


class _StatusError(Exception):
    """A server answered with an error; its page is not read."""

    def __init__(self, response: Any) -> None:
        super().__init__(f"{response.status_code} {response.reason_phrase}")
        self.response = response


class _Patience:
    """Counts tries and waiting time of one download."""

    def __init__(self) -> None:
        self._tries = 0
        self._waited_s = 0.0

    def allows(self, error: Exception | None) -> bool:
        """Return whether there may be another try, after the wait before it."""
        self._tries += 1
        told = _told_wait(error)
        seconds = 2.0 ** (self._tries - 1) if told is None else told
        if self._tries >= MOST_TRIES or self._waited_s + seconds > MOST_WAIT_S:
            return False
        logger.warning("%s: trying again in %.0f s", _reason(error), seconds)
        self._waited_s += seconds
        sleep(seconds)
        return True


def hub_endpoint() -> str:
    """Return the address of the Hub, or of the mirror that ``HF_ENDPOINT`` names."""
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def cached(repository: str, name: str) -> Path | None:
    """Return where a file lies in the Hub's cache, or None; nothing is sent."""
    try:
        return Path(hf_hub_download(repository, name, local_files_only=True, cache_dir=constants.HF_HUB_CACHE))
    except FileNotFoundError:
        return None


def describe(repository: str, name: str, revision: str = "main") -> HubFile:
    """Return what the Hub says about a file, without fetching it.

    Raises:
        DownloadError: if the Hub cannot be reached or refuses, there is no such file, or the answer is not a Hub's.
    """
    with _one_error(f"{name} of {repository}"):
        url = hf_hub_url(repository, name, revision=revision, endpoint=hub_endpoint())
        facts = _patiently(lambda: get_hf_file_metadata(url, endpoint=hub_endpoint()))
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
    """Return the local path of a file, with the checksum that the Hub states; fetched if it is not in the cache.

    What an earlier call has received is continued. A second process waits for the first.

    Args:
        file: what ``describe`` returned.
        cache: folder of the layout of the Hub's cache, which is the default.
        on_bytes: called with the bytes received so far and in all; without it, there is a progress bar.

    Raises:
        DownloadError: if the connection breaks, stalls or is refused, a server stays busy or answers something else
            than the file, or the disk is full.
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
    """Turn whatever the Hub client or the disk raises into one error that says what to do."""
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:  # the client raises OS, HTTP, value and its own errors alike
        raise DownloadError(f"{what} could not be fetched ({_reason(error)}). {_advice(error)}") from error


def _fetch(file: HubFile, blob: Path, on_bytes: OnBytes | None) -> None:
    """Make ``blob`` the whole file, by way of the part beside it that earlier calls have left."""
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
    """Raise DownloadError if the disk of ``folder`` has less room."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DownloadError(
            f"{folder} has {free / 1e9:.2f} GB free, and {needed_bytes / 1e9:.2f} GB are needed. "
            "Free some, or name another folder."
        )


@contextmanager
def _progress(file: HubFile, have: int, on_bytes: OnBytes | None) -> Iterator[OnBytes]:
    """Yield ``on_bytes``, or what moves a bar of the Hub client with rate and remaining time."""
    if on_bytes is not None:
        yield on_bytes
        return
    options = {"unit": "B", "unit_scale": True, "desc": file.name, "disable": None}  # None: only on a terminal
    with tqdm(total=file.size_bytes, initial=have, **options) as bar:
        yield lambda done, _: bar.update(done - bar.n)


def _receive(file: HubFile, target: BinaryIO, report: OnBytes) -> None:
    """Append to ``target`` until it has the stated size; goes on by itself as long as answers bring enough."""
    patience = _Patience()
    while (have := target.seek(0, os.SEEK_END)) < file.size_bytes:
        error: Exception | None = None
        try:
            _take_answer(file, target, have, report)
        except DownloadError:
            raise
        except Exception as caught:  # as above
            if isinstance(caught, OSError) and caught.errno is not None:  # the disk; a network's are the client's own
                raise
            error = caught
        came = target.seek(0, os.SEEK_END) - have
        if came >= min(ENOUGH_BYTES, (file.size_bytes - have) / 4):
            patience = _Patience()
        elif not ((came > 0 or _status(error) in _BUSY) and patience.allows(error)):
            if error is not None and have + came <= 0:
                raise error
            raise DownloadError(
                f"{file.name} broke off after {have + came} of {file.size_bytes} bytes ({_reason(error)}). "
                f"{_advice(error)} Call again: it goes on from there."
            ) from error


def _take_answer(file: HubFile, target: BinaryIO, have: int, report: OnBytes) -> None:
    """Write what one answer brings of the bytes after ``have``, or of all where the server knows no ranges."""
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", file.url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        done = start = _first_byte(response, file, have)
        window_s, window_bytes = monotonic(), start
        for chunk in response.iter_bytes():
            if done == start == 0:
                if chunk.lstrip()[:14].lower().startswith(_PAGE_STARTS):
                    raise _page(file)
                target.truncate(target.seek(0))  # not before it is known to be no page
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
    """Return at which byte of the file an answer begins; refuse one that is not of the file."""
    headers: Mapping[str, str] = response.headers
    if response.status_code >= 400:
        raise _StatusError(response)
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() in _PAGE_TYPES:
        raise _page(file)
    if response.status_code == 206:
        span = headers.get("Content-Range", "")
        found = _RANGE.fullmatch(span)
        if found is None or (int(found[1]), int(found[2])) != (have, file.size_bytes):
            raise DownloadError(
                f"{file.url} was answered with another part than asked for: expected the bytes from {have} of "
                f"{file.size_bytes}, got {_printable(span) or 'no Content-Range'}. A proxy may be at fault; call again."
            )
        return have
    length = None if "Content-Encoding" in headers else headers.get("Content-Length")
    if response.status_code != 200 or length not in (None, str(file.size_bytes)):
        raise DownloadError(
            f"{file.url} was not answered with the file: expected status 200 and {file.size_bytes} bytes, got "
            f"{response.status_code} and {_printable(length or 'no length')}. A proxy may be at fault; call again."
        )
    return 0


def _page(file: HubFile) -> DownloadError:
    return DownloadError(
        f"{file.url} was answered by a page, of a login perhaps, not by the file. Check the network, then call again."
    )


def _check(path: Path, file: HubFile) -> None:
    """Remove a file that is not the stated one, and raise."""
    found = _checksum(path, file)
    if found != file.checksum:
        path.unlink()
        kind = "SHA-256" if len(file.checksum) == 64 else "SHA-1"
        raise DamagedDownloadError(
            f"{file.name} arrived damaged: {kind} {found}, expected {file.checksum}. Call again."
        )


def _checksum(path: Path, file: HubFile) -> str:
    """Return the checksum of a file, of the kind that the Hub states: SHA-256, or that of a git blob."""
    with path.open("rb") as content:
        if len(file.checksum) == 64:
            return hashlib.file_digest(content, "sha256").hexdigest()
        blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while chunk := content.read(2**20):
            blob.update(chunk)
        return blob.hexdigest()


def _linked(file: HubFile, cache: Path) -> Path:
    """Return the name in the cache of a file that has been received."""

    def link() -> Path:
        with _busy_is_an_error():
            path = hf_hub_download(
                file.repository, file.name, revision=file.revision, endpoint=hub_endpoint(), cache_dir=cache
            )
        return Path(path)

    return _patiently(link)


@contextmanager
def _busy_is_an_error() -> Iterator[None]:
    """Take waiting from the Hub client, which sleeps for as long as a busy server asks."""
    thread, hooks = get_ident(), get_session().event_hooks["response"]

    def check(response: Any) -> None:
        if get_ident() == thread and response.status_code in _BUSY:
            raise _StatusError(response)

    hooks.append(check)
    try:
        yield
    finally:
        hooks.remove(check)


def _patiently(request: Callable[[], Result]) -> Result:
    """Return what ``request`` does, tried again while the server is busy."""
    patience = _Patience()
    while True:
        try:
            return request()
        except Exception as error:  # as above
            if _status(error) not in _BUSY or not patience.allows(error):
                raise


def _status(error: Exception | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _told_wait(error: Exception | None) -> float | None:
    """Return how many seconds a busy server asks to wait, or None where it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    limit = parse_ratelimit_headers(headers)
    if _status(error) == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    told = headers.get("Retry-After", "").strip()
    try:
        if told.isdecimal():
            return float(told)
        when = parsedate_to_datetime(told)
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _reason(error: Exception | None) -> str:
    """Return the kind of an error and the first line of what it says, fit for a terminal."""
    if error is None:
        return "the answer ended early"
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__.lstrip('_')}: {_printable(lines[0])}"


def _printable(text: str) -> str:
    """Return text of a server without control codes, cut to a readable length."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MOST_REASON])


def _advice(error: Exception | None) -> str:
    """Return what to do about an error."""
    if isinstance(error, OfflineModeIsEnabled):
        return "Unset HF_HUB_OFFLINE, or get the file on another machine."
    if isinstance(error, OSError) and error.errno is not None:
        return "Free some space, then call again." if error.errno in _FULL else "Check the disk and the folder."
    if (status := _status(error) or 0) in _BUSY:
        told = _told_wait(error)
        return "The server is busy: wait " + ("a little." if told is None else f"{told:.0f} s.")
    return _ADVICE.get(status, "Check the network, or set HF_ENDPOINT to a mirror of the Hub.")
