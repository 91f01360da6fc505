"""Captioned datasets by their file: Flickr30k Entities, JSON of MDETR, JSON lines of ODVG."""

from __future__ import annotations

import os
from pathlib import Path

from glip_adapt.data import odinw
from glip_adapt.data.caption_entries import CaptionFormat
from glip_adapt.data.captioned import CaptionedSplit
from glip_adapt.data.captions import flickr, mdetr, odvg

FORMATS: tuple[CaptionFormat, ...] = (flickr, mdetr, odvg)  # asked in this order


def load_captions(path: str | Path, images: str | Path | None = None) -> CaptionedSplit:
    """Return the captioned images of a file, to learn from: ``load_captions("flickr30k/train.txt")``.

    Args:
        path: a list of images of Flickr30k Entities, a JSON file of MDETR, or JSON lines of ODVG; what is inside tells
            which. Or a known name such as ``"flickr30k/val"``.
        images: the folder that file names are relative to; by default a folder ``images``, ``flickr30k-images`` or
            ``flickr30k_images`` beside the file, or its own folder.

    Raises:
        FileNotFoundError: if the file, one that belongs to it, or an image is missing.
        ValueError: if the file has no known format, or an entry is not in that format; names the file and the entry.
    """
    known = odinw.find_suite(str(path))
    if known is not None and known.has_sentences and images is None and not os.path.isfile(path):
        path, images = described_files(*odinw.place_of(known, None))
    file, folder = Path(os.path.abspath(path)), None if images is None else Path(os.path.abspath(images))
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}. Expected {_expected()}.")
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Pass the folder of the images as images.")
    reader = next((known for known in FORMATS if known.recognises(file)), None)
    if reader is None:
        raise ValueError(f"{file} holds no captions in a known format. Expected {_expected()}.")
    split = reader.read(file, folder)
    missing = [path for path in dict.fromkeys(i.record.path for i in split.images) if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{file} names {len(missing)} images that are not there, such as {missing[0]}. Pass the folder that its "
            "file names are relative to as images."
        )
    return split


def described_files(spec: odinw.DatasetSpec, base: Path, depth: int) -> tuple[Path, Path | None]:
    """Return the list of a known dataset with sentences, and the folder of its images; None to look beside the list."""
    ((file, folder),) = odinw.known_files(base, spec, depth).values()
    return file, next((place for place in (folder, folder.parent) if place.is_dir()), None)


def _expected() -> str:
    return "; ".join(f"{known.NAME}: {known.LAYOUT}" for known in FORMATS)
