"""JSON of MDETR, such as ``final_flickr_separateGT_train.json``: COCO form, with a caption for each image entry.

An image entry has a ``caption``, an annotation ``tokens_positive``: the spans of its words in the caption, [[start,
end], …]. Several spans of one box count as one phrase, from the first start to the last end. Boxes of the same phrase
share its label. A box without spans means nothing that the caption says, and is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glip_adapt.core.sentences import Span
from glip_adapt.data.caption_entries import (
    annotation_of,
    box_of,
    build_image,
    caption_of,
    file_name_of,
    image_folder,
    shown,
    size_of,
    span_of,
    text_of,
)
from glip_adapt.data.captioned import CaptionedImage, CaptionedSplit
from glip_adapt.data.entries import image_path, is_id
from glip_adapt.data.label_files import read_json
from glip_adapt.data.layouts import first_keys

NAME = "mdetr"
LAYOUT = "a .json file in COCO form, with a caption for each image and tokens_positive for each annotation, as of MDETR"

_LISTS = ("images", "annotations")


def recognises(path: Path) -> bool:
    """Tell whether a JSON file starts with keys of COCO."""
    return path.suffix == ".json" and any(key in (*_LISTS, "categories") for key in first_keys(path) or ())


def read(path: Path, images: Path | None) -> CaptionedSplit:
    """Return the images of a file; errors as ``CaptionFormat.read``."""
    try:
        document = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, which cannot be read ({error}). Get the file again.") from error
    entries, annotations = (_list_of(document, key, path) for key in _LISTS)
    of_image: dict[int | str, list[tuple[str, Any]]] = {}
    for number, entry in enumerate(entries):
        key = _value(entry, "id", f"{path}, image {number}", int, str)
        if key in of_image:
            raise ValueError(
                f"{path}, image {number}: the id {shown(key)} stands twice. Give each image one of its own."
            )
        of_image[key] = []
    for number, entry in enumerate(annotations):
        place = f"{path}, annotation {number}"
        if (key := _value(entry, "image_id", place, int, str)) not in of_image:
            raise ValueError(f"{place}: no image has the id {shown(key)}. List the image, or remove the annotation.")
        of_image[key].append((place, entry))
    named = [(f"{path}, image {number}", entry) for number, entry in enumerate(entries)]
    names = [file_name_of(entry.get("file_name"), place) for place, entry in named]
    folder = image_folder(path, images, names[0])
    built = (
        _build(entry, place, image_path(folder, name), of_image[entry["id"]])
        for (place, entry), name in zip(named, names, strict=True)
    )
    return CaptionedSplit(path.stem, tuple(built))


def _build(entry: dict[str, Any], place: str, file: Path, annotations: list[tuple[str, Any]]) -> CaptionedImage:
    """Return one image with its caption and boxes."""
    text = text_of(entry.get("caption"), place)
    labels: dict[Span, int] = {}
    boxes = []
    for where, annotation in annotations:
        if (spans := _value(annotation, "tokens_positive", where, list)) == []:
            continue
        label = labels.setdefault(span_of(spans, text, where), len(labels))
        is_crowd = annotation.get("iscrowd") in (1, True)
        boxes.append(annotation_of(label, box_of(annotation.get("bbox"), where), is_crowd))
    return build_image(entry["id"], file, size_of(entry, place), [caption_of(text, [*labels])], boxes)


def _list_of(document: Any, key: str, path: Path) -> list[Any]:
    """Return a list of the document, of images at least one."""
    found = document.get(key) if isinstance(document, dict) else None
    if not isinstance(found, list) or not (found or key != "images"):
        raise ValueError(f"{path}: expected an object with a list of {key}, got {shown(found)}. It needs {LAYOUT}.")
    return found


def _value(entry: Any, key: str, place: str, *types: type) -> Any:
    """Return a value of an entry; ValueError if there is none of these types."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if not is_id(value, *types):
        raise ValueError(f"{place}: expected an object with {key}, got {shown(entry)}.")
    return value
