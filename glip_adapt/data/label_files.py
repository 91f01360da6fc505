"""Label files of a dataset folder: find and read them; find the images that they name; tell splits by names.

For formats whose label files may lie anywhere in the folder, and name images loosely.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from glip_adapt.data.documents import (
    CLASSES_FILE,
    SPLIT_ALIASES,
    Draft,
    SplitDocument,
    build_documents,
    image_files,
    read_classes,
)
from glip_adapt.data.entries import FLOAT32_MAX, image_path

NO_CLASSES = ("__ignore__", "_background_", "__background__")  # names in LabelMe that stand before the classes
SPLIT_OF_ALIAS = {alias: name for name, aliases in SPLIT_ALIASES.items() for alias in aliases}


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix such as ``".json"`` below a folder, sorted; hidden ones do not count."""
    found: list[Path] = []
    seen: set[str] = set()
    for base, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(base)) in seen:  # a link may lead back to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(base, name) for name in names if name[0] != "." and name.lower().endswith(suffix)]
    return sorted(found)


def split_of(path: Path, folder: Path) -> str:
    """Return train, val or test: the split that a folder between ``folder`` and a file is named after, else train."""
    return named_split(path, folder) or "train"


def named_split(path: Path, folder: Path, *, by_file_name: bool = False) -> str | None:
    """Return train, val or test if the path of a file names a split, else None.

    Args:
        path: of the file.
        folder: of the dataset; only names below it count.
        by_file_name: whether a word in the name of the file counts as well, as in ``train_labels.csv``.
    """
    if not path.is_relative_to(folder):
        return None
    *folders, name = path.relative_to(folder).parts
    words = re.split("[^a-z]+", os.path.splitext(name)[0].lower()) if by_file_name else []
    known = (SPLIT_OF_ALIAS.get(word.lower()) for word in (*folders, *words))
    return next(filter(None, known), None)


def one_file_per_split(files: Iterable[Path], folder: Path) -> dict[Path, str | None]:
    """Return the split that the name of each label file or of a folder above it tells, or None.

    Raises:
        ValueError: if two files are of one split; one that tells none is of train.
    """
    splits = {path: named_split(path, folder, by_file_name=True) for path in files}
    first: dict[str, Path] = {}
    for path, split in splits.items():
        other = first.setdefault(split or "train", path)
        if other != path:
            raise ValueError(
                f"{other} and {path} are both of the split {split or 'train'}. Keep one of them, or name them after "
                f"splits: train{path.suffix}, val{path.suffix}, test{path.suffix}."
            )
    return splits


def read_text(path: Path) -> str:
    """Return the content of a label file; ValueError says why it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(str(error)) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; ValueError says why it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from error


def to_number(value: Any) -> float:
    """Return a finite number, stated as such or as text.

    Raises:
        ValueError: if the value is something else.
    """
    try:
        if not isinstance(value, bool) and abs(number := float(value)) <= FLOAT32_MAX:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{reprlib.repr(value)} is no finite number")


class ImageIndex:
    """Images of a dataset folder, to be found by the names that label files give them.

    Attributes:
        folder: of the dataset.
        paths: of all images in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = image_files(folder)
        self._named: dict[str, list[Path]] = {}
        for path in self.paths:
            for key in (path.name, path.stem):
                self._named.setdefault(_loose(key), []).append(path)

    def find(self, name: str, near: Path, split: str) -> Path:
        """Return the image that a label file names, or where it should be if there is none.

        Args:
            name: path relative to ``near``, with slashes or backslashes; or of another machine, which is looked for by
                its last parts; or without suffix.
            near: the folder of the label file.
            split: preferred if images of several splits have the name.

        Raises:
            ValueError: if several images have the name.
        """
        stated = image_path(near, name)
        for path in (Path(os.path.normpath(stated)), stated):
            if os.path.isfile(path):
                return path
        parts = PurePosixPath(name.replace("\\", "/")).parts[::-1]
        found = self._named.get(_loose(parts[0]), ()) if parts else ()
        if not found:
            return Path(os.path.normpath(stated))

        def rank(path: Path) -> tuple[int, bool, bool]:
            pairs = zip(path.parts[-2::-1], parts[1:], strict=False)
            return (
                sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)),
                self.split_of(path) == split,
                path.name == parts[0],
            )

        best, *others = sorted(found, key=rank, reverse=True)
        if others and rank(others[0]) == rank(best):
            raise ValueError(
                f"{name!r}, named by a label file in {near}, may be {best} or {others[0]}. Write the path relative to "
                f"{near}, or rename one of the images."
            )
        return best

    def beside(self, label_file: Path) -> Path | None:
        """Return the image in the folder of a label file that has the same stem, or None."""
        alike = self._named.get(_loose(label_file.stem), ())
        return next((path for path in alike if path.with_suffix("") == label_file.with_suffix("")), None)

    def split_of(self, path: Path) -> str:
        """Return the split that a folder above an image is named after, else train."""
        return split_of(path, self.folder)


def _loose(name: str) -> str:
    """Return a file name without what uploads and file systems change: case, Unicode form, blanks and signs."""
    return re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", name).casefold())


def documents_of(
    drafts: Mapping[str, Draft], images: ImageIndex, class_lists: Sequence[str] = (CLASSES_FILE,)
) -> dict[str, SplitDocument]:
    """Return COCO documents of drafts; findings name unlisted classes, and images that no label file speaks of.

    Args:
        drafts: by name of the split; one without images is left out, its findings are told with another one.
        images: of the dataset folder.
        class_lists: names of files in the folder, the first of which that exists lists the classes in label order.

    Raises:
        ValueError: if no draft has an image, or the list of classes cannot be read.
    """
    known = {name: drafts[name] for name in SPLIT_ALIASES if name in drafts}
    labelled = {name: draft for name, draft in known.items() if draft.images}
    labelled = labelled or {name: draft for name, draft in known.items() if draft.findings}
    if not labelled:
        raise ValueError(f"{images.folder}: no label file speaks of an image. Label some, or give another folder.")
    first = next(iter(labelled.values()))
    first.findings += [finding for name in known if name not in labelled for finding in known[name].findings]
    files = [path for path in (images.folder / name for name in class_lists) if path.is_file()]
    classes = [name for name in read_classes(files[0]) if name not in NO_CLASSES] if files else None
    listed = [image for draft in labelled.values() for image in draft.images]
    if classes is not None:
        unlisted = {name for image in listed for name, _ in image.boxes} - {*classes}
        first.findings += [("unlisted class", f"{name!r} is not in {files[0].name}") for name in sorted(unlisted)]
    for path in sorted({*images.paths} - {image.path for image in listed}):
        finding = "image without a label file", os.path.relpath(path, images.folder)
        labelled.get(images.split_of(path), first).findings.append(finding)
    return build_documents(labelled, images.folder, classes)
