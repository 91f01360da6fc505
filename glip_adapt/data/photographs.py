"""Folders of photographs of which some, all, or none are labelled."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from glip_adapt.data import odinw
from glip_adapt.data.dataset import FORMATS, Dataset, load_dataset, unlabelled_images
from glip_adapt.data.documents import image_files
from glip_adapt.data.formats import coco
from glip_adapt.data.split import Split


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """A folder of which some images, all, or none are labelled.

    Attributes:
        unlabelled: image files that no label file speaks of.
        data: the labelled images; None if the folder holds no label file.
    """

    unlabelled: tuple[Path, ...]
    data: Dataset | None

    @property
    def format(self) -> str:
        """The format of the labels; COCO if there are none."""
        return (self.data.format if self.data else "") or coco.NAME

    @property
    def labelled(self) -> tuple[Split, ...]:
        """The images to learn from; none if there are none."""
        return (self.data.splits["train"],) if self.data and "train" in self.data.splits else ()


def read_photographs(folder: Path, format: str | None = None) -> Photographs:
    """Return the unlabelled and the labelled images of a folder.

    Args:
        folder: with images at any depth, and labels in a known format or none.
        format: of the labels; by default it is recognised.

    Raises:
        FileNotFoundError, ValueError: as ``unlabelled_in`` and ``load_dataset``.
    """
    unlabelled = unlabelled_in(folder, format)
    data = load_dataset(os.path.abspath(folder), format=format) if _has_labels(folder, format) else None
    return Photographs(unlabelled=unlabelled, data=data)


def unlabelled_in(folder: Path, format: str | None = None) -> tuple[Path, ...]:
    """Return the images below a folder that no label file in it speaks of; ``format`` as ``read_photographs``.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if every image is labelled or there is none; otherwise as ``read_folder``.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give a folder of images, of which some may be labelled.")
    has_labels = _has_labels(folder, format)
    found = unlabelled_images(folder, format) if has_labels else image_files(folder)
    if not found:
        what = "Every image in it is labelled" if has_labels else "It holds no image"
        raise ValueError(f"{folder}: no image to label. {what}. Add images without labels.")
    return tuple(found)


def _has_labels(folder: Path, format: str | None) -> bool:
    folder = Path(os.path.abspath(folder))
    is_known = odinw.recognise(folder) is not None
    return format is not None or is_known or any(known.recognises(folder) for known in FORMATS)
