"""Small labelled splits, and what readers and writers of formats have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from glip_adapt.core.structures import Target
from glip_adapt.data.documents import BoxXYWH, Format, SplitDocument
from glip_adapt.data.split import Annotation, ImageRecord, Split

CLASSES = ("owl", "ant", "tawny owl, 2")
Objects = Sequence[tuple[str, BoxXYWH]]

_SIDES = st.floats(1.5, 40, allow_subnormal=False)
_ENDS = st.floats(-5, 60, allow_subnormal=False)
objects = st.lists(st.tuples(st.sampled_from(CLASSES[::2]), st.tuples(_ENDS, _ENDS, _SIDES, _SIDES)), max_size=3)
"""Objects of one picture; no picture has the second class."""


def boxes_of(split: SplitDocument) -> dict[str, list[tuple[str, list[float]]]]:
    """Return class name and box of each object, by file name."""
    name_of = {entry["id"]: entry["name"] for entry in split.document["categories"]}
    found: dict[int, tuple[str, list]] = {e["id"]: (e["file_name"], []) for e in split.document["images"]}
    for entry in split.document["annotations"]:
        found[entry["image_id"]][1].append((name_of[entry["category_id"]], entry["bbox"]))
    return dict(found.values())


def classes_of(split: SplitDocument) -> list[str]:
    """Return the class names in label order."""
    return [entry["name"] for entry in split.document["categories"]]


def make_split(folder: Path, pictures: Sequence[Objects]) -> Split:
    """Return a split with a picture of 40 × 30 pixels, 1.png and so on, for each list of objects."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, stated in enumerate(pictures, start=1):
        path = folder / f"{number}.png"
        Image.new("RGB", (40, 30), (number, 0, 0)).save(path)
        boxes = tuple(Annotation(CLASSES.index(c) + 1, tuple(b), b[2] * b[3], False) for c, b in stated)
        empty = Target(torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64))
        records.append(ImageRecord(number, path, (30, 40), empty, boxes))
    return Split(f"toy/{folder.name}", tuple(records), CLASSES, tuple(range(1, len(CLASSES) + 1)))


def turned_split(folder: Path) -> Split:
    """Return a split of one picture whose box was drawn on its stored pixels, although it has an EXIF orientation."""
    split = make_split(folder, [[("owl", (1, 2, 3, 4))]])
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(split.records[0].path, exif=exif)
    return split


def check_round_trip(module: Format, folder: Path, pictures: Mapping[str, Sequence[Objects]]) -> None:
    """Write pictures of several splits, and check that the same classes, images and boxes are read again."""
    splits = {name: make_split(folder / "from" / name, stated) for name, stated in pictures.items()}
    written = folder / "to"
    written.mkdir()
    module.write(splits, written)
    assert module.recognises(written)
    found = module.read(written)
    assert list(found) == list(pictures)
    for name, split in found.items():
        assert split.findings == ()
        assert classes_of(split) == list(CLASSES)
        for record, stated, (file, read) in zip(
            splits[name].records, pictures[name], boxes_of(split).items(), strict=True
        ):
            assert (split.image_dir / file).read_bytes() == record.path.read_bytes()
            assert [label for label, _ in read] == [label for label, _ in stated]
            for (_, one), (_, other) in zip(stated, read, strict=True):
                assert other == pytest.approx(list(one), abs=0.01)
