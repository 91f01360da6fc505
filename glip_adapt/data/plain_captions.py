"""Captions without boxes: which sentence, or sentences, belong to which image file.

- JSON lines, CSV or TSV: ``file_name`` (or ``filename``, ``image``) and ``caption`` (or ``text``) in each line, as the
  metadata files of image folders on the Hub have them.
- COCO captions: a JSON file with ``images`` and ``annotations``, each with ``image_id`` and ``caption``.
- A text file beside each image, ``a.txt`` for ``a.jpg``: a sentence a line.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glip_adapt.data.caption_entries import file_name_of, shown, text_of
from glip_adapt.data.documents import image_files
from glip_adapt.data.entries import image_path
from glip_adapt.data.label_files import read_json, read_text

LAYOUT = "JSON lines or CSV with file_name and caption, COCO captions, or NAME.txt beside each image"
_FILE_KEYS, _TEXT_KEYS = ("file_name", "filename", "image"), ("caption", "text")

Captioned = tuple[Path, str]
"""An image file and a sentence about it."""


def captions_beside(folder: Path) -> list[Captioned]:
    """Return the sentences in text files beside the images below a folder; images without one are left out.

    Raises:
        ValueError: if a text file is not UTF-8, or a sentence holds control characters.
    """
    found = []
    for image in image_files(folder):
        file = image.with_suffix(".txt")
        if file.is_file():
            lines = enumerate(read_text(file).splitlines(), start=1)
            found += [(image, text_of(line.strip(), f"{file}, line {n}")) for n, line in lines if line.strip()]
    return found


def read_captions(file: Path, folder: Path) -> list[Captioned]:
    """Return the sentences of a file, in its order.

    Args:
        file: with captions, see above.
        folder: of the images; file names are relative to it.

    Raises:
        FileNotFoundError: if there is no such file, or an image is missing.
        ValueError: if the file is in no known form, or an entry lacks its image or its caption; names the entry.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}. Expected {LAYOUT}.")
    try:
        entries = list(_entries(file))
    except ValueError as error:
        raise ValueError(f"{file} holds no captions that can be read: {error}. Expected {LAYOUT}.") from error
    found = []
    for place, entry in entries:
        name = file_name_of(_first(entry, _FILE_KEYS), place)
        found.append((image_path(folder, name), text_of(_first(entry, _TEXT_KEYS), place)))
    missing = [path for path, _ in found if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{file} names {len(missing)} images that are not there, such as {missing[0]}. Give the folder that its "
            "file names are relative to."
        )
    if not found:
        raise ValueError(f"{file} holds no caption. Expected {LAYOUT}.")
    return found


def _entries(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield entries with the place of each; ValueError if the file is in no known form."""
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = csv.DictReader(io.StringIO(read_text(file)), delimiter="," if suffix == ".csv" else "\t")
        yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows, start=1))
    elif suffix == ".json":
        yield from _coco(file, read_json(file))
    else:
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if line.strip():
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError(f"line {number} is {shown(entry)}")
                yield f"{file}, line {number}", entry


def _coco(file: Path, document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the captions of a COCO file, each with the name of its image."""
    try:
        name_of = {entry["id"]: entry["file_name"] for entry in document["images"]}
        for number, entry in enumerate(document["annotations"]):
            yield f"{file}, annotation {number}", {"image": name_of[entry["image_id"]], "caption": entry["caption"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"an entry lacks {error}") from error


def _first(entry: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the value of the first key that an entry has; None without any."""
    return next((entry[key] for key in keys if entry.get(key) is not None), None)
