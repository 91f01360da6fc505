"""Draw boxes on an image: detections in the colour of their class, or hits, misses and false alarms."""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from glip_adapt.core.captions import Caption
from glip_adapt.core.structures import Detections
from glip_adapt.data.glyphs import font
from glip_adapt.engine.metrics.matching import Floats, ImageMatches

# Okabe and Ito's palette without black: told apart by colour-blind readers, visible on photographs.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
PAPER = "#FFFFFF"

_MASK_ALPHA = 120  # of 255
_FONT = "DejaVuSans.ttf"  # Pillow's own lacks most letters with accents
Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a kind of box is drawn: each kind differs in colour, in lightness, in its line, and in a sign.

    Attributes:
        colour: of the line, and behind the text.
        ink: of the text, and of a hair line inside the box, so that it is seen on any picture.
        dashes: length of a dash and of the gap behind it, in widths of the line; None for a solid line.
        sign: in front of the text.
    """

    colour: str
    ink: str = "#000000"
    dashes: tuple[float, float] | None = None
    sign: str = ""


TRUTH = Look(colour="#56B4E9")
HIT = Look(colour="#00B07F", sign="✓ ")
MISS = Look(colour="#FFB000", dashes=(5.0, 3.0), sign="? ")
FALSE_ALARM = Look(colour="#B5121B", ink="#FFFFFF", dashes=(1.5, 1.5), sign="✗ ")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A box to draw: its edges in pixels, the text of its tag, and its look."""

    edges: Rectangle
    text: str
    look: Look


def draw_detections(image: Image.Image, detections: Detections) -> Image.Image:
    """Return a copy of an RGB image with a labelled box per detection, and its mask if it has one, the best on top.

    The detections are in pixels of the image and have ``class_names``.
    """
    image = _draw_masks(image, detections)
    columns = (detections.boxes_xyxy, detections.scores, detections.labels)
    marks = [
        Mark(
            edges=(x1, y1, x2, y2),
            text=f"{name_class(detections.class_names, label)} {score:.2f}",
            look=Look(colour=COLOURS[label % len(COLOURS)]),
        )
        for (x1, y1, x2, y2), score, label in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return draw_marks(image, marks, letters=_letters(image))


def draw_tracks(image: Image.Image, detections: Detections, numbers: Sequence[int]) -> Image.Image:
    """Return a copy of an RGB image with a box for each track, in the colour of its number, tagged ``3 raccoon``."""
    marks = [
        Mark(
            edges=(x1, y1, x2, y2),
            text=f"{number} {name_class(detections.class_names, label)}",
            look=Look(colour=COLOURS[(number - 1) % len(COLOURS)]),
        )
        for (x1, y1, x2, y2), label, number in zip(
            detections.boxes_xyxy.tolist(), detections.labels.tolist(), numbers, strict=True
        )
    ]
    return draw_marks(image, marks, letters=_letters(image))


def add_sentence(image: Image.Image, sentence: Caption) -> Image.Image:
    """Return a copy of an RGB image with a sentence below it; its phrases have the colours of their boxes."""
    colours = [PAPER] * len(sentence.text)
    for label, (start, end) in reversed(list(enumerate(sentence.spans))):
        colours[start:end] = [COLOURS[label % len(COLOURS)]] * (end - start)
    letters = _letters(image)
    typeface, height, margin = font(_FONT, letters), letters + letters // 2, letters // 2
    words: list[tuple[float, int, str, str]] = []  # left edge, line, text, colour
    left, line = float(margin), 0
    for colour, run in itertools.groupby(zip(sentence.text, colours, strict=True), key=operator.itemgetter(1)):
        for word in re.findall(r"\S+\s?|\s", "".join(letter for letter, _ in run)):
            if left + typeface.getlength(word.rstrip()) > image.width - margin and left > margin:
                left, line = float(margin), line + 1
            words.append((left, line, word, colour))
            left += typeface.getlength(word)
    drawn = Image.new("RGB", (image.width, image.height + (line + 1) * height + 2 * margin), PAPER)
    drawn.paste(image)
    canvas = ImageDraw.Draw(drawn)
    for left, line, word, colour in words:
        top = image.height + margin + line * height
        canvas.rectangle((left, top, left + typeface.getlength(word) - 1, top + height - 2), fill=colour)
        canvas.text((left, top), word, fill=Look.ink, font=typeface)
    return drawn


def truth_marks(matches: ImageMatches, class_names: Sequence[str]) -> list[Mark]:
    """Return the boxes of the truth of an image, named."""
    return [
        Mark(edges=_edges(box), text=name_class(class_names, label), look=TRUTH)
        for box, label in zip(matches.truth_xywh, matches.truth_labels.tolist(), strict=True)
    ]


def match_marks(matches: ImageMatches, class_names: Sequence[str]) -> list[Mark]:
    """Return hits, misses and false alarms of an image: hits and false alarms with their score, then misses."""
    marks = []
    for rows, look in ((matches.hits, HIT), (matches.false_alarms, FALSE_ALARM)):
        for row in rows.tolist():
            text = f"{name_class(class_names, int(matches.found_labels[row]))} {matches.scores[row]:.2f}"
            marks.append(Mark(edges=_edges(matches.found_xywh[row]), text=text, look=look))
    for row in matches.misses.tolist():
        text = name_class(class_names, int(matches.truth_labels[row]))
        marks.append(Mark(edges=_edges(matches.truth_xywh[row]), text=text, look=MISS))
    return marks


def draw_marks(image: Image.Image, marks: Sequence[Mark], *, letters: int, scale: float = 1.0) -> Image.Image:
    """Return a copy of an RGB image with marked boxes, the first on top.

    Tags stay inside the image, and beside one another where there is room.

    Args:
        image: RGB.
        marks: boxes to draw.
        letters: height of the text in pixels; lines are a fifth of it.
        scale: converts the edges to pixels of this image, for one that was resized.
    """
    drawn = image.copy()
    canvas = ImageDraw.Draw(drawn)
    typeface, line = font(_FONT, letters), max(2, letters // 5)
    scaled = [(scale * x1, scale * y1, scale * x2, scale * y2) for x1, y1, x2, y2 in (mark.edges for mark in marks)]
    for (x1, y1, x2, y2), mark in reversed(list(zip(scaled, marks, strict=True))):
        _draw_box(canvas, (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), mark.look, line)  # last pixel included
    placed: list[Rectangle] = []
    tags = []
    for edges, mark in zip(scaled, marks, strict=True):
        text = _shorten(mark.look.sign + mark.text, drawn.width - 6, typeface.getlength)
        size = typeface.getlength(text) + 6, sum(typeface.getmetrics()) + 2
        placed.append(_place(edges, size, drawn.size, placed))
        tags.append((placed[-1], text, mark.look))
    for (left, top, right, bottom), text, look in reversed(tags):
        canvas.rectangle((left, top, right - 1, bottom - 1), fill=look.colour)
        canvas.text((left + 3, top + 1), text, fill=look.ink, font=typeface)
    return drawn


def name_class(class_names: Sequence[str], label: int) -> str:
    """Return the name of a class as the font can draw it, or its number from 1, such as ``#3``."""
    name = " ".join(class_names[label].split())
    return name if name and all(map(_is_drawn, name)) else f"#{label + 1}"


def _letters(image: Image.Image) -> int:
    """Return the height of letters on an image, in pixels."""
    return max(11, max(image.size) // 50)


@functools.cache
def _is_drawn(character: str) -> bool:
    letters = font(_FONT, 20)
    return character.isprintable() and bytes(letters.getmask(character)) != bytes(letters.getmask("\ufffe"))


def _edges(box_xywh: Floats) -> Rectangle:
    x, y, w, h = box_xywh.tolist()
    return x, y, x + w, y + h


def _shorten(text: str, width: float, measure: Callable[[str], float]) -> str:
    """Return the beginning of a text that fits a width in pixels."""
    if measure(text) <= width:
        return text
    while text and measure(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _place(
    edges: Rectangle, size: tuple[float, float], image_size: tuple[int, int], placed: Sequence[Rectangle]
) -> Rectangle:
    """Return where the tag of a box goes: the first place around it that covers the least of other tags."""
    (x1, y1, x2, y2), (width, height) = edges, size
    tops = (y1 - height, y2, y1, y2 - height)  # above, below, inside at either end
    corners = [(left, top) for top in tops for left in (x1, x2 - width)]
    corners += [(x1, y1 - height + step * height) for step in range(-3, 4)]
    places = []
    for left, top in corners:
        left, top = max(0.0, min(left, image_size[0] - width)), max(0.0, min(top, image_size[1] - height))
        places.append((left, top, left + width, top + height))
    return min(places, key=lambda place: sum(_shared(place, other) for other in placed))


def _shared(one: Rectangle, other: Rectangle) -> float:
    """Return the area that two rectangles share, in square pixels."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _draw_masks(image: Image.Image, detections: Detections) -> Image.Image:
    """Return a copy of an image with the masks in the colour of their class, through which the image is seen."""
    drawn = image.copy()
    rows = zip(detections.masks, detections.labels.tolist(), strict=False)  # without a mask there are none at all
    for mask, label in reversed(list(rows)):
        alpha = Image.fromarray(mask.to_array().astype(np.uint8) * _MASK_ALPHA)
        drawn.paste(Image.new("RGB", image.size, COLOURS[label % len(COLOURS)]), mask=alpha)
    return drawn


def _draw_box(canvas: ImageDraw.ImageDraw, corners: Rectangle, look: Look, line: int) -> None:
    """Draw the four sides of a box inside its corners, whose pixels are included."""
    x1, y1, x2, y2 = corners
    if look.dashes is None:
        canvas.rectangle(corners, outline=look.colour, width=line)
        if min(x2 - x1, y2 - y1) > 4 * line:
            canvas.rectangle((x1 + line, y1 + line, x2 - line, y2 - line), outline=look.ink, width=1)
        return
    dash, gap = (line * part for part in look.dashes)
    for low, high, sides in ((x1, x2, (y1, y2)), (y1, y2, (x1, x2))):
        starts = [low]
        while starts[-1] + dash + gap < high:
            starts.append(starts[-1] + dash + gap)
        for start in starts:
            end = min(start + dash - 1, high)
            for side, inwards in zip(sides, (1, -1), strict=True):
                for depth in range(line + 1):
                    at, colour = side + inwards * depth, look.ink if depth == line else look.colour
                    canvas.line((start, at, end, at) if sides == (y1, y2) else (at, start, at, end), fill=colour)
