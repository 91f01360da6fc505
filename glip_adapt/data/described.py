"""Known datasets whose images have sentences: Flickr30k Entities, to find the phrases in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glip_adapt.core.captions import Caption
from glip_adapt.data.caption_entries import image_folder
from glip_adapt.data.captions import described_files
from glip_adapt.data.flickr import DescribedImage, Sentence, read_images
from glip_adapt.data.odinw import DatasetSpec, place_of


@dataclass(frozen=True)
class Described:
    """Images with sentences on this machine.

    Attributes:
        name: of the dataset.
        images: in the order of the list.
        folder: of the image files ``ID.jpg``.
    """

    name: str
    images: tuple[DescribedImage, ...]
    folder: Path


def read_described(spec: DatasetSpec, root: Path | None = None) -> Described:
    """Return the images and sentences of a known dataset.

    Raises:
        FileNotFoundError: if it is not on this machine, or a file of it is missing.
        ValueError: if a file is not in the published form.
    """
    file, folder = described_files(*place_of(spec, root))
    images = tuple(read_images(file))
    folder = folder or image_folder(file, None, f"{images[0].image_id}.jpg")
    for image in images:
        if not (path := folder / f"{image.image_id}.jpg").is_file():
            raise FileNotFoundError(f"There is no image {path}. {spec.how_to_get(Path())}.")
    return Described(spec.official_name, images, folder)


def phrases_to_find(sentence: Sentence) -> Caption:
    """Return a sentence with those of its phrases that have a true box."""
    wanted = [
        (span, phrase.text)
        for span, phrase in zip(sentence.spans, sentence.phrases, strict=True)
        if len(phrase.boxes_xyxy)
    ]
    return Caption(sentence.text, tuple(span for span, _ in wanted), tuple(text for _, text in wanted))
