"""The page of pseudo-labels: how many there are, by which rules, and some of the images with their boxes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from PIL import ImageOps

from glip_adapt.core.markup import escape, format_document, format_table
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.engine.draw import COLOURS, Look, Mark, draw_marks
from glip_adapt.share.gallery import LETTERS, PICTURE_SIDE, count, embed

PAGE_FILE = "sample.html"
MOST_SHOWN = 24
"""Images on the page, and sentences about what is left out."""

_STYLE = """
figure { margin: 0; }
.views { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
"""


def format_page(
    title: str,
    split: Split,
    pseudo: Sequence[ImageRecord],
    boxes: Counter[str],
    left_out: Sequence[str],
    threshold: str,
    rules: str,
) -> str:
    """Return a page with numbers, rules, and some images drawn with their labels."""
    drawn = random.Random(0).sample(pseudo, min(MOST_SHOWN, len(pseudo)))
    number = {key: place for place, key in enumerate(split.category_ids)}
    pictures = []
    for record in sorted(drawn, key=lambda record: str(record.path)):
        image = record.load()
        scale = PICTURE_SIDE / max(image.size)
        small = ImageOps.contain(image, (PICTURE_SIDE, PICTURE_SIDE))
        marks = [
            Mark(
                edges=(x, y, x + w, y + h),
                text=f"{split.classes[number[a.category_id]]} {a.score:.2f}",
                look=Look(colour=COLOURS[number[a.category_id] % len(COLOURS)]),
            )
            for a in split.annotations_of(record)
            for x, y, w, h in [a.bbox_xywh]
        ]
        picture = embed(draw_marks(small, marks, letters=LETTERS, scale=scale))
        name = escape(record.path.name)
        pictures.append(
            f'<figure><img loading="lazy" alt="{name}" src="{picture}"><figcaption>{name}</figcaption></figure>'
        )
    rows = [(escape(name), str(found)) for name, found in boxes.most_common()]
    hand = len(split) - len(pseudo)
    more = f", and {count(hand, 'image')} labelled by hand" if hand else ""
    text = (
        f"<h1>{escape(title)}</h1><p>{count(len(pseudo), 'image')} with {count(sum(boxes.values()), 'pseudo-label')}"
        f"{more}. Nobody has corrected them.</p>"
        f"<p>A detection is a label if its score reaches {escape(threshold)}; {escape(rules)}.</p>"
    )
    text += "".join(f"<p>{escape(sentence)}</p>" for sentence in left_out[:MOST_SHOWN])
    text += f"<h2>{count(len(drawn), 'image')} drawn at random</h2><div class=views>{''.join(pictures)}</div>"
    text += f"<h2>Labels</h2>{format_table(('name', 'labels'), rows, (True, False))}"
    return format_document(title, text, _STYLE)
