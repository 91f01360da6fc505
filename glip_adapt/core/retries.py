"""Retry requests to a busy server for a bounded time; describe errors, and give advice."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import get_ident
from time import sleep
from typing import Any, TypeVar

from huggingface_hub import get_session
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from glip_adapt.core.plain_text import excerpt

MOST_TRIES = 4  # in a row that bring little or nothing
MOST_WAIT_S = 45.0  # in all, for a server that is busy

Result = TypeVar("Result")

_BUSY = (408, 429, 500, 502, 503, 504)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
_ADVICE = {401: _LOG_IN, 403: _LOG_IN, 404: "Check the name."}

logger = logging.getLogger(__name__)


class StatusError(Exception):
    """A server answered with an error status; its page is not read."""

    def __init__(self, response: Any) -> None:
        super().__init__(f"{response.status_code} {response.reason_phrase}")
        self.response = response


class Patience:
    """Count the tries and the waiting time of one download."""

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
        logger.warning("%s: trying again in %.0f s", reason(error), seconds)
        self._waited_s += seconds
        sleep(seconds)
        return True


def patiently(request: Callable[[], Result]) -> Result:
    """Return the result of ``request``, tried again while the server is busy."""
    patience = Patience()
    while True:
        try:
            return request()
        except Exception as error:  # the client raises OS, HTTP, value and its own errors alike
            if not (is_busy(error) and patience.allows(error)):
                raise


@contextmanager
def busy_is_an_error() -> Iterator[None]:
    """Raise StatusError for a busy server, where the Hub client would sleep for as long as the server asks."""
    thread, hooks = get_ident(), get_session().event_hooks["response"]

    def check(response: Any) -> None:
        if get_ident() == thread and response.status_code in _BUSY:
            raise StatusError(response)

    hooks.append(check)
    try:
        yield
    finally:
        hooks.remove(check)


def is_busy(error: Exception | None) -> bool:
    """Return whether the server is busy: a later try may succeed."""
    return _status(error) in _BUSY


def reason(error: Exception | None) -> str:
    """Describe an error in one line: its kind, and the first line of its message."""
    if error is None:
        return "the answer ended early"
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {excerpt(lines[0])}"


def advice(error: Exception | None) -> str:
    """Return advice about an error of a request."""
    if isinstance(error, OfflineModeIsEnabled):
        return "Unset HF_HUB_OFFLINE, or get the file on another machine."
    if isinstance(error, OSError) and error.errno is not None:
        return "Free some space, then call again." if error.errno in _FULL else "Check the disk and the folder."
    if is_busy(error):
        told = _told_wait(error)
        return "The server is busy: wait " + ("a little." if told is None else f"{told:.0f} s.")
    return _ADVICE.get(_status(error) or 0, "Check the network, or set HF_ENDPOINT to a mirror of the Hub.")


def _status(error: Exception | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _told_wait(error: Exception | None) -> float | None:
    """Return how many seconds a busy server asks to wait, or None if it does not say."""
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
