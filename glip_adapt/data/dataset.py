"""Datasets by name or folder: any folder in a known format, ODinW, COCO, LVIS, and the synthetic sets glyphs13."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.config import unknown_name
from glip_adapt.data import odinw
from glip_adapt.data.documents import Format, SplitDocument, unlabelled_among
from glip_adapt.data.entries import root_category
from glip_adapt.data.formats import boxes_csv, coco, image_folder, label_studio, labelme, voc, yolo
from glip_adapt.data.glyphs13 import GLYPHS_VERSION, GlyphSet, find_glyph_set, write_glyph_set
from glip_adapt.data.odinw import DatasetSpec
from glip_adapt.data.split import AnnotationIds, Split

FORMATS: tuple[Format, ...] = (coco, yolo, voc, labelme, label_studio, image_folder, boxes_csv)  # asked in this order
_MOST_LISTED = 10  # entries of a folder in a message


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Splits with the same classes.

    Attributes:
        name: official name, or name of the folder.
        classes: name of label 0..K-1.
        splits: the splits that exist, by name; ``train``, ``val`` and ``test`` are also attributes.
        prompts: wording of the classes by hand, in label order, or None.
        early_stopping: the split that public training selects on.
        format: name of the format that the folder was read as; empty for a known dataset, which is COCO.
        names_per_caption: class names in a caption that the dataset is published with, a setting of ``zero_shot``;
            None: as many as fit.
        boxes_per_caption: boxes of an image that it is published with, see ``evaluate``; None: as usual.
        metric: the published one, see ``evaluate``.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    prompts: tuple[ClassPrompt, ...] | None = None
    early_stopping: str = "val"
    format: str = ""
    names_per_caption: int | None = None
    boxes_per_caption: int | None = None
    metric: str = "coco"

    @property
    def train(self) -> Split:
        """The split to learn from; FileNotFoundError if there is none."""
        return self._split("train")

    @property
    def val(self) -> Split:
        """The split to select on; FileNotFoundError if there is none."""
        return self._split("val")

    @property
    def test(self) -> Split:
        """The split to report on; FileNotFoundError if there is none.

        PascalVOC has no test split: like the paper and its public config, ``test`` holds the images of ``val``.
        """
        return self._split("test")

    @property
    def selection(self) -> Split:
        """The split that selects a state in training: the one of the public config if it exists, else ``val``."""
        return self.splits.get(self.early_stopping) or self.val

    def scored(self, annotation_ids: AnnotationIds) -> Dataset:
        """Return the dataset with boxes numbered in this way for scoring; see ``Split.annotation_ids``."""
        splits = {name: replace(split, annotation_ids=annotation_ids) for name, split in self.splits.items()}
        return replace(self, splits=splits)

    def with_negatives(self, names: Sequence[str]) -> Dataset:
        """Return the dataset with more classes, of which no image shows any: what may be mistaken for its own ones.

        They stand in the caption and are learned as wrong. They have no box, so that no score counts them.

        Raises:
            ValueError: if one is a class already.
        """
        if known := sorted(set(names) & set(self.classes)):
            raise ValueError(f"{known[0]!r} is a class of {self.name}. Name things that are none as negatives.")
        splits = {key: split.with_negatives(names) for key, split in self.splits.items()}
        prompts = self.prompts and (*self.prompts, *(ClassPrompt(name=name) for name in names))
        return replace(self, classes=(*self.classes, *names), splits=splits, prompts=prompts)

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            have = ", ".join(self.splits)
            if odinw.find_suite(self.name) is not None:
                raise FileNotFoundError(
                    f"{self.name!r} has no {name} split, only {have}: it is for scoring alone. To learn from its "
                    "images, give their folder as a path, such as ./coco."
                )
            layout = next((known.LAYOUT for known in FORMATS if self.format == known.NAME), coco.LAYOUT)
            raise FileNotFoundError(f"Dataset {self.name!r} has no {name} split, only {have}. Expected {layout}.")
        return self.splits[name]


@dataclass(frozen=True, kw_only=True)
class FolderContents:
    """Splits of a dataset folder, read but not checked.

    Attributes:
        documents: by name of the split.
        format: name of the format; empty for a known dataset, which is COCO.
        spec: facts of the known dataset, or None.
    """

    documents: dict[str, SplitDocument]
    format: str
    spec: DatasetSpec | None = None


def load_dataset(name_or_path: str | Path, root: Path | None = None, format: str | None = None) -> Dataset:
    """Return the dataset in a folder, or a known one by its official or short name.

    Args:
        name_or_path: an existing folder, or a name such as ``"Raccoon"``, ``"lvis/minival"`` or ``"glyphs13/Dice"``.
            A synthetic set is rendered on first use, and kept below ``root``, ``$GLIP_ADAPT_DATA`` or the cache folder
            of the user.
        root: the folder that holds the known datasets; by default ``$GLIP_ADAPT_DATA``, then ``./odinw``, or for the
            folders ``coco`` and ``flickr30k`` the working folder.
        format: of the folder, such as ``"coco"`` or ``"yolo"``; by default it is recognised.

    Raises:
        FileNotFoundError: if a known dataset is not under ``root``, or a path does not exist.
        ValueError: if the name is unknown; if no format or several formats recognise the folder, or it holds more than
            one dataset; if its splits differ in their classes, or a file has a defect (see ``scan.require_sound``).
    """
    folder, name = Path(os.path.abspath(name_or_path)), str(name_or_path)
    if folder.is_dir() and (format is not None or not odinw.means_suite(name, root)):
        return _load_folder(folder, format)
    if format is not None:
        raise FileNotFoundError(f"There is no folder {folder}; a format belongs to the folder of a dataset.")
    if (glyph_set := find_glyph_set(name)) is not None:
        return _load_rendered(name, glyph_set, root)
    spec = odinw.find_spec(name)
    if spec.has_sentences:
        raise ValueError(
            f"{spec.official_name} has sentences instead of classes. `glip-adapt eval {spec.official_name}` scores a "
            f"detector on it; load_captions({spec.official_name!r}) reads it."
        )
    return _load_known(_read_known(*odinw.place_of(spec, root)), spec)


def read_contents(name_or_path: Path | str, format: str | None = None) -> FolderContents:
    """Return the splits of the dataset in a folder, or of a known one by its name; errors as ``read_folder``."""
    name = str(name_or_path)
    spec = odinw.named(name)
    if spec is None or format is not None or (Path(name).is_dir() and not odinw.means_suite(name, None)):
        return read_folder(name, format)
    documents = _read_known(*odinw.place_of(spec, None))
    return FolderContents(documents=documents, format="", spec=spec)


def read_folder(folder: Path | str, format: str | None = None) -> FolderContents:
    """Return the splits of the one dataset in a folder; images are not opened, unless the labels need their sizes.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if no format or several formats recognise it, or it holds more than one dataset.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give the folder of one dataset.")
    if format is None and (known := odinw.recognise(folder)) is not None:
        return FolderContents(documents=_read_known(known[0], folder, known[1]), format="", spec=known[0])
    reader = recognise_format(folder) if format is None else find_format(format)
    return FolderContents(documents=reader.read(folder), format=reader.NAME)


def find_format(name: str) -> Format:
    """Return the format of this name; UnknownNameError lists the names."""
    by_name = {known.NAME: known for known in FORMATS}
    if name not in by_name:
        raise unknown_name("format", name, list(by_name))
    return by_name[name]


def recognise_format(folder: Path) -> Format:
    """Return the one format that recognises a folder.

    Raises:
        ValueError: if none does, or several do.
    """
    found = [known for known in FORMATS if known.recognises(folder)]
    if len(found) > 1:
        names = ", ".join(f"{known.NAME} ({known.LAYOUT})" for known in found)
        raise ValueError(
            f"{folder} may be read in several formats: {names}. Choose one by --format, or format= of load_dataset."
        )
    if not found:
        inside = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
        more = f" and {len(inside) - _MOST_LISTED} more" if len(inside) > _MOST_LISTED else ""
        expected = "; ".join(f"{known.NAME}: {known.LAYOUT}" for known in FORMATS)
        raise ValueError(
            f"{folder} holds no dataset of a known format. Expected one of these. {expected}. Found there: "
            f"{', '.join(inside[:_MOST_LISTED]) or 'nothing'}{more}."
        )
    return found[0]


def unlabelled_images(folder: Path | str, format: str | None = None) -> list[Path]:
    """Return the image files of a dataset folder that no split contains, such as those still to be labelled, sorted.

    Raises:
        FileNotFoundError, ValueError: as ``read_folder``.
    """
    return unlabelled_among(Path(os.path.abspath(folder)), read_folder(folder, format).documents.values())


def _load_folder(folder: Path, format: str | None) -> Dataset:
    """Return the one dataset in a folder: a known one, if the folder has its official layout, else as its files say."""
    contents = read_folder(folder, format)
    if contents.spec is not None:
        return _load_known(contents.documents, contents.spec)
    return _build_dataset(folder.name, _build_splits(contents, folder.name), format=contents.format)


def _build_splits(contents: FolderContents, name: str) -> dict[str, Split]:
    # A root category that has boxes in one of the splits is a class in all.
    keep_root = len({root_category(split.document) for split in contents.documents.values()}) > 1
    splits = {
        key: coco.build_split(document, f"{name}/{key}", keep_root=keep_root)
        for key, document in contents.documents.items()
    }
    if contents.format == coco.NAME:
        splits = {key: replace(split, prepared=coco.official_subset) for key, split in splits.items()}
    return splits


def _read_known(spec: DatasetSpec, base: Path, depth: int) -> dict[str, SplitDocument]:
    """Return the documents of the splits that exist; one that stands for two is read once."""
    files = odinw.known_files(base, spec, depth)
    documents = {pair: coco.read_file(*pair) for pair in dict.fromkeys(files.values())}
    return {name: documents[pair] for name, pair in files.items()}


def _load_known(documents: Mapping[str, SplitDocument], spec: DatasetSpec) -> Dataset:
    """Return the splits of ``spec`` that exist, with the class names of the public configs."""
    aliases = tuple(prompt.name for prompt in spec.prompts or ())
    splits = {
        name: replace(
            coco.build_split(document, f"{spec.official_name}/{name}", categories=spec.categories),
            aliases=aliases,
            prepared=coco.official_subset,
        )
        for name, document in documents.items()
    }
    facts = ("prompts", "early_stopping", "names_per_caption", "boxes_per_caption", "metric")
    return _build_dataset(spec.official_name, splits, **{name: getattr(spec, name) for name in facts})


def _load_rendered(name: str, glyph_set: GlyphSet, root: Path | None) -> Dataset:
    """Return a synthetic set, after rendering it if it is not there yet."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glip_adapt"
    base = root or Path(os.environ.get("GLIP_ADAPT_DATA") or cache_home)
    folder = base / f"glyphs13-v{GLYPHS_VERSION}" / glyph_set.name
    write_glyph_set(glyph_set, folder)
    contents = FolderContents(documents=coco.read(folder), format=coco.NAME)
    return _build_dataset(name, _build_splits(contents, name))


def _build_dataset(name: str, splits: dict[str, Split], **facts: Any) -> Dataset:
    """Return the dataset, after checking that its splits have the same classes."""
    first = next(iter(splits.values()))
    for split in splits.values():
        if (split.category_ids, split.classes) != (first.category_ids, first.classes):
            raise ValueError(
                f"The splits of {name!r} differ in their categories: {first.annotation_file} has "
                f"{dict(zip(first.category_ids, first.classes, strict=True))}, {split.annotation_file} has "
                f"{dict(zip(split.category_ids, split.classes, strict=True))}. Give both the same list."
            )
    return Dataset(name=name, classes=first.classes, splits=splits, **facts)
