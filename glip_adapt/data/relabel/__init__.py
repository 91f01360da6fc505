"""Change the labels of one image where they stand: one file per format, each with the function ``relabel``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.dataset import find_format
from glip_adapt.data.documents import SplitDocument
from glip_adapt.data.formats import yolo as yolo_files
from glip_adapt.data.relabel import boxes_csv, coco, image_folder, label_studio, labelme, voc, yolo
from glip_adapt.data.relabel.objects import NamedBox

Relabel = Callable[[Path, Path, Sequence[NamedBox] | None, SizeHW], None]

RELABEL: dict[str, Relabel] = {
    "coco": coco.relabel,
    "yolo": yolo.relabel,
    "voc": voc.relabel,
    "labelme": labelme.relabel,
    "label_studio": label_studio.relabel,
    "image_folder": image_folder.relabel,
    "boxes_csv": boxes_csv.relabel,
}
"""By name of the format."""


def read_labels(folder: Path, format: str) -> dict[str, SplitDocument]:
    """Return the splits of a folder before a change of its labels; errors as ``Format.read``.

    A folder of YOLO that names its classes and has no label file yet gives one split without images.
    """
    return yolo_files.read_begun(folder) if format == yolo_files.NAME else find_format(format).read(folder)


def relabel(folder: Path, format: str, image: Path, boxes: Sequence[NamedBox] | None, size_hw: SizeHW) -> None:
    """Change the labels of one image; everything else in the label files stays, and they are replaced whole.

    An object whose class and box stay keeps what the file says about it, such as a polygon. A new class is added to the
    list of classes, if the format has one.

    Args:
        folder: of the dataset.
        format: of its labels; COCO also makes the file of a folder without labels.
        image: in the folder; if no label file speaks of it yet, one does afterwards.
        boxes: all objects; none for an image that shows none of them; None takes the labels away.
        size_hw: (height, width) in pixels of the image that the boxes were drawn on.

    Raises:
        ValueError: if the layout of the folder has no place for the image, or a label file cannot be read.
        OSError: if a label file cannot be written; it then stays as it was.
    """
    RELABEL[format](folder, image, boxes, size_hw)
