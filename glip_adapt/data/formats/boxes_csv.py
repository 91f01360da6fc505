"""CSV files of boxes: one row per object, with the image, the class and four coordinates in pixels.

As TensorFlow's and Roboflow's tools write it (``filename,width,height,class,xmin,ymin,xmax,ymax``), keras-retinanet
(``path,x1,y1,x2,y2,class`` without a header), and many scripts. A row without class and coordinates says that an image
shows none of the objects.
"""

from __future__ import annotations

import csv
import io
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import (
    BoxXYWH,
    Draft,
    LabelledImage,
    SplitDocument,
    copy_images,
    named_boxes,
    write_classes,
)
from glip_adapt.data.images import SUFFIXES
from glip_adapt.data.label_files import (
    SPLIT_OF_ALIAS,
    ImageIndex,
    documents_of,
    files_below,
    one_file_per_split,
    read_text,
    to_number,
)
from glip_adapt.data.split import Split

NAME = "boxes_csv"
LAYOUT = (
    "a .csv file with columns such as filename, class, xmin, ymin, xmax, ymax, and the images; a column split, folders "
    "train, val and test, or train.csv, val.csv and test.csv for splits"
)

_FILE = "_annotations.csv"
_HEADER = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
_DELIMITERS = ",;\t"
_START_BYTES = 2**16
# Names of columns as they read in small letters without _ and other signs.
_IMAGE = ("filename", "file", "image", "imagepath", "imagename", "imgpath", "path", "imageid", "name")
_CLASS = ("class", "classname", "label", "labelname", "category", "categoryname", "name")
_SPLIT = ("split", "subset", "set")
_CONFIDENCE = ("score", "confidence")
_EDGES = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_SIDES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))


class Columns(NamedTuple):
    """Positions of what is read in a row."""

    delimiter: str
    has_header: bool
    image: int
    label: int
    box: Sequence[int]
    has_edges: bool  # left, top, right, bottom; else left, top, width, height
    size: Sequence[int] = ()  # width and height of the image
    split: int | None = None
    confidence: int | None = None


class _Row(NamedTuple):
    image: str
    objects: list[tuple[str, BoxXYWH]]  # one or none
    size_hw: SizeHW | None
    split: str | None


def recognises(folder: Path) -> bool:
    """Tell whether the first row of a CSV file below a folder has the columns of boxes."""
    return any(columns_of(path) for path in files_below(folder, ".csv"))


def read(folder: Path) -> dict[str, SplitDocument]:
    """Return the splits of a folder, told by a column, else by names of files or folders; other CSV files do not count.

    Raises:
        ValueError: if a split has several files, no row names an image, or several images have one name.
    """
    images = ImageIndex(folder)
    drafts: dict[str, Draft] = {}
    tables = {path: columns for path in files_below(folder, ".csv") if (columns := columns_of(path)) is not None}
    for path, named in one_file_per_split(tables, folder).items():
        draft = drafts.setdefault(named or "train", Draft(folder))
        where = path.relative_to(folder).as_posix()
        try:
            rows = _read_rows(path, tables[path], where, draft)
        except (ValueError, csv.Error) as error:
            draft.findings.append(("malformed label file", f"{where}: {error}"))
            continue
        located: dict[tuple[str, str | None], Path] = {}
        found: dict[tuple[str, Path], _Row] = {}
        for row in rows:
            if (row.image, row.split) not in located:
                located[row.image, row.split] = images.find(row.image, path.parent, row.split or named or "train")
            image = located[row.image, row.split]
            split = row.split or named or images.split_of(image)
            found.setdefault((split, image), row._replace(objects=[])).objects.extend(row.objects)
        for (split, image), row in found.items():
            entry = LabelledImage(image, tuple(row.objects), row.size_hw)
            drafts.setdefault(split, Draft(folder)).images.append(entry)
    return documents_of(drafts, images)


def write(splits: Mapping[str, Split], folder: Path) -> None:
    """Write a folder with images and ``_annotations.csv`` for each split, and ``classes.txt``."""
    write_classes(splits, folder)
    for split_name, split in splits.items():
        rows: list[tuple[object, ...]] = [_HEADER]
        for record, copy in copy_images(split, folder / split_name):
            height, width = record.header.size_hw
            start = (copy.name, width, height)
            named = named_boxes(split, record)
            rows += [(*start, name, x, y, x + w, y + h) for name, (x, y, w, h) in named] or [(*start, *[""] * 5)]
        with (folder / split_name / _FILE).open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerows(rows)


def columns_of(path: Path) -> Columns | None:
    """Return the columns of a CSV file by its first row, or None if it is no file of boxes."""
    try:
        with path.open("rb") as opened:
            start = opened.read(_START_BYTES).decode("utf-8-sig", errors="replace")
        first = re.split("[\r\n]", start, maxsplit=1)[0]
        rows = [(d, next(csv.reader([first], delimiter=d, skipinitialspace=True), [])) for d in _DELIMITERS]
    except (OSError, csv.Error):
        return None
    known = (_named_columns(row, delimiter) or _bare_columns(row, delimiter) for delimiter, row in rows)
    return next(filter(None, known), None)


def _named_columns(header: Sequence[str], delimiter: str) -> Columns | None:
    at: dict[str, int] = {}
    for position, cell in enumerate(header):
        at.setdefault(re.sub("[^a-z0-9]", "", cell.lower()), position)
    label = next((at[name] for name in _CLASS if name in at), None)
    image = next((at[name] for name in _IMAGE if name in at and at[name] != label), None)
    sides = next((names for names in (*_EDGES, *_SIDES) if at.keys() >= set(names)), None)
    if image is None or label is None or sides is None:
        return None
    size = [at[name] for name in ("width", "height") if name in at and name not in sides]
    split, confidence = (next((at[n] for n in names if n in at), None) for names in (_SPLIT, _CONFIDENCE))
    box, size = [at[name] for name in sides], size if len(size) == 2 else []
    return Columns(delimiter, True, image, label, box, sides in _EDGES, size, split, confidence)


def _bare_columns(row: Sequence[str], delimiter: str) -> Columns | None:
    """Return the columns of keras-retinanet, if the first row is one of its files, which have no header."""
    columns = Columns(delimiter, False, 0, 5, range(1, 5), True)
    if len(row) != 6 or os.path.splitext(row[0].strip())[1].lower() not in SUFFIXES:
        return None
    try:
        parse_row(row, columns)
    except ValueError:
        return None
    return columns


def _read_rows(path: Path, columns: Columns, where: str, draft: Draft) -> list[_Row]:
    """Return the sound rows of a file; what is wrong or doubtful with others becomes findings of a draft.

    Raises:
        ValueError, csv.Error: if the file is no CSV as a whole.
    """
    content = io.StringIO(read_text(path), newline="")
    reader = csv.reader(content, delimiter=columns.delimiter, skipinitialspace=True, strict=True)
    numbered = [(reader.line_num, cells) for cells in reader][columns.has_header :]
    rows = []
    for number, cells in numbered:
        if not any(map(str.strip, cells)):
            continue
        try:
            rows.append(parse_row(cells, columns))
        except ValueError as error:
            draft.findings.append(("malformed label", f"{where}, line {number}: {error}"))
            continue
        if columns.confidence is not None and any(cells[columns.confidence :][:1]):
            draft.findings.append(("confidence of a label", f"{where}, line {number}"))
    edges = [edge for row in rows for _, (x, y, w, h) in row.objects for edge in (x, y, x + w, y + h)]
    if edges and min(edges) >= 0 and max(edges) <= 1:
        draft.findings.append(("coordinates from 0 to 1", f"{where}: expected pixels, got {edges[:4]}"))
    return rows


def parse_row(cells: Sequence[str], columns: Columns) -> _Row:
    """Return what a row says; ValueError says why it is malformed."""
    cells = [cell.strip() for cell in cells]
    needed = 1 + max(columns.image, columns.label, *columns.box)
    if len(cells) < needed:
        raise ValueError(f"{len(cells)} fields, expected at least {needed}")
    if not cells[columns.image]:
        raise ValueError("no image is named")
    split = None
    if columns.split is not None and columns.split < len(cells) and cells[columns.split]:
        split = SPLIT_OF_ALIAS.get(cells[columns.split].lower())
        if split is None:
            raise ValueError(f"the split is {reprlib.repr(cells[columns.split])}, not train, val or test")
    label, stated = cells[columns.label], [cells[position] for position in columns.box]
    row = _Row(cells[columns.image], [], _size([cells[p] for p in columns.size if p < len(cells)]), split)
    if not label and not any(stated):
        return row
    if not label:
        raise ValueError("the class is empty")
    x, y, right, bottom = map(to_number, stated)
    row.objects.append((label, (x, y, right - x, bottom - y) if columns.has_edges else (x, y, right, bottom)))
    return row


def _size(stated: Sequence[str]) -> SizeHW | None:
    """Return the (height, width) of an image from its width and height, if they are whole numbers of pixels."""
    try:
        width, height = map(to_number, stated)
    except ValueError:
        return None
    return (int(height), int(width)) if all(1 <= side < 1e9 and side % 1 == 0 for side in (width, height)) else None
