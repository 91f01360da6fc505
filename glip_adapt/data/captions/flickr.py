"""Flickr30k Entities: a list of images, with ``Annotations`` and ``Sentences`` beside it, for training.

Each sentence is a caption of its own. A phrase has the boxes of its chain; one without boxes keeps its span, and is
learned as words only. Corners are pixels as in the XML, the last one included, as in the public evaluator
(data/datasets/evaluation/flickr/flickr_eval.py).
"""

from __future__ import annotations

from pathlib import Path

from glip_adapt.data.caption_entries import (
    annotation_of,
    box_of,
    build_image,
    caption_of,
    file_name_of,
    image_folder,
    span_of,
    text_of,
)
from glip_adapt.data.captioned import CaptionedImage, CaptionedSplit
from glip_adapt.data.flickr import DescribedImage, read_images

NAME = "flickr"
LAYOUT = "a list of image ids such as test.txt, with the folders Annotations and Sentences of Flickr30k Entities beside"


def recognises(path: Path) -> bool:
    """Tell whether a text file lies beside the folders of Flickr30k Entities, or at least one of them."""
    return path.suffix == ".txt" and any((path.parent / name).is_dir() for name in ("Annotations", "Sentences"))


def read(path: Path, images: Path | None) -> CaptionedSplit:
    """Return one captioned image for each sentence of the images in a list; errors as ``CaptionFormat.read``."""
    described = list(read_images(path))
    names = [file_name_of(f"{image.image_id}.jpg", str(path)) for image in described]
    folder = image_folder(path, images, names[0])
    return CaptionedSplit(
        path.stem,
        tuple(
            captioned
            for name, image in zip(names, described, strict=True)
            for captioned in _build(image, folder / name, path.parent)
        ),
    )


def _build(image: DescribedImage, file: Path, base: Path) -> list[CaptionedImage]:
    """Return an image once for each of its sentences."""
    if image.size_hw is None:
        raise ValueError(
            f"{base / 'Annotations' / image.image_id}.xml: expected the height and width of the image, got none."
        )
    found = []
    for number, sentence in enumerate(image.sentences):
        place = f"{base / 'Sentences' / image.image_id}.txt, sentence {number}"
        text = text_of(sentence.text, place)
        boxes = []
        for label, phrase in enumerate(sentence.phrases):
            for corners in phrase.boxes_xyxy.tolist():
                left, top, right, bottom = box_of(corners, f"{place}, phrase {phrase.text!a}")
                boxes.append(annotation_of(label, (left, top, right - left + 1, bottom - top + 1)))
        spans = [span_of([span], text, place) for span in sentence.spans]
        found.append(build_image(image.image_id, file, image.size_hw, [caption_of(text, spans)], boxes))
    return found
