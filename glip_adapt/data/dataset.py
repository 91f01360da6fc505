"""Datasets by name or folder: any folder in a known format, ODinW-13, and the synthetic sets glyphs13."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glip_adapt.core.captions import ClassPrompt
from glip_adapt.data import odinw
from glip_adapt.data.formats import coco
from glip_adapt.data.glyphs13 import GLYPHS_VERSION, GlyphSet, find_glyph_set, write_glyph_set
from glip_adapt.data.layouts import LAYOUT_HINT, Files, coco_layout
from glip_adapt.data.odinw import DatasetSpec
from glip_adapt.data.split import AnnotationIds, Split

FORMATS = (coco,)  # asked in this order


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Splits with the same classes.

    Attributes:
        name: official name, or name of the folder.
        classes: name of label 0..K-1.
        splits: the splits that exist, by name; ``train``, ``val`` and ``test`` are also attributes.
        prompts: wording of the classes by hand, in label order, or None.
        early_stopping: the split that public training selects on.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    prompts: tuple[ClassPrompt, ...] | None = None
    early_stopping: str = "val"

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

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            have = ", ".join(self.splits)
            raise FileNotFoundError(f"Dataset {self.name!r} has no {name} split, only {have}. {LAYOUT_HINT}.")
        return self.splits[name]


def load_dataset(name_or_path: str | Path, root: Path | None = None) -> Dataset:
    """Return the dataset in a folder, or a known one by its official or short name.

    Args:
        name_or_path: an existing folder, or a name such as ``"Raccoon"`` or ``"glyphs13/Dice"``. A synthetic set is
            rendered on first use, and kept below ``root``, ``$GLIP_ADAPT_DATA`` or the cache folder of the user.
        root: the folder that holds the known datasets; by default ``$GLIP_ADAPT_DATA``, then ``./odinw``.

    Raises:
        FileNotFoundError: if a known dataset is not under ``root``, or a path does not exist.
        ValueError: if the name is unknown, the folder has no recognisable layout or more than one dataset, its splits
            differ in their classes, or a file has a defect (see ``coco.load_split``).
    """
    folder, name = Path(os.path.abspath(name_or_path)), str(name_or_path)
    if folder.is_dir():
        return _load_folder(folder)
    if (glyph_set := find_glyph_set(name)) is not None:
        return _load_rendered(name, glyph_set, root)
    spec = odinw.find_spec(name)
    roots = odinw.dataset_roots(root)
    found = odinw.find_known(spec, roots)
    if found is not None:
        return _load_known(found[0], spec, found[1])
    raise FileNotFoundError(
        f"Dataset {spec.official_name!r} is known but not on this machine; looked in {' and '.join(map(str, roots))}. "
        f"`glip-adapt data fetch {spec.official_name}` gets it, or unpack {spec.archive_url} into {roots[0]}, "
        f"or set GLIP_ADAPT_DATA to the folder that holds it."
    )


def find_splits(folder: Path | str) -> dict[str, Files]:
    """Return split → (COCO file, image folder) for the one dataset in ``folder``, without reading the splits.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no recognisable layout or more than one dataset.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give the folder of one dataset.")
    known = odinw.recognise(folder)
    return coco_layout(folder) if known is None else odinw.known_files(folder, *known)


def _load_folder(folder: Path) -> Dataset:
    """Return the one dataset in a folder: a known one, if the folder has its official layout, else as its files say."""
    if (known := odinw.recognise(folder)) is not None:
        return _load_known(folder, *known)
    # If no format recognises the folder, the message of COCO says which files were expected and which are there.
    reader = next((module for module in FORMATS if module.recognises(folder)), coco)
    return _build_dataset(folder.name, reader.read(folder))


def _load_known(folder: Path, spec: DatasetSpec, depth: int) -> Dataset:
    """Return the splits of ``spec`` that exist, with the class names of the public configs."""
    aliases = tuple(prompt.name for prompt in spec.prompts or ())
    splits = {
        name: replace(
            coco.load_split(*files, f"{spec.official_name}/{name}", categories=spec.categories), aliases=aliases
        )
        for name, files in odinw.known_files(folder, spec, depth).items()
    }
    return _build_dataset(spec.official_name, splits, prompts=spec.prompts, early_stopping=spec.early_stopping)


def _load_rendered(name: str, glyph_set: GlyphSet, root: Path | None) -> Dataset:
    """Return a synthetic set, after rendering it if it is not there yet."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glip_adapt"
    base = root or Path(os.environ.get("GLIP_ADAPT_DATA") or cache_home)
    folder = base / f"glyphs13-v{GLYPHS_VERSION}" / glyph_set.name
    write_glyph_set(glyph_set, folder)
    splits = {key: replace(split, name=f"{name}/{key}") for key, split in coco.read(folder).items()}
    return _build_dataset(name, splits)


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
