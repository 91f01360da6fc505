"""Folder layouts of COCO datasets: find the annotation file and the image folder of each split.

Three layouts are known: folders ``train``, ``valid`` or ``val``, and ``test`` with one COCO file each; files such as
``annotations/train.json`` or ``annotations/instances_train2017.json`` beside the image folders; and a single COCO file,
which becomes the split ``train``, as CVAT, Label Studio and Roboflow export it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glip_adapt.data.entries import image_path

Candidates = tuple[Path, list[Path]]
"""Annotation file, and folders that may hold its images, the likeliest first."""

_SPLIT_NAMES = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
_ANNOTATION_FILES = ("annotations_without_background.json", "_annotations.coco.json", "annotations.json")
_MAX_DEPTH = 3  # folders between a dataset folder and its split folders, the latter included
_START_BYTES = 2**14  # of a JSON file, in which a key tells what it is
_COCO_KEYS = ("images", "annotations", "categories")
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(:?)|[{}\[\]]')
LAYOUT = (
    "folders train, valid (or val) and test with one COCO JSON file each, at most three levels down, or "
    "annotations/train.json (val, test) beside the image folders"
)


def coco_layout(folder: Path) -> dict[str, Candidates]:
    """Return the annotation file of each split, with folders that may hold its images, for the one dataset in a folder.

    Raises:
        ValueError: if the folder has no recognisable layout, or holds more than one dataset.
    """
    found = _named_files(folder) or _single_file(folder)
    return {name: found[name] for name in _SPLIT_NAMES if name in found}


def has_coco_layout(folder: Path) -> bool:
    """Tell whether a folder holds COCO files where ``coco_layout`` looks, also if it refuses them as ambiguous."""
    try:
        return bool(_named_files(folder)) or any(map(_has_coco_key, _json_files(folder)))
    except ValueError:
        return True


def image_dir_of(document: Mapping[str, Any], candidates: Sequence[Path]) -> Path:
    """Return the first folder that holds the first image of a COCO file; if none does, the first that exists."""
    existing = [path for path in candidates if path.is_dir()] or list(candidates)
    try:
        first = document["images"][0]["file_name"]
        return next(path for path in existing if image_path(path, first).is_file())
    except (ValueError, LookupError, TypeError, OSError, StopIteration):
        return existing[0]


def _named_files(folder: Path) -> dict[str, Candidates]:
    """Return split → annotation file where files or folders are named after splits."""
    return dict(_annotation_layout(folder)) or dict(_split_folder_layout(folder))


def _annotation_layout(folder: Path) -> Iterator[tuple[str, Candidates]]:
    """Yield the splits of COCO's own layout."""
    for name, aliases in _SPLIT_NAMES.items():
        patterns = [pattern for alias in aliases for pattern in (f"{alias}.json", f"instances_{alias}*.json")]
        bases = (folder / "annotations", folder)
        paths = {path for base in bases for pattern in patterns for path in base.glob(pattern)}
        found = {path for path in paths if _may_be_coco(path)}
        if len(found) > 1:
            raise ValueError(f"Several {name} files in {folder}: {', '.join(sorted(map(str, found)))}. Keep one.")
        for path in found:
            stems = (path.stem.removeprefix("instances_"), *aliases)
            folders = [parent / stem for parent in (folder, folder / "images") for stem in stems]
            yield name, (path, [*folders, folder / "images", folder])


def _split_folder_layout(folder: Path) -> Iterator[tuple[str, Candidates]]:
    """Yield the splits of the layout with one folder per split, from the shallowest level that has such folders."""
    level = [folder]
    for _ in range(_MAX_DEPTH):
        parents = []
        for parent in level:
            found = [
                (name, path, annotation_file)
                for name, aliases in _SPLIT_NAMES.items()
                for path in (parent / alias for alias in aliases)
                if path.is_dir() and (annotation_file := _annotation_file(path)) is not None
            ]
            if len({name for name, *_ in found}) < len(found):
                raise ValueError(f"{parent} has both a valid and a val folder with boxes. Remove one.")
            if found:
                parents.append(found)
        if len(parents) > 1:
            where = ", ".join(str(found[0][1].parent) for found in parents)
            raise ValueError(f"{folder} holds several datasets, in {where}. Give the folder of one.")
        if parents:
            for name, path, annotation_file in parents[0]:
                yield name, (annotation_file, [path, path / "images"])
            return
        level = sorted(path for parent in level for path in parent.iterdir() if path.is_dir() and path.name[0] != ".")


def _json_files(folder: Path) -> list[Path]:
    return [path for base in (folder, folder / "annotations") for path in sorted(base.glob("*.json"))]


def _single_file(folder: Path) -> dict[str, Candidates]:
    """Return the one COCO file of a folder as the split ``train``.

    Raises:
        ValueError: if there is none or more than one; the message lists the files.
    """
    found = [path for path in _json_files(folder) if _has_coco_key(path)]
    if len(found) > 1:  # a list of images alone is no dataset
        found = [path for path in found if _is_coco(path)]
    if len(found) != 1:
        came = (
            ", ".join(str(path.relative_to(folder)) for path in (found or _json_files(folder))[:10]) or "no JSON file"
        )
        what = f"several COCO files in {folder} that no split is named after" if found else f"no COCO file in {folder}"
        raise ValueError(f"Found {what}: {came}. Expected {LAYOUT}.")
    (path,) = found
    stem = path.stem.removeprefix("instances_")
    return {"train": (path, [folder / "images" / stem, folder / stem, folder / "images", path.parent, folder])}


def _has_coco_key(path: Path) -> bool:
    """Tell whether a key of a COCO file stands in the start of a JSON file."""
    return any(key in _COCO_KEYS for key in first_keys(path) or ())


def _may_be_coco(path: Path) -> bool:
    """Tell whether a JSON file of the right name is a COCO file: it has one of its keys, or is damaged."""
    keys = first_keys(path)
    return keys is not None and (not keys or _has_coco_key(path))


def first_keys(path: Path) -> list[str] | None:
    """Return the keys of the outermost object in the start of a JSON file, up to the first one of COCO.

    None if the file is a list; no keys if it is damaged. Large files are not read.
    """
    try:
        with path.open("rb") as opened:
            start = opened.read(_START_BYTES)
    except OSError:
        return []
    text = start.decode(json.detect_encoding(start), errors="ignore").lstrip("\ufeff \t\r\n")
    if text.startswith("["):
        return None
    keys: list[str] = []
    depth = 0
    for token in _TOKEN.finditer(text if text.startswith("{") else ""):
        if token[0] in "{[":
            depth += 1
        elif token[0] in "}]":
            depth -= 1
        elif token[2] and depth == 1:
            keys.append(token[1])
        if keys and keys[-1] in (*_COCO_KEYS, "shapes"):  # shapes are of LabelMe
            break
    return keys


def _is_coco(path: Path) -> bool:
    """Tell whether a JSON file has the lists of a COCO file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content


def _annotation_file(folder: Path) -> Path | None:
    """Return the COCO file of a split folder; files of few-shot subsets do not count."""
    for path in (folder / name for name in _ANNOTATION_FILES):
        if path.is_file() and _may_be_coco(path):
            return path
    named = (path for path in sorted(folder.glob("*.json")) if not path.name.startswith((".", "fewshot_")))
    others = list(itertools.islice(filter(_may_be_coco, named), 3))
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise ValueError(f"Several COCO files in {folder}: {names}. Name the right one {_ANNOTATION_FILES[1]}.")
    return others[0] if others else None
