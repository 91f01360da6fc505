"""Pictures as the page shows them: upright, small enough for a screen, in a format that browsers read."""

from __future__ import annotations

import io
import threading
from functools import lru_cache
from pathlib import Path

from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.images import load_small

THUMBNAIL = 200
"""Longer side of a thumbnail, pixels."""
SCREEN = 2048
"""Longer side of a picture, pixels."""

_LOSSLESS = 2**19  # pixels; up to so many, a picture is sent as PNG
_AT_ONCE = threading.BoundedSemaphore(4)  # a large picture needs 100 MB while it is decoded


@lru_cache(maxsize=5000)
def thumbnail(path: Path, declared_hw: SizeHW | None, version: int) -> tuple[bytes, str]:
    """Return a thumbnail and its type; ``version`` tells one content of a file from another. Errors as ``load_rgb``."""
    return _encoded(path, THUMBNAIL, declared_hw)


@lru_cache(maxsize=16)
def picture(path: Path, declared_hw: SizeHW | None, version: int) -> tuple[bytes, str]:
    """Return a picture and its type; the rest as ``thumbnail``."""
    return _encoded(path, SCREEN, declared_hw)


def _encoded(path: Path, most: int, declared_hw: SizeHW | None) -> tuple[bytes, str]:
    stream = io.BytesIO()
    with _AT_ONCE:
        image = load_small(path, most, declared_hw)
        if most == SCREEN and image.width * image.height <= _LOSSLESS:
            image.save(stream, "PNG")
            return stream.getvalue(), "image/png"
        image.save(stream, "JPEG", quality=88)
    return stream.getvalue(), "image/jpeg"
