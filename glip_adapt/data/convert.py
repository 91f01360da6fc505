"""Convert a dataset from one format to another."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glip_adapt.core.files import scratch_folder
from glip_adapt.data.dataset import Dataset, find_format, load_dataset
from glip_adapt.data.documents import SPLIT_ALIASES
from glip_adapt.data.formats import coco, voc
from glip_adapt.data.split import ImageRecord, Split

OnImage = Callable[[int, int], None]
"""Called with the number of images that are written, and of all."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written.

    Attributes:
        images: number of images by split.
        boxes: number of boxes by split.
        left_out: what the format cannot hold, in sentences.
    """

    images: dict[str, int]
    boxes: dict[str, int]
    left_out: tuple[str, ...]


def convert_dataset(
    source: str | Path,
    to: str,
    out: Path,
    *,
    format: str | None = None,
    integers: bool = False,
    on_image: OnImage | None = None,
) -> Converted:
    """Write a dataset in another format, with copies of its images.

    Args:
        source: a dataset folder, or a name as for ``load_dataset``.
        to: name of the format.
        out: new or empty folder; it appears when it is complete.
        format: of the source; by default it is recognised.
        integers: whether Pascal VOC gets whole pixels.
        on_image: called after each image.

    Raises:
        FileNotFoundError, ValueError: as ``load_dataset``; ValueError also if ``out`` is no place for a new folder, or
            names of classes cannot be told apart or written.
        FileExistsError: if ``out`` is not empty.
    """
    writer, out = find_format(to), Path(os.path.abspath(out))
    if integers and to != voc.NAME:
        raise ValueError(f"Whole pixels are for {voc.NAME}; {to} keeps parts of pixels. Leave --integers out.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder. Name a new one.")
    if (place := Path(os.path.abspath(source))) in out.parents and place.is_dir():
        raise ValueError(f"{out} lies inside the dataset itself. Name a folder outside of {place}.")
    splits, left_out = _fit_for(load_dataset(source, format=format), to)
    options: dict[str, Any] = {"integers": True} if integers else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(out) as scratch:
        complete = scratch / out.name
        complete.mkdir()
        writer.write(_reported(splits, on_image or (lambda done, total: None)), complete, **options)
        os.replace(complete, out)  # also of an empty folder
    return Converted(
        images={name: len(split) for name, split in splits.items()},
        boxes={name: sum(len(split.annotations_of(r)) for r in split.records) for name, split in splits.items()},
        left_out=tuple(left_out),
    )


def _fit_for(data: Dataset, to: str) -> tuple[dict[str, Split], list[str]]:
    """Return what a format can hold of the splits of a dataset, and sentences about the rest."""
    splits = {name: data.splits[name] for name in SPLIT_ALIASES if name in data.splits}
    if not splits:
        raise ValueError(
            f"{data.name} has none of the splits {', '.join(SPLIT_ALIASES)}, only {', '.join(data.splits)}."
        )
    names = tuple(name.strip() for name in data.classes)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{data.name} has two classes called {name!r}. Rename one; formats tell classes by names.")
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\ufffe\uffff" for c in name):
            raise ValueError(f"The class name {name!r} has a line end or a control code. Rename the class.")
    left_out = [
        f"The split {name} is left out; formats have none of that name." for name in data.splits if name not in splits
    ]
    splits = {name: replace(split, classes=names) for name, split in splits.items()}
    if to == coco.NAME:
        return splits, left_out
    crowds = 0
    for name, split in splits.items():
        records = []
        for record in split.records:
            single = tuple(annotation for annotation in record.annotations if not annotation.iscrowd)
            crowds += len(record.annotations) - len(single)
            records.append(replace(record, annotations=single))
        splits[name] = replace(split, records=tuple(records))
    if crowds:
        left_out.append(f"{crowds} crowd regions are left out, since only {coco.NAME} tells them from objects.")
    return splits, left_out


class _Reported(tuple[ImageRecord, ...]):
    """Records that report how far a writer has got with them."""

    report: Callable[[int], None]

    def __iter__(self) -> Iterator[ImageRecord]:
        for done, record in enumerate(super().__iter__(), start=1):
            yield record
            self.report(done)


def _reported(splits: dict[str, Split], on_image: OnImage) -> dict[str, Split]:
    total, before = sum(map(len, splits.values())), 0
    reported = {}
    for name, split in splits.items():
        records = _Reported(split.records)
        records.report = lambda done, before=before: on_image(before + done, total)  # type: ignore[misc]
        reported[name] = replace(split, records=records)
        before += len(split)
    return reported
