"""Images that a task of Label Studio names: only from the host and the folder that the user of this service names."""

from __future__ import annotations

import base64
import binascii
import reprlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import SplitResult, parse_qs, unquote_to_bytes, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from glip_adapt.share.serving.uploads import RefusedError

LOCAL_FILES = "/data/local-files/"  # path of Label Studio for files of its local storage
SECONDS = 10.0  # for Label Studio to answer
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class References:
    """Where images may come from.

    Attributes:
        label_studio: address of Label Studio, such as ``http://localhost:8080``; empty for none.
        key: for its API.
        local_files: folder of its local files (``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``); None for none.
        most_bytes: of an image.
    """

    label_studio: str = ""
    key: str = ""
    local_files: Path | None = None
    most_bytes: int = 20 * 2**20

    def __post_init__(self) -> None:
        if self.label_studio and (_origin(urlsplit(self.label_studio)) is None or urlsplit(self.label_studio).query):
            raise ValueError(
                f"Expected the address of Label Studio, such as http://localhost:8080, got {self.label_studio!r}."
            )
        if self.local_files is not None and not self.local_files.is_dir():
            raise FileNotFoundError(f"There is no folder {self.local_files}. Name the root of Label Studio's files.")

    def read(self, reference: str) -> bytes:
        """Return the bytes of an image.

        Args:
            reference: data URI; path or address below the Label Studio that was named; or a local file of it.

        Raises:
            RefusedError: 422 if it is another place, or there is no such image.
        """
        if reference[:5].lower() == "data:":
            return _decoded(reference)
        try:
            parts = urlsplit(reference)
            is_ours = not (parts.scheme or parts.netloc) or (
                bool(self.label_studio) and _origin(parts) == _origin(urlsplit(self.label_studio))
            )
        except ValueError:
            is_ours = False
        if not is_ours:
            named = self.label_studio or "none; it is named when the service is started, --label-studio"
            raise RefusedError(
                422, f"{reprlib.repr(reference)} is not an image of the Label Studio that was named ({named})."
            )
        if parts.path.startswith(LOCAL_FILES) and self.local_files is not None:
            return self._read_file(self.local_files, parse_qs(parts.query).get("d", [""])[0])
        return self._fetch(parts)

    def _read_file(self, root: Path, name: str) -> bytes:
        try:
            path = (root / name).resolve()
            if path.is_relative_to(root.resolve()) and path.is_file() and path.stat().st_size <= self.most_bytes:
                return path.read_bytes()
        except (OSError, ValueError):  # a name may hold anything
            pass
        raise RefusedError(
            422, f"There is no file {reprlib.repr(name)} of at most {self.most_bytes:,} bytes below the local files."
        )

    def _fetch(self, parts: SplitResult) -> bytes:
        """Return what the Label Studio that was named has at a path; it may not send us elsewhere."""
        if not self.label_studio:
            raise RefusedError(
                422,
                f"{reprlib.repr(parts.path)} is a path of Label Studio. Start the service with its address, "
                "--label-studio, or with the folder of its files, --local-files.",
            )
        # The host stays the one that was named, whatever the path says.
        address = f"{self.label_studio.rstrip('/')}/{parts.path.lstrip('/')}" + (
            f"?{parts.query}" if parts.query else ""
        )
        headers = {"Authorization": f"Token {self.key}"} if self.key else {}
        try:
            with _opener().open(Request(address, headers=headers), timeout=SECONDS) as answer:
                content = answer.read(self.most_bytes + 1)
        except HTTPError as error:
            hint = " Set LABEL_STUDIO_API_KEY." if error.code in (401, 403) else ""
            raise RefusedError(422, f"Label Studio answered {error.code} for {parts.path[:200]!r}.{hint}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise RefusedError(422, f"Label Studio gave no image for {parts.path[:200]!r}: {error}.") from error
        if len(content) > self.most_bytes:
            raise RefusedError(422, f"{parts.path[:200]!r} is larger than {self.most_bytes:,} bytes.")
        return bytes(content)


def _decoded(reference: str) -> bytes:
    head, _, text = reference.partition(",")
    try:
        return base64.b64decode(text, validate=True) if head.endswith(";base64") else unquote_to_bytes(text)
    except (binascii.Error, ValueError):
        raise RefusedError(422, "A data URI holds no valid base64.") from None


def _origin(parts: SplitResult) -> tuple[str, str, int] | None:
    """Return scheme, host and port of an address of the web; None for anything else."""
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname.lower(), parts.port or _PORTS[parts.scheme]


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """Follow none: the answer is then an error."""


def _opener() -> OpenerDirector:
    return build_opener(_NoRedirects, ProxyHandler({}))
