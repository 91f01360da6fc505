"""Draw detections on an image."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from glip_adapt.core.structures import Detections

# Okabe and Ito's palette without black: told apart by colour-blind readers, visible on photographs.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def draw_detections(image: Image.Image, detections: Detections) -> Image.Image:
    """Return a copy of an RGB image with a labelled box per detection, the best on top.

    The detections are in pixels of the image and have ``class_names``.
    """
    drawn = image.copy()
    canvas = ImageDraw.Draw(drawn)
    side = max(drawn.size)
    font = ImageFont.load_default(max(11, side // 50))
    line = max(2, side // 300)
    columns = (detections.boxes_xyxy, detections.scores, detections.labels)
    for (x1, y1, x2, y2), score, label in zip(*(column.flip(0).tolist() for column in columns), strict=True):
        colour = COLOURS[label % len(COLOURS)]
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)  # last pixel included
        text = f"{detections.class_names[label]} {score:.2f}"
        _, top, width, bottom = canvas.textbbox((0, 0), text, font=font)
        width, height = width + 6, bottom - top + 4
        # The tag sits above the box, or inside it at the upper edge of the image; at the right edge it moves left.
        left, upper = max(0, min(x1, drawn.width - width)), max(0, y1 - height)
        canvas.rectangle((left, upper, left + width - 1, upper + height), fill=colour)  # its last pixel included
        canvas.text((left + 3, upper + 2 - top), text, fill="black", font=font)
    return drawn
