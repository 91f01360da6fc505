"""Pictograms of the synthetic sets: their class names, and the fonts of matplotlib that draw them.

Class names come from the Unicode Character Database. Pre-training shows the names of ``seen_glyphs``, and never those
of ``unseen_glyphs``, so testing on the latter is an open-vocabulary problem. glyphs13.toml holds the characters.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import ImageFont

from glip_adapt.core.config import read_toml

UPRIGHT_FONTS = (  # pre-training uses these
    *("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    *("DejaVuSansMono.ttf", "STIXGeneral.ttf"),
)
ITALIC_FONTS = (
    *("DejaVuSans-Oblique.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSerif-BoldItalic.ttf", "STIXGeneralItalic.ttf"),
)


@dataclass(frozen=True)
class Glyph:
    """One pictogram.

    Attributes:
        name: class name, such as ``"solid chess knight"``.
        character: the code point.
        fonts: file names of the fonts that have it, of UPRIGHT_FONTS and ITALIC_FONTS.
    """

    name: str
    character: str
    fonts: tuple[str, ...]


@cache
def glyph_facts() -> dict[str, Any]:
    """Return the content of glyphs13.toml: characters, names and sets."""
    return read_toml(Path(__file__).with_name("glyphs13.toml"))


@cache
def seen_glyphs() -> tuple[Glyph, ...]:
    """Return the glyphs whose names pre-training shows."""
    return tuple(
        _build_glyph(char, _name(char)) for characters in glyph_facts()["seen"].values() for char in characters
    )


@cache
def unseen_glyphs() -> tuple[Glyph, ...]:
    """Return the glyphs whose names pre-training never shows."""
    return tuple(_build_glyph(char, name) for theme in glyph_facts()["unseen"].values() for char, name in theme.items())


def _name(character: str) -> str:
    """Return the class name of a character, made from its Unicode name."""
    if character in glyph_facts()["names"]:
        return str(glyph_facts()["names"][character])
    words = unicodedata.name(character).replace("-", " ").split()
    words = [word for word in (glyph_facts()["words"].get(word, word.lower()) for word in words) if word]
    if len(words) > 4:  # the longest name wanted
        words = [word for word in words if word not in ("with", "and", "of", "the")]
    if len(words) > 2 and words[-2] in ("solid", "hollow"):  # Unicode has no fixed place for them
        words.insert(0, words.pop(-2))
    return " ".join(words)


def _build_glyph(character: str, name: str) -> Glyph:
    """Return a glyph with the fonts that have it; the others draw nothing, or the box for a missing glyph."""
    fonts = []
    for file in UPRIGHT_FONTS + ITALIC_FONTS:
        drawn, missing = (bytes(font(file, 20).getmask(text)) for text in (character, "\ufffe"))
        if any(drawn) and drawn != missing:
            fonts.append(file)
    if not fonts:
        raise ValueError(f"No font of matplotlib draws {name!r} (U+{ord(character):04X}); is matplotlib at least 3.9?")
    return Glyph(name, character, tuple(fonts))


@cache
def font(file: str, size: int) -> ImageFont.FreeTypeFont:
    """Return one of the fonts that matplotlib ships, ``size`` pixels high."""
    import matplotlib  # only to find its fonts

    path = f"{matplotlib.get_data_path()}/fonts/ttf/{file}"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
