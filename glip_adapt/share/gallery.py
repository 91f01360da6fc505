"""The gallery of the page of an adapter: images with hits, misses and false alarms, the worst first."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from glip_adapt.core.markup import escape
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.engine.draw import FALSE_ALARM, HIT, MISS, TRUTH, draw_marks, match_marks, truth_marks
from glip_adapt.engine.metrics.matching import ImageMatches, Matches

MOST_SHOWN = 24
"""Images in the gallery."""
GALLERY_BYTES = 3_000_000
"""Room for its pictures; the worst image is shown whatever it needs."""
PICTURE_SIDE = 640
"""Longer side of a picture in pixels; small images are enlarged, so that their tags can be read."""
LETTERS = 22
"""Height of their text in pixels, so that it can be read where a picture is 350 px wide."""


@dataclass(frozen=True)
class Counts:
    """Hits, misses and false alarms."""

    hits: int
    misses: int
    false_alarms: int

    @classmethod
    def of(cls, images: Iterable[ImageMatches]) -> Counts:
        """Count over images."""
        parts = [(len(i.hits), len(i.misses), len(i.false_alarms)) for i in images]
        return cls(*map(sum, zip(*parts, strict=True))) if parts else cls(0, 0, 0)

    def __str__(self) -> str:
        return f"{count(self.hits, 'hit')}, {count(self.misses, 'miss', 'es')}, " + count(
            self.false_alarms, "false alarm"
        )


def format_gallery(split: Split, start: Matches, adapted: Matches) -> str:
    """Return the gallery of a split as HTML, with a legend; predictions below their thresholds are left out before."""
    pairs = sorted(
        zip(split.records, start.images, adapted.images, strict=True),
        key=lambda entry: -len(entry[2].misses) - len(entry[2].false_alarms),
    )
    rows: list[str] = []
    room = GALLERY_BYTES
    for record, before, after in pairs[:MOST_SHOWN]:
        row = _gallery_row(record, before, after, split.classes)
        if rows and len(row) > room:
            break
        rows.append(row)
        room -= len(row)
    looks = (("there", TRUTH), ("hit", HIT), ("miss: there, but not found", MISS), ("false alarm", FALSE_ALARM))
    legend = "".join(f"<span>{_swatch(look.colour, look.dashes)} {look.sign}{words}</span> " for words, look in looks)
    left = len(pairs) - len(rows)
    text = (
        f'<p class="legend">{legend}</p><p>Numbers in the pictures are scores. Zero-shot detections are drawn from the '
        "thresholds that suit zero-shot detection best, so that the comparison is fair. A name that cannot be drawn is "
        "replaced by the number of its class.</p>"
    )
    if left:
        text += f"<p>{count(left, 'image')} with fewer errors, or as many, {'is' if left == 1 else 'are'} left out.</p>"
    return text + "".join(rows)


def _gallery_row(record: ImageRecord, start: ImageMatches, adapted: ImageMatches, names: Sequence[str]) -> str:
    """Return an image three times: with the truth, with zero-shot and with adapted detections."""
    image = record.load()
    scale = PICTURE_SIDE / max(image.size)
    small = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    file = record.path.name
    views = (
        ("truth", count(len(adapted.truth_labels), "box", "es"), truth_marks(adapted, names)),
        ("zero-shot", str(Counts.of([start])), match_marks(start, names)),
        ("adapted", str(Counts.of([adapted])), match_marks(adapted, names)),
    )
    size = f'width="{small.width}" height="{small.height}"'
    figures = ""
    for title, counts, marks in views:
        alt, picture = escape(f"{file}, {title}: {counts}"), draw_marks(small, marks, letters=LETTERS, scale=scale)
        figures += (
            f"<figure><figcaption><b>{title}</b> {counts}</figcaption>"
            f'<img loading="lazy" {size} alt="{alt}" src="{embed(picture)}"></figure>'
        )
    return f'<article><h3>{escape(file)}</h3><div class="views">{figures}</div></article>'


def embed(image: Image.Image) -> str:
    """Return an image as an address that holds it, for a page that loads nothing."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=72, method=3)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _swatch(colour: str, dashes: tuple[float, float] | None) -> str:
    pattern = f' stroke-dasharray="{3 * dashes[0]} {3 * dashes[1]}"' if dashes else ""
    return f'<svg width="34" height="12"><path d="M1 6H33" stroke="{colour}" stroke-width="4"{pattern}/></svg>'


def count(number: int, name: str, plural: str = "s") -> str:
    """Return a number and its noun."""
    return f"{number} {name}{'' if number == 1 else plural}"
