"""ODinW-13: facts of its thirteen datasets (odinw13.toml), and their place on this machine.

GLIP, arXiv 2112.03857, section E.1, and configs/odinw_13 of the public code.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.config import from_mapping, read_toml
from glip_adapt.core.errors import UnknownNameError

ARCHIVE_REPOSITORY = "GLIPModel/GLIP"  # on the Hub


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """Place of one split in the official layout, and its size.

    Attributes:
        ann_file: COCO file, relative to the folder that holds ``odinw``.
        img_dir: image folder, relative to the same folder.
        images: number of images according to the paper, including those without boxes; None if it states none.
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
        splits: by name: train, val, test, and minival if the public configs have one.
        licence: of the images, as the card of the dataset states it.
        archive: name of the official zip file, see ``archive_path``.
        early_stopping: the split that public training selects on.
        prompts: the wording of the paper, one per class; None if it uses the plain names.
    """

    official_name: str
    short_name: str
    classes: tuple[str, ...]
    splits: Mapping[str, SplitSpec]
    licence: str
    archive: str
    early_stopping: str
    prompts: tuple[ClassPrompt, ...] | None = None

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
        return PurePosixPath(self.splits["train"].img_dir).parts[1]

    @property
    def categories(self) -> dict[int, str]:
        """COCO category id → name."""
        return dict(enumerate(self.classes, start=1))


@cache
def known_datasets() -> tuple[DatasetSpec, ...]:
    """Return the facts of the 13 datasets, in the order of the paper's tables."""
    file = Path(__file__).with_name("odinw13.toml")
    return tuple(from_mapping(DatasetSpec, entry, file.name) for entry in read_toml(file)["dataset"])


def find_spec(name: str) -> DatasetSpec:
    """Return the dataset with this official or short name, in any case, with or without ``odinw/`` before it.

    Raises:
        FileNotFoundError: if ``name`` is a path.
        UnknownNameError: if no dataset has this name; the message names the nearest.
    """
    by_name = {key.casefold(): spec for spec in known_datasets() for key in (spec.official_name, spec.short_name)}
    short = name.casefold().removeprefix("odinw/")
    if short in by_name:
        return by_name[short]
    if Path(name).is_file():
        raise FileNotFoundError(f"{name} is a file. Give the folder of the dataset; unpack an archive first.")
    if len(Path(name).parts) > 1:
        raise FileNotFoundError(f"No folder {name}. Give an existing dataset folder or a known name.")
    near = difflib.get_close_matches(name.casefold(), by_name, n=1)
    nearest = f" Did you mean {by_name[near[0]].official_name!r}?" if near else ""
    choices = ", ".join(spec.official_name for spec in known_datasets())
    raise UnknownNameError(f"Unknown dataset {name!r}, and no folder of that name.{nearest} Known: {choices}.")


def dataset_roots(root: Path | None) -> list[Path]:
    """Return the folders to search for the datasets: ``root``, or ``$GLIP_ADAPT_DATA`` and ``./odinw``."""
    if root is not None:
        return [Path(root)]
    named = os.environ.get("GLIP_ADAPT_DATA")
    return ([Path(named)] if named else []) + [Path("odinw")]


def find_known(spec: DatasetSpec, roots: list[Path]) -> tuple[Path, int] | None:
    """Return the first of ``roots`` that holds a split of ``spec``, and its depth in the official paths; or None.

    The depth is 0 for a folder that holds ``odinw``, 1 for ``odinw`` itself, and more for a folder below it.
    """
    depths = (1, 0)  # the folder called odinw, or the one that holds it
    return next(((base, depth) for base in roots for depth in depths if _holds(base, spec, depth)), None)


def missing_files(base: Path, spec: DatasetSpec, depth: int) -> list[Path]:
    """Return the annotation files of the official layout that are missing in ``base``."""
    files = (_below(base, split.ann_file, depth) for split in spec.splits.values())
    return [path for path in dict.fromkeys(files) if not path.is_file()]


def known_files(base: Path, spec: DatasetSpec, depth: int) -> dict[str, tuple[Path, Path]]:
    """Return split → (annotation file, image folder) of the splits that exist in ``base``."""
    files = {
        name: (_below(base, facts.ann_file, depth), _below(base, facts.img_dir, depth))
        for name, facts in spec.splits.items()
    }
    return {name: pair for name, pair in files.items() if pair[0].is_file()}


def recognise(folder: Path) -> tuple[DatasetSpec, int] | None:
    """Return the dataset that a folder holds or is, and the depth of the folder in the official paths; or None.

    Raises:
        ValueError: if the folder holds several of the datasets.
    """
    found = []
    for spec in known_datasets():
        # The part that all splits share: "odinw", the dataset's folder, and below it perhaps a version.
        shared = PurePosixPath(os.path.commonpath([split.img_dir for split in spec.splits.values()])).parts
        for depth in range(len(shared) + 1):
            inside = shared[1:depth]
            if folder.parts[len(folder.parts) - len(inside) :] == inside and _holds(folder, spec, depth):
                found.append((spec, depth))
    if len(found) > 1:
        names = ", ".join(spec.official_name for spec, _ in found)
        raise ValueError(f"{folder} holds several datasets: {names}. Name one, or give its own folder.")
    return found[0] if found else None


def _below(folder: Path, official_path: str, depth: int) -> Path:
    """Return the place of ``official_path`` below a folder that is ``depth`` parts into that path."""
    return folder.joinpath(*PurePosixPath(official_path).parts[depth:])


def _holds(folder: Path, spec: DatasetSpec, depth: int) -> bool:
    return any(_below(folder, split.ann_file, depth).is_file() for split in spec.splits.values())
