"""Read what a request brings, within limits; ``RefusedError`` says what is wrong with it, and with which status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from glip_adapt.core.errors import GlipAdaptError

MULTIPART = "multipart/form-data"
MOST_FIELDS = 16  # of a form


class RefusedError(GlipAdaptError, ValueError):
    """A request is refused.

    Attributes:
        status: of HTTP.
        headers: of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a service takes."""

    most_bytes: int = 20 * 2**20
    "of a request"
    most_pixels: int = 50_000_000
    "of an image"
    most_waiting: int = 32
    "requests at a time; more are asked to come again"
    seconds: float = 30.0
    "for a request to arrive as a whole"

    def __post_init__(self) -> None:
        if min(self.most_bytes, self.most_pixels, self.most_waiting) < 1 or self.seconds <= 0:
            raise ValueError(f"Limits are above 0, got {self}.")


@dataclass(frozen=True)
class Upload:
    """An image as it came, and the fields beside it."""

    image: bytes
    fields: Mapping[str, str]


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
        RefusedError: 413 if it is too large, 408 if it comes too slowly, 400 if it ends early.
    """
    too_large = RefusedError(
        413,
        f"The request is larger than {limits.most_bytes:,} bytes. Send a smaller image: a detector resizes it anyway.",
        {"Connection": "close"},  # the rest is not read
    )
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limits.most_bytes:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                content += chunk
                if len(content) > limits.most_bytes:  # a request in chunks states no length
                    raise too_large
    except TimeoutError:
        raise RefusedError(
            408, f"The request did not arrive within {limits.seconds:g} seconds.", {"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise RefusedError(400, "The request ended early.") from None
    return bytes(content)


async def read_upload(request: Request, limits: Limits) -> Upload:
    """Return the image of a request: the file of a form, or the whole body.

    Raises:
        RefusedError: as ``read_body``, or 400 if there is no image or no valid form.
    """
    body = await read_body(request, limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == MULTIPART:
        form = await _parse(request, body)
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise RefusedError(400, f"Expected one file in the form, got {len(files)}. Send the image as field image.")
        content = await files[0].read()
        await form.close()
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
    else:
        content, fields = body, {}
    if not content:
        raise RefusedError(400, "The request holds no image. Send one as the body, or as field image of a form.")
    return Upload(content, fields | dict(request.query_params))


async def _parse(request: Request, body: bytes) -> FormData:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, whole(), max_files=2, max_fields=MOST_FIELDS)
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason: Any = getattr(error, "message", error)
        raise RefusedError(
            400, f"The form cannot be read ({reason}). Send it as curl -F image=@photo.jpg does."
        ) from None
