"""A short video of pictograms that move, with their true tracks."""

from __future__ import annotations

from PIL import Image, ImageDraw

from glip_adapt.data.glyphs import font, seen_glyphs

SIDE = 160  # pixels, as the images that the nano trunks know
NAMES = ("anchor", "gear", "solid scissors")
_MOVING = {  # start of the left upper corner, and pixels a frame
    "anchor": ((4.0, 8.0), (2.6, 0.3)),
    "gear": ((112.0, 66.0), (-2.2, -0.2)),
    "solid scissors": ((10.0, 112.0), (1.5, 0.2)),
}
_COLOURS = {"anchor": (214, 40, 40), "gear": (40, 82, 214), "solid scissors": (132, 48, 168)}
_BACKGROUND = (226, 226, 214)

Truth = list[dict[int, tuple[float, float, float, float]]]
"""For each frame the box (left, top, right, bottom) of each object by its number."""


def render_video(frames: int = 40, *, meets: bool = False) -> tuple[list[Image.Image], Truth]:
    """Return frames and true boxes; objects are numbered as in ``NAMES``, from 1.

    With ``meets`` the gear covers the anchor in the middle of the video, for a third of it in part.
    """
    character = {glyph.name: glyph.character for glyph in seen_glyphs()}
    images, truth = [], []
    for time in range(frames):
        image, boxes = Image.new("RGB", (SIDE, SIDE), _BACKGROUND), {}
        for number, name in enumerate(NAMES, start=1):
            (x, y), (right, down) = _MOVING[name]
            y -= 30 if meets and name == "gear" else 0
            boxes[number] = _draw(image, character[name], (x + right * time, y + down * time), _COLOURS[name])
        images.append(image)
        truth.append(boxes)
    return images, truth


def _draw(image, character, corner, colour):
    """Draw a pictogram about 40 pixels high; return the box of its pixels."""
    mask = Image.new("L", image.size)
    typeface = font("DejaVuSans.ttf", 46)
    left, top, *_ = typeface.getbbox(character)
    ImageDraw.Draw(mask).text((corner[0] - left, corner[1] - top), character, 255, typeface)
    image.paste(colour, mask=mask)
    return tuple(map(float, mask.getbbox()))
