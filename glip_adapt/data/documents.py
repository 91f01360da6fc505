"""Labelled images of any format, in the form of a COCO document.

A reader in ``formats/`` lists images with boxes, ``build_documents`` turns them into COCO documents. From there on all
formats take the way of COCO: one check, one rule for boxes at the border, one rule for EXIF.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from glip_adapt.core.structures import SizeHW
from glip_adapt.data.split import Split

Finding = tuple[str, str]
"""Kind of defect, and one example of it with its file."""
BoxXYWH = tuple[float, float, float, float]
"""Left, top, width, height in pixels; edges, so that a box of one pixel has width 1."""

SPLIT_ALIASES = {"train": ("train", "training"), "val": ("valid", "val", "validation"), "test": ("test", "testing")}


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
        document: with the lists ``images``, ``annotations`` and ``categories``.
        image_dir: file names in it are relative to this folder.
        source: file or folder that it was read from, for messages.
        findings: what the reader left out or doubts, and why.
    """

    document: Mapping[str, Any]
    image_dir: Path
    source: Path
    findings: tuple[Finding, ...] = ()


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
        classes: in label order; by default all names of all splits, sorted.
    """
    names = list(classes) if classes is not None else sorted(_names(drafts.values()))
    category_of = {name: number for number, name in enumerate(names, start=1)}
    categories = [{"id": number, "name": name} for name, number in category_of.items()]
    return {
        split: SplitDocument(
            document=_document(draft.images, folder, category_of) | {"categories": categories},
            image_dir=folder,
            source=draft.source,
            findings=tuple(draft.findings),
        )
        for split, draft in drafts.items()
    }


def split_folders(folder: Path) -> dict[str, Path]:
    """Return split → subfolder where folders are named after splits; otherwise the folder itself as ``train``."""
    found = {
        name: folder / alias
        for name, aliases in SPLIT_ALIASES.items()
        for alias in aliases
        if (folder / alias).is_dir()
    }
    return found or {"train": folder}


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
