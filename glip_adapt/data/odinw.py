"""Datasets by name or folder: ODinW-13 (facts in odinw13.toml), any COCO folder, and glyphs13, rendered on first use.

ODinW: GLIP, arXiv 2112.03857, section E.1, and configs/odinw_13 of the public code.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.config import describe_unknown, from_mapping, read_toml
from glip_adapt.data.formats.coco import AnnotationIds, Split, load_split
from glip_adapt.data.glyphs import GLYPHS13, GLYPHS_VERSION, GlyphSet, write_glyph_set
from glip_adapt.data.layouts import LAYOUT_HINT, coco_layout

ARCHIVE_REPOSITORY = "GLIPModel/GLIP"  # on the Hub


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """Where one split lies in the official layout, and how large it is.

    Attributes:
        ann_file: COCO file, relative to the folder that holds ``odinw``.
        img_dir: picture folder, relative to the same.
        images: pictures according to the paper, those without boxes included; None where it does not say.
    """

    ann_file: str
    img_dir: str
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts of one ODinW-13 dataset.

    Attributes:
        official_name: name of its public config.
        short_name: name in the paper's tables.
        classes: names of category id 1, 2, 3 …
        splits: by name: train, val, test, and minival where the public configs have one.
        licence: of the pictures, as its card states it.
        provider: who published the pictures.
        archive: name of the official zip file, see ``archive_path``.
        early_stopping: the split that public training watches.
        prompts: the paper's manual wording, one per class; None where it uses the plain names.
        note: something to know before reading numbers.
    """

    official_name: str
    short_name: str
    classes: tuple[str, ...]
    splits: Mapping[str, SplitSpec]
    licence: str
    provider: str
    archive: str
    early_stopping: str
    prompts: tuple[ClassPrompt, ...] | None = None
    note: str = ""

    @property
    def archive_path(self) -> str:
        """Where the official zip file lies in ``ARCHIVE_REPOSITORY``."""
        return f"odinw_35/{self.archive}"

    @property
    def archive_url(self) -> str:
        """The address of the official zip file; the public code's own, with ``tree``, answers a web page."""
        return f"https://huggingface.co/{ARCHIVE_REPOSITORY}/resolve/main/{self.archive_path}"

    @property
    def folder(self) -> str:
        """The folder below ``odinw`` that the zip file unpacks to."""
        return PurePosixPath(self.splits["train"].img_dir).parts[1]

    @property
    def categories(self) -> dict[int, str]:
        """COCO category id → name."""
        return dict(enumerate(self.classes, start=1))


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Splits that share their classes.

    Attributes:
        name: official name, or that of the folder.
        classes: name of label 0..K-1.
        splits: those that exist, by name; ``train``, ``val`` and ``test`` are reached as attributes.
        prompts: manual wording of the classes, in label order, or None.
        early_stopping: the split that public training watches.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    prompts: tuple[ClassPrompt, ...] | None = None
    early_stopping: str = "val"

    @property
    def train(self) -> Split:
        """The split to learn from; FileNotFoundError where the folder has none."""
        return self._split("train")

    @property
    def val(self) -> Split:
        """The split to select on; FileNotFoundError where the folder has none."""
        return self._split("val")

    @property
    def test(self) -> Split:
        """The split to report on; FileNotFoundError where the folder has none.

        PascalVOC has none of its own: there, as in the paper and its public config, it is the pictures of ``val``.
        """
        return self._split("test")

    @property
    def selection(self) -> Split:
        """The split that selects a state in training: the one of the public config where it is there, else ``val``."""
        return self.splits.get(self.early_stopping) or self.val

    def scored(self, annotation_ids: AnnotationIds) -> Dataset:
        """Return the dataset with boxes numbered in this way while they are scored; see ``Split``."""
        splits = {name: replace(split, annotation_ids=annotation_ids) for name, split in self.splits.items()}
        return replace(self, splits=splits)

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            have = ", ".join(self.splits)
            raise FileNotFoundError(f"Dataset {self.name!r} has no {name} split, only {have}. {LAYOUT_HINT}.")
        return self.splits[name]


@cache
def known_datasets() -> tuple[DatasetSpec, ...]:
    """Return the facts of the 13 datasets, in the order of the paper's tables."""
    file = Path(__file__).with_name("odinw13.toml")
    return tuple(from_mapping(DatasetSpec, entry, file.name) for entry in read_toml(file)["dataset"])


def rendered_datasets() -> dict[str, GlyphSet]:
    """Return the synthetic sets by name, ``glyphs13/Dice`` for example."""
    return {f"glyphs13/{spec.name}": spec for spec in GLYPHS13}


def load_dataset(name_or_path: str | Path, root: Path | None = None) -> Dataset:
    """Return the dataset in a folder, or a known one by its official or short name.

    Args:
        name_or_path: an existing folder, or a name such as ``"Raccoon"`` or ``"glyphs13/Dice"``. The latter is rendered
            on first use, and kept below ``root``, ``$GLIP_ADAPT_DATA`` or the user's cache folder.
        root: the folder that holds the known datasets; without it, ``$GLIP_ADAPT_DATA``, then ``./odinw``.

    Raises:
        FileNotFoundError: if a known dataset is not under ``root``, or a path does not exist.
        ValueError: if the name is unknown, the folder has no recognisable layout or more than one dataset, its splits
            differ in their classes, or a file has a defect (see ``coco.load_split``).
    """
    folder = Path(os.path.abspath(name_or_path))
    if folder.is_dir():
        return _load_folder(folder)
    if str(name_or_path) in rendered_datasets():
        return _load_rendered(str(name_or_path), root)
    spec = find_spec(str(name_or_path))
    roots = dataset_roots(root)
    found = find_known(spec, roots)
    if found is not None:
        return _load_known(found[0], spec, found[1])
    raise FileNotFoundError(
        f"Dataset {spec.official_name!r} is known but not on this machine; looked in {' and '.join(map(str, roots))}. "
        f"`glip-adapt data fetch {spec.official_name}` gets it, or unpack {spec.archive_url} into {roots[0]}, "
        f"or set GLIP_ADAPT_DATA to the folder that holds it."
    )


def _load_rendered(name: str, root: Path | None) -> Dataset:
    """Return a synthetic set, rendered before if it is not there yet."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glip_adapt"
    base = root or Path(os.environ.get("GLIP_ADAPT_DATA") or cache_home)
    folder = base / f"glyphs13-v{GLYPHS_VERSION}" / name.rpartition("/")[2]
    write_glyph_set(rendered_datasets()[name], folder)
    splits = {split: load_split(*files, f"{name}/{split}") for split, files in find_splits(folder).items()}
    return _build_dataset(name, splits)


def find_spec(name: str) -> DatasetSpec:
    """Return the known dataset called ``name``, whatever the case, or called so below ``odinw/``.

    Raises:
        FileNotFoundError: if ``name`` is a path.
        ValueError: if no dataset is called so; names the nearest.
    """
    if name.startswith("glyphs13"):
        raise ValueError(f"Unknown synthetic dataset {describe_unknown(name, rendered_datasets())}.")
    by_name = {key.casefold(): spec for spec in known_datasets() for key in (spec.official_name, spec.short_name)}
    short = name.casefold().removeprefix("odinw/")
    if short in by_name:
        return by_name[short]
    if len(Path(name).parts) > 1:
        raise FileNotFoundError(f"No folder {name}. Give an existing dataset folder or a known name.")
    near = difflib.get_close_matches(name.casefold(), by_name, n=1)
    nearest = f" Did you mean {by_name[near[0]].official_name!r}?" if near else ""
    choices = ", ".join(spec.official_name for spec in known_datasets())
    raise ValueError(f"Unknown dataset {name!r}, and no folder of that name.{nearest} Known: {choices}.")


def dataset_roots(root: Path | None) -> list[Path]:
    """Return the folders that may hold the known datasets: ``root``, or ``$GLIP_ADAPT_DATA`` and ``./odinw``."""
    if root is not None:
        return [Path(root)]
    named = os.environ.get("GLIP_ADAPT_DATA")
    return ([Path(named)] if named else []) + [Path("odinw")]


def find_known(spec: DatasetSpec, roots: list[Path]) -> tuple[Path, int] | None:
    """Return the first of ``roots`` that holds a split of ``spec``, and how far into the official paths it lies."""
    for base in roots:
        for depth in (1, 0):  # the folder called odinw, or the one that holds it
            if _holds(base, spec, depth):
                return base, depth
    return None


def missing_files(base: Path, spec: DatasetSpec, depth: int) -> list[Path]:
    """Return the annotation files of the official layout that ``base`` lacks."""
    files = (_below(base, split.ann_file, depth) for split in spec.splits.values())
    return [path for path in dict.fromkeys(files) if not path.is_file()]


def _below(folder: Path, official_path: str, depth: int) -> Path:
    """Return ``official_path`` as seen from a folder that already is ``depth`` parts into it."""
    return folder.joinpath(*PurePosixPath(official_path).parts[depth:])


def _holds(folder: Path, spec: DatasetSpec, depth: int) -> bool:
    return any(_below(folder, split.ann_file, depth).is_file() for split in spec.splits.values())


def _recognise(folder: Path) -> list[tuple[DatasetSpec, int]]:
    """Return the known datasets that ``folder`` holds or is, each with how far into the official paths it lies."""
    found = []
    for spec in known_datasets():
        # The part that all splits share: "odinw", the dataset's folder, and below it perhaps a version.
        shared = PurePosixPath(os.path.commonpath([split.img_dir for split in spec.splits.values()])).parts
        for depth in range(len(shared) + 1):
            inside = shared[1:depth]
            if folder.parts[len(folder.parts) - len(inside) :] == inside and _holds(folder, spec, depth):
                found.append((spec, depth))
    return found


def find_splits(folder: Path | str) -> dict[str, tuple[Path, Path]]:
    """Return split → (annotation file, picture folder) for the one dataset in ``folder``, without reading the files.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no recognisable layout or more than one dataset.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give the folder of one dataset.")
    if (known := _only_known(folder)) is not None:
        return _known_files(folder, *known)
    return coco_layout(folder)


def _load_folder(folder: Path) -> Dataset:
    """Return the one dataset in an existing folder: a known one if the layout says so, else whatever COCO files say."""
    if (known := _only_known(folder)) is not None:
        return _load_known(folder, *known)
    files = find_splits(folder)
    splits = {name: load_split(*pair, f"{folder.name}/{name}") for name, pair in files.items()}
    if len({split.category_ids for split in splits.values()}) > 1:  # a root category has boxes in one of them
        splits = {name: load_split(*pair, f"{folder.name}/{name}", keep_root=True) for name, pair in files.items()}
    return _build_dataset(folder.name, splits)


def _only_known(folder: Path) -> tuple[DatasetSpec, int] | None:
    """Return the known dataset that ``folder`` is, if it is one."""
    known = _recognise(folder)
    if len(known) > 1:
        names = ", ".join(spec.official_name for spec, _ in known)
        raise ValueError(f"{folder} holds several datasets: {names}. Name one, or give its own folder.")
    return known[0] if known else None


def _known_files(folder: Path, spec: DatasetSpec, depth: int) -> dict[str, tuple[Path, Path]]:
    """Return split → (annotation file, picture folder) of the splits that exist."""
    files = {
        name: (_below(folder, facts.ann_file, depth), _below(folder, facts.img_dir, depth))
        for name, facts in spec.splits.items()
    }
    return {name: pair for name, pair in files.items() if pair[0].is_file()}


def _load_known(folder: Path, spec: DatasetSpec, depth: int) -> Dataset:
    """Return the splits of ``spec`` that exist, under its own class names, as the public configs override them."""
    aliases = tuple(prompt.name for prompt in spec.prompts or ())
    splits = {
        name: replace(load_split(*pair, f"{spec.official_name}/{name}", categories=spec.categories), aliases=aliases)
        for name, pair in _known_files(folder, spec, depth).items()
    }
    return _build_dataset(spec.official_name, splits, prompts=spec.prompts, early_stopping=spec.early_stopping)


def _build_dataset(name: str, splits: dict[str, Split], **facts: Any) -> Dataset:
    """Return the dataset, once its splits are known to agree on the classes."""
    first = next(iter(splits.values()))
    for split in splits.values():
        if (split.category_ids, split.classes) != (first.category_ids, first.classes):
            raise ValueError(
                f"The splits of {name!r} differ in their categories: {first.annotation_file} has "
                f"{dict(zip(first.category_ids, first.classes, strict=True))}, {split.annotation_file} has "
                f"{dict(zip(split.category_ids, split.classes, strict=True))}. Give both the same list."
            )
    return Dataset(name=name, classes=first.classes, splits=splits, **facts)
