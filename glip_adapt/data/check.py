"""Check a dataset folder or a COCO file: what it was taken for, what is in it, what is wrong or doubtful."""

from __future__ import annotations

import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from glip_adapt.data.caption_entries import image_folder
from glip_adapt.data.captions import described_files
from glip_adapt.data.dataset import read_contents
from glip_adapt.data.documents import SplitDocument, unlabelled_among
from glip_adapt.data.entries import entries_of, is_annotation, is_category, is_image
from glip_adapt.data.flickr import read_images
from glip_adapt.data.formats import coco
from glip_adapt.data.odinw import DatasetSpec, find_suite, place_of
from glip_adapt.data.scan import Defect, list_defects

__all__ = ["Defect", "FolderCheck", "SplitCheck", "check_folder", "check_split"]


@dataclass(frozen=True, kw_only=True)
class SplitCheck:
    """What is in one split.

    Attributes:
        images: number of images.
        without_boxes: number of images that show none of the objects.
        boxes: number of boxes by class name, in label order.
        defects: findings by kind; see ``Defect.is_note``.
    """

    images: int
    without_boxes: int
    boxes: dict[str, int]
    defects: tuple[Defect, ...]


@dataclass(frozen=True, kw_only=True)
class FolderCheck:
    """What a folder or file was taken for, and what is in it.

    Attributes:
        format: name of the format.
        known: official name, if it is a known dataset.
        splits: by name.
        unlabelled: number of images in the folder that are in no split; None for a single file or a name.
    """

    format: str
    known: str | None
    splits: dict[str, SplitCheck]
    unlabelled: int | None


def check_folder(path: Path, image_dir: Path | None = None, format: str | None = None) -> FolderCheck:
    """Check a dataset folder of any format, or one COCO file. Every image is decoded, which may take a while.

    Args:
        path: of the folder or file, or name of a known dataset.
        image_dir: of the images of a single file; by default its folder.
        format: of the folder; by default it is recognised.

    Raises:
        FileNotFoundError: if there is neither a folder nor a file.
        ValueError: if the format is not recognised, or the folder is ambiguous; bad content never raises.
    """
    path = Path(path)
    suite = find_suite(str(path))
    if suite is not None and suite.has_sentences:
        return FolderCheck(format="flickr", known=suite.official_name, splits=_check_sentences(suite), unlabelled=None)
    if path.is_file() and zipfile.is_zipfile(path):
        raise ValueError(f"{path} is an archive. Unpack it, and give the folder.")
    if path.is_file():
        documents = {path.stem: coco.read_file(path, image_dir or path.parent)}
        return FolderCheck(format=coco.NAME, known=None, splits=_check(documents), unlabelled=None)
    contents = read_contents(path, format)
    is_folder = path.is_dir() and not (contents.spec and contents.spec.source)  # that of a suite holds more than it
    unlabelled = len(unlabelled_among(path, contents.documents.values())) if is_folder else None
    return FolderCheck(
        format=contents.format or coco.NAME,
        known=contents.spec.official_name if contents.spec else None,
        splits=_check(contents.documents),
        unlabelled=unlabelled,
    )


def check_split(annotation_file: Path, image_dir: Path) -> list[Defect]:
    """Return all defects of a COCO file and its images, by kind; an empty list means that there are none.

    Every image is decoded, which takes a while for a large split. Bad content never raises.
    """
    return list_defects(coco.read_file(Path(annotation_file), Path(image_dir)))


def _check(documents: dict[str, SplitDocument]) -> dict[str, SplitCheck]:
    return {name: _check_one(split) for name, split in documents.items()}


def _check_sentences(suite: DatasetSpec) -> dict[str, SplitCheck]:
    """Check sentences and boxes of a suite that has no classes; boxes are counted by type of phrase.

    Raises:
        FileNotFoundError: if the list of images, or sentences or boxes of one, are missing.
        ValueError: if a file is not in the published form.
    """
    file, folder = described_files(*place_of(suite, None))
    images = list(read_images(file))
    boxes: Counter[str] = Counter()
    for phrase in (phrase for image in images for sentence in image.sentences for phrase in sentence.phrases):
        boxes.update(dict.fromkeys(phrase.types, len(phrase.boxes_xyxy)))
    place = folder or image_folder(file, None, f"{images[0].image_id}.jpg")
    gone = [str(path) for image in images if not (path := place / f"{image.image_id}.jpg").is_file()]
    defects = (Defect("missing image file", len(gone), tuple(gone[:5])),) if gone else ()
    without = sum(not any(len(p.boxes_xyxy) for s in image.sentences for p in s.phrases) for image in images)
    (name,) = suite.splits
    return {name: SplitCheck(images=len(images), without_boxes=without, boxes=dict(boxes), defects=defects)}


def _check_one(split: SplitDocument) -> SplitCheck:
    name_of = {e["id"]: e["name"] for e in entries_of(split.document, "categories") if is_category(e)}
    images = [entry["id"] for entry in entries_of(split.document, "images") if is_image(entry)]
    boxes = [entry for entry in entries_of(split.document, "annotations") if is_annotation(entry)]
    counts = Counter(name_of.get(entry["category_id"]) for entry in boxes)
    shown = {entry["image_id"] for entry in boxes}
    return SplitCheck(
        images=len(images),
        without_boxes=sum(image_id not in shown for image_id in images),
        boxes={name: counts[name] for _, name in sorted(name_of.items())},
        defects=tuple(list_defects(split)),
    )
