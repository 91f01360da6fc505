"""Images that are made of others, by a recorded composition of them.

A composition blends a second image over the first one, shows a part of it, pastes objects of other images where no box
is, and moves the colours; each happens with a probability of its own (``Compositions``). The sources are copy-paste,
arXiv 2012.07177, and MixUp for detection, arXiv 1902.04103; FT-FSOD, arXiv 2603.28182, uses MixUp and colour.

They are written down as files, places and numbers, see ``data/composing.py``. Pixels are made when an image is loaded.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from glip_adapt.data.images import Header, read_header
from glip_adapt.data.split import ImageRecord

Edges = tuple[int, int, int, int]
"""Left, top, right and bottom edge in pixels."""


@dataclass(frozen=True)
class Paste:
    """The pixels ``part`` of an image, laid over the pixels ``place`` of another one."""

    source: ImageRecord
    part: Edges
    place: Edges


@dataclass(frozen=True)
class Composition:
    """How an image is made of others, in this order.

    Attributes:
        blended: image that is stretched over the whole first one, and its weight in [0, 1).
        part: what is shown of both.
        pasted: objects, in pixels of the part.
        colours: turns that are added to the hue, factor of saturation, factor of brightness; None leaves them.
    """

    part: Edges
    blended: tuple[ImageRecord, float] | None = None
    pasted: tuple[Paste, ...] = ()
    colours: tuple[float, float, float] | None = None

    @property
    def sources(self) -> tuple[ImageRecord, ...]:
        """The images that come to the first one."""
        return (*([self.blended[0]] if self.blended else []), *(paste.source for paste in self.pasted))

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the composed image, RGB like the first one."""
        if self.blended:
            second, weight = self.blended
            image = Image.blend(image, second.load().resize(image.size, Image.Resampling.BILINEAR), weight)
        image = image.crop(self.part)
        for paste in self.pasted:
            left, top, right, bottom = paste.place
            size = (right - left, bottom - top)
            image.paste(paste.source.load().resize(size, Image.Resampling.BILINEAR, box=paste.part), (left, top))
        return image if self.colours is None else _recoloured(image, *self.colours)


@dataclass(frozen=True)
class ComposedRecord(ImageRecord):
    """An image that is made of the one at ``path`` and of others."""

    composition: Composition = field(kw_only=True)

    def load(self) -> Image.Image:
        """Return the composed image as RGB; errors as ``load_rgb``."""
        return self.composition.apply(super().load())

    @functools.cached_property
    def header(self) -> Header:
        """The size of the part; nothing is turned any more."""
        left, top, right, bottom = self.composition.part
        return Header((bottom - top, right - left), 1, 1)

    @property
    def files(self) -> tuple[Path, ...]:
        """All image files that the pixels come from."""
        return (self.path, *(source.path for source in self.composition.sources))

    @property
    def change(self) -> str:
        """A digest of all places and numbers, and of what is done to each file before."""
        made = self.composition
        turned = read_header(self.path, self.size_hw).applied
        facts = (
            ["" if turned == 1 else f"t{turned}", *(source.change for source in made.sources)],
            made.part,
            made.blended and made.blended[1],
            [(paste.part, paste.place) for paste in made.pasted],
            made.colours,
        )
        return f"c{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}"


def _recoloured(image: Image.Image, hue: float, saturation: float, brightness: float) -> Image.Image:
    """Return an RGB image with its hue turned, and saturation and brightness scaled."""
    pixels = np.asarray(image.convert("HSV")).astype(np.float32)
    pixels[..., 0] = (pixels[..., 0] + 256 * hue) % 256
    pixels[..., 1:] = (pixels[..., 1:] * [saturation, brightness]).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8), "HSV").convert("RGB")
