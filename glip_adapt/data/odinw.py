"""Known datasets: facts of ODinW and of public evaluation suites, and their place on this machine.

GLIP, arXiv 2112.03857, sections 4 and E.1, and configs/odinw_13, configs/odinw_35 and config/paths_catalog.py of the
public code. The facts are in odinw13.toml, odinw35.toml (the other 22 sets) and suites.toml (COCO, LVIS, Flickr30k).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.config import from_mapping, read_toml
from glip_adapt.core.errors import UnknownNameError

ARCHIVE_REPOSITORY = "GLIPModel/GLIP"  # on the Hub


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """Place of one split in the official layout, and its size.

    Attributes:
        ann_file: COCO file, or list of images with sentences, relative to the folder that holds ``odinw`` or ``coco``.
        img_dir: image folder, relative to the same folder.
        images: number of images according to the paper, including those without boxes; None if it states none.
        other_files: other paths of the same annotation file.
    """

    ann_file: str
    img_dir: str
    images: int | None = None
    other_files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts of one dataset.

    Attributes:
        official_name: name of its public config.
        short_name: name in the paper's tables, if it is in one; of a suite, in plans and records.
        splits: by name: train, val, test, and minival if the public configs have one.
        licence: of the images, as the card of the dataset states it.
        early_stopping: the split that public training selects on.
        classes: names of ``category_ids``; none if they are those of the annotation file.
        category_ids: by default 1, 2, 3 …
        class_count: how many classes the annotation file has, where it names them; else None.
        archive: name of the official zip file, see ``archive_path``; empty if there is none.
        source: where files without an official zip file come from.
        prompts: the wording of the paper, one per class; None if it uses the plain names.
        names_per_caption: most class names in a caption; None: as many as fit.
        boxes_per_caption: boxes that are kept of an image for each caption; None: as usual.
        metric: the published one.
        has_sentences: whether it has phrases of sentences instead of classes.
    """

    official_name: str
    short_name: str = ""
    splits: Mapping[str, SplitSpec]
    licence: str
    early_stopping: str
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    class_count: int | None = None
    archive: str = ""
    source: str = ""
    prompts: tuple[ClassPrompt, ...] | None = None
    names_per_caption: int | None = None
    boxes_per_caption: int | None = None
    metric: Literal["coco", "fixed_ap"] = "coco"
    has_sentences: bool = False

    @property
    def archive_path(self) -> str:
        """The path of the official zip file in ``ARCHIVE_REPOSITORY``."""
        return f"odinw_35/{self.archive}"

    @property
    def archive_url(self) -> str:
        """The address of the official zip file; the one in the public code, with ``tree``, is a web page."""
        return f"https://huggingface.co/{ARCHIVE_REPOSITORY}/resolve/main/{self.archive_path}"

    @property
    def folder(self) -> str:
        """The name of the folder that the zip file unpacks to, below ``odinw``."""
        return self.shared[1]

    @property
    def top(self) -> str:
        """The folder that all paths start with, such as ``odinw``."""
        return self.shared[0]

    @property
    def shared(self) -> tuple[str, ...]:
        """The parts that all paths begin with: ``odinw``, the folder of the dataset, and below it perhaps a version."""
        return PurePosixPath(os.path.commonpath([split.img_dir for split in self.splits.values()])).parts

    @property
    def categories(self) -> dict[int, str] | None:
        """COCO category id → name; None if the annotation file names them."""
        ids = self.category_ids or range(1, len(self.classes) + 1)
        return dict(zip(ids, self.classes, strict=True)) or None

    def how_to_get(self, root: Path) -> str:
        """Return what to do to have the dataset below ``root``, without a full stop."""
        if self.archive:
            return f"`glip-adapt data fetch {self.official_name}` gets it, or unpack {self.archive_url} into {root}"
        places = dict.fromkeys((split.ann_file, split.img_dir) for split in self.splits.values())
        wanted = " and ".join(f"{file} and the images in {folder}" for file, folder in places)
        beside = ", with Annotations and Sentences beside the list," if self.has_sentences else ""
        return f"Put {wanted}{beside} below {root.absolute()} (from {self.source})"


@cache
def _read(name: str) -> tuple[DatasetSpec, ...]:
    file = Path(__file__).with_name(name)
    return tuple(from_mapping(DatasetSpec, entry, file.name) for entry in read_toml(file)["dataset"])


def known_datasets() -> tuple[DatasetSpec, ...]:
    """Return the facts of ODinW-13, in the order of the paper's tables."""
    return _read("odinw13.toml")


def suites() -> tuple[DatasetSpec, ...]:
    """Return the facts of COCO, LVIS and Flickr30k Entities, which have nothing to learn from here."""
    return _read("suites.toml")


def groups() -> dict[str, tuple[DatasetSpec, ...]]:
    """Return the groups of datasets by name: ``odinw13``, and ``odinw35``, which begins with them."""
    return {"odinw13": known_datasets(), "odinw35": (*known_datasets(), *_read("odinw35.toml"))}


def every_dataset() -> tuple[DatasetSpec, ...]:
    """Return the facts of all known datasets."""
    return (*groups()["odinw35"], *suites())


@cache
def _by_name() -> dict[str, DatasetSpec]:
    return {key.casefold(): spec for spec in every_dataset() for key in (spec.official_name, spec.short_name) if key}


def named(name: str) -> DatasetSpec | None:
    """Return the dataset with this name, as ``find_spec``, or None."""
    return _by_name().get(name.casefold().removeprefix("odinw/"))


def find_suite(name: str) -> DatasetSpec | None:
    """Return the evaluation suite with this name, in any case, or None."""
    spec = named(name)
    return spec if spec in suites() else None


def find_spec(name: str) -> DatasetSpec:
    """Return the dataset with this official or short name, in any case, with or without ``odinw/`` before it.

    Raises:
        FileNotFoundError: if ``name`` is a path.
        UnknownNameError: if no dataset has this name; the message names the nearest.
    """
    if (spec := named(name)) is not None:
        return spec
    if Path(name).is_file():
        raise FileNotFoundError(f"{name} is a file. Give the folder of the dataset; unpack an archive first.")
    if len(Path(name).parts) > 1:
        raise FileNotFoundError(f"No folder {name}. Give an existing dataset folder or a known name.")
    near = difflib.get_close_matches(name.casefold(), _by_name(), n=1)
    nearest = f" Did you mean {_by_name()[near[0]].official_name!r}?" if near else ""
    choices = ", ".join(spec.official_name for spec in every_dataset())
    raise UnknownNameError(
        f"Unknown dataset {name!r}, and no folder of that name.{nearest} Known: {choices}, and "
        "drawings such as glyphs13/Tools: `glip-adapt ls datasets` lists all."
    )


def dataset_roots(root: Path | None, spec: DatasetSpec) -> list[Path]:
    """Return the folders to search: ``root``, or ``$GLIP_ADAPT_DATA`` and ``./odinw``, for suites ``.``."""
    if root is not None:
        return [Path(root)]
    named = os.environ.get("GLIP_ADAPT_DATA")
    return ([Path(named)] if named else []) + [Path("odinw") if spec.top == "odinw" else Path.cwd()]


def find_known(spec: DatasetSpec, roots: list[Path]) -> tuple[Path, int] | None:
    """Return the first of ``roots`` that holds a split of ``spec``, and its depth in the official paths; or None.

    The depth is 0 for a folder that holds ``odinw``, 1 for ``odinw`` itself, and more for a folder below it.
    """
    depths = (1, 0)  # the folder called odinw, or the one that holds it
    return next(((base, depth) for base in roots for depth in depths if _holds(base, spec, depth)), None)


def means_suite(name: str, root: Path | None) -> bool:
    """Tell whether a name is that of an evaluation suite, also where there is a folder of this name.

    A bare name such as ``coco`` is that of the folder, unless this is laid out as the public code has it.
    """
    spec = find_suite(name)
    if spec is None or "/" in name:
        return spec is not None
    roots = dataset_roots(root, spec)
    images = {split.img_dir for split in spec.splits.values()}
    has_images = any(_below(base, folder, depth).is_dir() for base in roots for depth in (1, 0) for folder in images)
    beside = [other for other in suites() if other.top == spec.top]
    return has_images or any(find_known(other, roots) is not None for other in beside)


def place_of(spec: DatasetSpec, root: Path | None) -> tuple[DatasetSpec, Path, int]:
    """Return a dataset with its folder and the depth of that, as ``find_known``.

    Raises:
        FileNotFoundError: if it is not on this machine; says how to get it, or which files to put where.
    """
    roots = dataset_roots(root, spec)
    found = find_known(spec, roots)
    if found is None:
        looked = " and ".join(map(str, roots))
        raise FileNotFoundError(
            f"Dataset {spec.official_name!r} is known but not on this machine; looked in {looked}. "
            f"{spec.how_to_get(roots[0])}, or set GLIP_ADAPT_DATA to the folder that holds it."
        )
    return spec, *found


def folder_of(base: Path, spec: DatasetSpec, depth: int) -> Path:
    """Return the folder that ``recognise`` takes for this ODinW dataset, below ``base``."""
    rivals = [other for other in groups()["odinw35"] if other.archive == spec.archive]
    is_first = len(rivals) == 1 or spec in known_datasets()
    return base.joinpath(*spec.shared[depth : 2 if is_first else None])


def missing_files(base: Path, spec: DatasetSpec, depth: int) -> list[Path]:
    """Return the annotation files of the official layout that are missing in ``base``."""
    files = (_file(base, split, depth) for split in spec.splits.values())
    return [path for path in dict.fromkeys(files) if not path.is_file()]


def known_files(base: Path, spec: DatasetSpec, depth: int) -> dict[str, tuple[Path, Path]]:
    """Return split → (annotation file, image folder) of the splits that exist in ``base``."""
    files = {
        name: (_file(base, facts, depth), _below(base, facts.img_dir, depth)) for name, facts in spec.splits.items()
    }
    return {name: pair for name, pair in files.items() if pair[0].is_file()}


def recognise(folder: Path) -> tuple[DatasetSpec, int] | None:
    """Return the ODinW dataset that a folder holds or is, and the depth of the folder in the official paths; or None.

    Of a set of ODinW-13 and another that share a folder, such as the two of EgoHands, it is the one of ODinW-13.

    Raises:
        ValueError: if the folder holds several of the datasets.
    """
    found = []
    for spec in groups()["odinw35"]:
        for depth in range(len(spec.shared) + 1):
            inside = spec.shared[1:depth]
            if folder.parts[len(folder.parts) - len(inside) :] == inside and _holds(folder, spec, depth):
                found.append((spec, depth))
    if len({spec.folder for spec, _ in found}) == 1:
        found = [pair for pair in found if pair[0] in known_datasets()] or found
    if len(found) > 1:
        names = ", ".join(spec.official_name for spec, _ in found)
        raise ValueError(f"{folder} holds several datasets: {names}. Name one, or give its own folder.")
    return found[0] if found else None


def _below(folder: Path, official_path: str, depth: int) -> Path:
    """Return the place of ``official_path`` below a folder that is ``depth`` parts into that path."""
    return folder.joinpath(*PurePosixPath(official_path).parts[depth:])


def _file(folder: Path, split: SplitSpec, depth: int) -> Path:
    """Return the place of an annotation file: the first of its names that exists, else the official one."""
    places = [_below(folder, path, depth) for path in (split.ann_file, *split.other_files)]
    return next((place for place in places if place.is_file()), places[0])


def _holds(folder: Path, spec: DatasetSpec, depth: int) -> bool:
    return any(_file(folder, split, depth).is_file() for split in spec.splits.values())
