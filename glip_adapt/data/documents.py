"""Labelled images of any format, in the form of a COCO document.

A reader in ``formats/`` lists images with boxes, ``build_documents`` turns them into COCO documents. From there on all
formats take the way of COCO: one check, one rule for boxes at the border, one rule for EXIF.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.entries import entries_of, image_path, is_image
from glip_adapt.data.images import SUFFIXES
from glip_adapt.data.split import ImageRecord, Split

Finding = tuple[str, str]
"""Kind of defect, and one example of it with its file."""
BoxXYWH = tuple[float, float, float, float]
"""Left, top, width, height in pixels; edges, so that a box of one pixel has width 1."""

SPLIT_ALIASES = {"train": ("train", "training"), "val": ("valid", "val", "validation"), "test": ("test", "testing")}
CLASSES_FILE = "classes.txt"  # one name a line, in label order; written beside formats without a list of classes
_MOST_STEM_BYTES = 200  # of the name of a copied image; leaves room for a number and the suffix of a label file
_UNSAFE = ("Cc", "Cs", "Zl", "Zp")  # control codes, bytes that are not UTF-8, ends of lines
_NO_PICTURES = ("segmentationclass", "segmentationobject")  # masks of Pascal VOC, of the same names as its images


@dataclass(frozen=True)
class LabelledImage:
    """One image as its label file describes it.

    Attributes:
        path: of the image file; it need not exist, the check reports missing ones.
        boxes: class name and box of each object; none for an image that is labelled as empty.
        size_hw: (height, width) in pixels if the label file states it. It decides about EXIF, see ``load_rgb``.
    """

    path: Path
    boxes: tuple[tuple[str, BoxXYWH], ...] = ()
    size_hw: SizeHW | None = None


@dataclass(frozen=True, kw_only=True)
class SplitDocument:
    """One split in COCO form.

    Attributes:
        document: with the lists ``images``, ``annotations`` and ``categories``; empty if it could not be read, which
            the findings say.
        image_dir: file names in it are relative to this folder.
        source: file or folder that it was read from, for messages.
        findings: what the reader left out or doubts, and why.
        folder: of the dataset, if the format describes whole folders; then what states no size is labelled upright.
    """

    document: Mapping[str, Any]
    image_dir: Path
    source: Path
    findings: tuple[Finding, ...] = ()
    folder: Path | None = None


class Format(Protocol):
    """A dataset format: a module of ``formats/`` with these names."""

    NAME: str
    "for --format and --to"
    LAYOUT: str
    "files that make up such a folder, in one line"

    def recognises(self, folder: Path) -> bool:
        """Tell whether a folder holds this format, also if something in it is damaged; never raises."""

    def read(self, folder: Path) -> dict[str, SplitDocument]:
        """Return the splits of a folder, by name: train, val, test; a folder without splits is train.

        Raises:
            ValueError: if files leave their meaning open; names the file, what was expected and what to do.
        """

    def write(self, splits: Mapping[str, Split], folder: Path) -> None:
        """Write labels into an empty folder, with images copied beside them in the layout that ``read`` finds."""


@dataclass
class Draft:
    """What a reader collects for one split."""

    source: Path
    images: list[LabelledImage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def build_documents(
    drafts: Mapping[str, Draft], folder: Path, classes: Sequence[str] | None = None
) -> dict[str, SplitDocument]:
    """Return COCO documents that share one list of classes.

    Args:
        drafts: by name of the split.
        folder: of the dataset; file names in the documents are relative to it.
        classes: in label order; names of boxes that are not among them follow, sorted.
    """
    listed = dict.fromkeys(classes or ())
    names = [*listed, *sorted(_names(drafts.values()) - listed.keys())]
    category_of = {name: number for number, name in enumerate(names, start=1)}
    categories = [{"id": number, "name": name} for name, number in category_of.items()]
    return {
        split: SplitDocument(
            document=_document(draft.images, folder, category_of) | {"categories": categories},
            image_dir=folder,
            source=draft.source,
            findings=tuple(draft.findings),
            folder=folder,
        )
        for split, draft in drafts.items()
    }


def split_folders(folder: Path) -> dict[str, Path]:
    """Return split → subfolder where folders are named after splits; otherwise the folder itself as ``train``.

    Raises:
        ValueError: if two folders are named after one split.
    """
    found: dict[str, Path] = {}
    for name, aliases in SPLIT_ALIASES.items():
        for path in (folder / alias for alias in aliases):
            if path.is_dir() and name in found:
                raise ValueError(f"{folder} has both a {found[name].name} and a {path.name} folder. Remove one.")
            if path.is_dir():
                found[name] = path
    return found or {"train": folder}


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, known by their suffix, sorted; hidden ones and masks do not count."""
    found: list[Path] = []
    seen: set[str] = set()
    for base, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        usable = [name for name in folders if name[0] != "." and name.lower() not in _NO_PICTURES]
        folders[:] = [] if real in seen else usable  # a link may lead back to a folder above
        if real not in seen:
            found += [Path(base, n) for n in names if n[0] != "." and os.path.splitext(n)[1].lower() in SUFFIXES]
        seen.add(real)
    return sorted(found)


def unlabelled_among(folder: Path, splits: Iterable[SplitDocument]) -> list[Path]:
    """Return the image files below a folder that no split contains, sorted."""
    contained = {
        os.path.abspath(image_path(split.image_dir, entry["file_name"]))
        for split in splits
        for entry in entries_of(split.document, "images")
        if is_image(entry)
    }
    return [path for path in image_files(folder) if os.path.abspath(path) not in contained]


def read_classes(file: Path) -> list[str]:
    """Return the names in a file with one class name a line, in their order, without blanks around them.

    Raises:
        ValueError: if the file is not UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: byte {error.start} is not UTF-8. Save the class names as UTF-8.") from error
    return [name for line in text.split("\n") if (name := line.strip())]


def write_classes(splits: Mapping[str, Split], folder: Path) -> None:
    """Write the class names of splits as ``classes.txt``."""
    names = next(iter(splits.values())).classes
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def named_boxes(split: Split, record: ImageRecord) -> list[tuple[str, BoxXYWH]]:
    """Return class name and box of each object of one image of a split."""
    name_of = dict(zip(split.category_ids, split.classes, strict=True))
    return [(name_of[a.category_id], a.bbox_xywh) for a in split.annotations_of(record)]


def copy_images(split: Split, folder: Path, *, states_sizes: bool = False) -> Iterator[tuple[ImageRecord, Path]]:
    """Copy the images of a split into a folder; yield each record, and its copy, as soon as it is there.

    Files keep their names as far as possible: stems are unique in the folder, even where case does not count, and
    control characters are replaced. Files are copied unchanged, with two exceptions, which become PNG: a suffix that
    readers do not know; and an EXIF orientation that ``record.load`` does not apply.

    Args:
        split: with the records.
        folder: made if there is none; images and labels in it keep their names.
        states_sizes: whether labels will state ``record.size_hw``. Then no orientation is in doubt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = {_stem_key(name) for name in os.listdir(folder)}
    for record in split.records:
        is_turned = not states_sizes and record.header.applied != record.header.orientation
        is_copied = record.path.suffix.lower() in SUFFIXES and not is_turned
        stem = _clean_stem(record.path.stem)
        names = (stem if number == 1 else f"{stem}_{number}" for number in range(1, len(taken) + 2))
        name = next(name for name in names if name.casefold() not in taken)
        taken.add(name.casefold())
        if is_copied:
            copy = folder / (name + record.path.suffix)
            shutil.copyfile(record.path, copy)
        else:
            copy = folder / f"{name}.png"
            record.load().save(copy)
        yield record, copy


def _stem_key(name: str) -> str:
    return os.path.splitext(name)[0].casefold()


def _clean_stem(stem: str) -> str:
    """Return a stem that every file system and every list of file names can hold."""
    plain = "".join("_" if c in "/\\" or unicodedata.category(c) in _UNSAFE else c for c in stem).strip(" .")
    return plain.encode()[:_MOST_STEM_BYTES].decode(errors="ignore").strip() or "image"


def _names(drafts: Iterable[Draft]) -> set[str]:
    return {name for draft in drafts for image in draft.images for name, _ in image.boxes}


def _document(images: Sequence[LabelledImage], folder: Path, category_of: Mapping[str, int]) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        path = image.path.relative_to(folder) if image.path.is_relative_to(folder) else image.path
        entry: dict[str, Any] = {"id": image_id, "file_name": path.as_posix()}
        if image.size_hw is not None:
            entry |= {"height": image.size_hw[0], "width": image.size_hw[1]}
        entries.append(entry)
        for name, box in image.boxes:
            number = len(annotations) + 1
            annotations.append(
                {"id": number, "image_id": image_id, "category_id": category_of[name], "bbox": list(box), "iscrowd": 0}
            )
    return {"images": entries, "annotations": annotations}
