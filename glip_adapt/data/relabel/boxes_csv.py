"""Change labels in CSV files of boxes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from glip_adapt.core.files import written_whole
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.formats.boxes_csv import Columns, columns_of, parse_row
from glip_adapt.data.label_files import ImageIndex, files_below, named_split, one_file_per_split, read_text
from glip_adapt.data.relabel.label_files import list_classes
from glip_adapt.data.relabel.objects import NamedBox, same_objects


def relabel(folder: Path, image: Path, boxes: Sequence[NamedBox] | None, size_hw: SizeHW) -> None:
    """Change the labels of one image in the CSV file of its split; rows that stay keep their other columns."""
    images = ImageIndex(folder)
    tables = {path: columns for path in files_below(folder, ".csv") if (columns := columns_of(path)) is not None}
    splits = one_file_per_split(tables, folder)
    contents = {path: _Table(path, columns, images, splits[path]) for path, columns in tables.items()}
    mine = next((table for table in contents.values() if table.rows_of(image)), None)
    if mine is None:
        stated = named_split(image, folder) or "train"
        mine = next((contents[path] for path in tables if splits[path] == stated), next(iter(contents.values())))
    list_classes(folder, boxes)
    mine.relabel(image, boxes, size_hw, named_split(image, folder) or "train")


class _Table:
    """A CSV file that is being changed."""

    def __init__(self, path: Path, columns: Columns, images: ImageIndex, split: str | None) -> None:
        self.path, self.columns = path, columns
        content = io.StringIO(read_text(path), newline="")
        self.rows = list(csv.reader(content, delimiter=columns.delimiter, skipinitialspace=True, strict=True))
        self._images, self._split = images, split
        self._found: dict[tuple[str, str | None], Path] = {}

    def rows_of(self, image: Path) -> dict[int, NamedBox | None]:
        """Return the object of each row about an image, by position; None for a row that says there is none."""
        found: dict[int, NamedBox | None] = {}
        for position, cells in enumerate(self.rows):
            if position < self.columns.has_header:
                continue
            try:
                row = parse_row(cells, self.columns)
            except ValueError:
                continue
            key = row.image, row.split
            if key not in self._found:
                split = row.split or self._split or "train"
                self._found[key] = self._images.find(row.image, self.path.parent, split)
            if self._found[key] == image:
                found[position] = row.objects[0] if row.objects else None
        return found

    def relabel(self, image: Path, boxes: Sequence[NamedBox] | None, size_hw: SizeHW, split: str) -> None:
        """Replace the rows of an image, and write the file."""
        mine = self.rows_of(image)
        objects = {position: named for position, named in mine.items() if named is not None}
        places = same_objects(list(objects.values()), boxes or ())
        start = self._start(image, next((self.rows[position] for position in mine), None), size_hw, split)
        kept = list(objects)
        fresh = [
            self._row(start, named) if place is None else self.rows[kept[place]]
            for named, place in zip(boxes or (), places, strict=True)
        ]
        if boxes is not None and not boxes:
            fresh = [self._row(start, None)]
        first = min(mine, default=len(self.rows))
        rows = [row for position, row in enumerate(self.rows) if position < first]
        rows += fresh + [row for position, row in enumerate(self.rows) if position >= first and position not in mine]
        with written_whole(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened, delimiter=self.columns.delimiter, lineterminator="\n").writerows(rows)

    def _start(self, image: Path, old: list[str] | None, size_hw: SizeHW, split: str) -> list[str]:
        """Return a row about an image without an object."""
        columns = self.columns
        width = len(self.rows[0])
        cells = [""] * width
        cells[columns.image] = old[columns.image] if old else Path(os.path.relpath(image, self.path.parent)).as_posix()
        for position, side in zip(columns.size, size_hw[::-1], strict=False):
            cells[position] = old[position] if old and position < len(old) else str(side)
        if columns.split is not None:
            cells[columns.split] = old[columns.split] if old and columns.split < len(old) else split
        return cells

    def _row(self, start: list[str], named: NamedBox | None) -> list[str]:
        cells = list(start)
        if named is not None:
            name, (x, y, w, h) = named
            sides = (x, y, x + w, y + h) if self.columns.has_edges else (x, y, w, h)
            cells[self.columns.label] = name
            for position, side in zip(self.columns.box, sides, strict=True):
                cells[position] = f"{side:.4f}".rstrip("0").rstrip(".")
        return cells
