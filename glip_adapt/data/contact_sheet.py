"""All synthetic sets on one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from glip_adapt.data.glyphs import GLYPHS13, UPRIGHT_FONTS, GlyphSet, font, scenes


def contact_sheet(sets: Sequence[GlyphSet] = GLYPHS13, per_set: int = 4) -> Image.Image:
    """Return one picture that shows each set's name, purpose and classes over its first test pictures with boxes."""
    height, heading, gap = 240, 44, 8
    widest = max(spec.size_hw[1] * height // spec.size_hw[0] for spec in sets) + gap
    rows = math.ceil(len(sets) / 2)
    sheet = Image.new("RGB", (2 * per_set * widest + gap, rows * (height + heading)), "white")
    canvas = ImageDraw.Draw(sheet)
    for position, spec in enumerate(sets):
        left, top = position // rows * per_set * widest + gap, position % rows * (height + heading)
        canvas.text((left, top + 4), f"{spec.name} (synthetic): {spec.purpose}", "black", font(UPRIGHT_FONTS[1], 17))
        canvas.text((left, top + 25), ", ".join(spec.classes)[:175], "black", font(UPRIGHT_FONTS[0], 12))
        for column, (scene, labelled) in zip(range(per_set), scenes(spec, "test"), strict=False):
            picture = ImageOps.scale(scene.image, scale := height / scene.image.height)
            for box in (scene.boxes_xyxy[labelled] + (-1, -1, 2, 2)) * scale:
                ImageDraw.Draw(picture).rectangle(box.tolist(), outline=(0, 190, 80))
            sheet.paste(picture, (left + column * widest, top + heading))
    return sheet
