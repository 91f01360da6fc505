"""Open image files of any common format, mode and EXIF orientation as upright RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.core.sizes import SizeHW

# Formats that Pillow may open. Other readers start programs (PostScript), or no dataset uses the format.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "PCX", "TGA")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".j2k", ".pcx", ".tga"),
)
_TURNS = {  # EXIF orientation → the operation that turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = 5  # orientations from here on exchange height and width


class TooManyPixelsError(GlipAdaptError, ValueError):
    """An image has more pixels than it may have."""


def load_rgb(path: Path, declared_hw: SizeHW | None = None) -> Image.Image:
    """Return the image at ``path`` as upright RGB.

    ``declared_hw``, the (height, width) in the annotation file, tells whether boxes were drawn on the stored pixels or
    on the upright image: the EXIF orientation is applied, unless it is the size of the stored pixels. 16 bits become 8,
    and transparent pixels become white.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an image in one of ``FORMATS``, or the range of its pixels is unknown.
    """
    with _opened(path) as image:
        turn = _TURNS.get(_applied(image, declared_hw))
        shown = to_rgb(image)
        return shown if turn is None else shown.transpose(turn)


def decode_rgb(content: bytes, most_pixels: int) -> Image.Image:
    """Return the image in bytes that a stranger sent, as upright RGB; otherwise as ``load_rgb``.

    Nothing is decoded before its size is known, since few bytes may hold a very large image.

    Raises:
        TooManyPixelsError: if it has more than ``most_pixels`` pixels.
        ValueError: if it is not a whole image in one of ``FORMATS``, or the range of its pixels is unknown.
    """
    with _opened(BytesIO(content), "The upload") as image:
        if image.width * image.height > most_pixels:
            raise TooManyPixelsError(
                f"The image has {image.width} × {image.height} pixels; at most {most_pixels:,} are taken. Make it "
                "smaller first: a detector resizes it anyway."
            )
        turn = _TURNS.get(_orientation(image))
        shown = to_rgb(image)
        return shown if turn is None else shown.transpose(turn)


def load_small(path: Path, most: int, declared_hw: SizeHW | None = None) -> Image.Image:
    """Return the image at ``path`` with sides of at most ``most`` pixels, upright; otherwise as ``load_rgb``.

    A JPEG is decoded no larger than needed, which takes a fraction of the time.
    """
    with _opened(path) as image:
        turn = _TURNS.get(_applied(image, declared_hw))
        image.draft("RGB", (most, most))
        shown = to_rgb(image)
        shown.thumbnail((most, most))
        return shown if turn is None else shown.transpose(turn)


@dataclass(frozen=True)
class Header:
    """Size and orientation, from the start of an image file.

    Attributes:
        size_hw: (height, width) in pixels of the result of ``load_rgb``.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        applied: the orientation that ``load_rgb`` applies: ``orientation`` or 1.
    """

    size_hw: SizeHW
    orientation: int
    applied: int

    @property
    def is_ambiguous(self) -> bool:
        """Whether the size leaves open if boxes were drawn before or after the image was turned."""
        height, width = self.size_hw
        return self.orientation in (2, 3, 4) or (self.orientation != 1 and height == width)


def read_header(path: Path, declared_hw: SizeHW | None = None) -> Header:
    """Return size and orientation of an image file without decoding its pixels; ``declared_hw`` as for ``load_rgb``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an image in one of ``FORMATS``.
    """
    with _opened(path) as image:
        applied = _applied(image, declared_hw)
        stored_hw = (image.height, image.width)
        return Header(stored_hw[::-1] if applied >= _SWAPS_SIDES else stored_hw, _orientation(image), applied)


@contextmanager
def _opened(source: Path | BytesIO, name: str = "") -> Iterator[Image.Image]:
    """Open an image; every failure while it is in use becomes FileNotFoundError or ValueError."""
    try:
        with Image.open(source, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(
            f"No image at {source}. Check the path; of a dataset, `glip-adapt data check` lists every missing one."
        ) from None
    except TooManyPixelsError:
        raise
    except Exception as error:  # damaged bytes lead the decoders to any error
        reason = str(error).splitlines()[0].replace(f" {source!r}", "") if str(error) else type(error).__name__
        kind = TooManyPixelsError if isinstance(error, Image.DecompressionBombError) else ValueError
        raise kind(
            f"{name or source} is not an image that can be read ({reason}). Replace it by one in a common format such "
            "as JPEG or PNG, or remove it."
        ) from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image; 1 if it has none or an unknown one."""
    # Pillow turns TIFF itself. In a PNG without a tag before its pixels, it would decode them all to look behind.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    return tag if tag in _TURNS else 1


def _applied(image: Image.Image, declared_hw: SizeHW | None) -> int:
    """Return the orientation to apply: 1 if the declared size is landscape or portrait like the stored pixels."""
    tag = _orientation(image)
    if tag < _SWAPS_SIDES or declared_hw is None:
        return tag
    is_stored = (declared_hw[0] - declared_hw[1]) * (image.height - image.width) > 0
    return 1 if is_stored else tag


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the pixels as 8-bit RGB."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Return grey values as uint8: the upper byte of 16 bits, other values scaled by their range."""
    low, high = values.min(), values.max()
    if values.dtype.itemsize == 2 or (values.dtype.kind in "iu" and low >= 0 and 255 < high <= 65535):
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    if not (low >= 0 and high <= 255):  # NaN fails here as well
        raise ValueError(f"its grey values lie between {low} and {high}; expected 0 to 1, 0 to 255, or 16 bits")
    if values.dtype.kind == "f" and high <= 1:
        values = 255 * values
    return values.round().astype(np.uint8)
