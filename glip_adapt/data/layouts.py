"""Folders of COCO files → which file describes which split, and where its pictures lie; no file name need be stated.

Understood are ``train``, ``valid`` or ``val``, ``test`` folders with one COCO file each; ``annotations/train.json`` or
``annotations/instances_train2017.json`` and so on beside the picture folders; and a single COCO file, which is then
the split ``train``, as CVAT, Label Studio and Roboflow export it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from glip_adapt.data.entries import picture_path

Files = tuple[Path, Path]  # annotation file, picture folder

_SPLIT_NAMES = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
_ANNOTATION_FILES = ("annotations_without_background.json", "_annotations.coco.json", "annotations.json")
_MAX_DEPTH = 3  # folders between a dataset folder and its split folders, the latter included
LAYOUT_HINT = (
    "Expected folders train, valid (or val) and test with one COCO JSON file each, at most three levels down, "
    "or annotations/train.json (val, test) beside the picture folders"
)


def coco_layout(folder: Path) -> dict[str, Files]:
    """Return split → (annotation file, picture folder) for the one dataset in a folder.

    Raises:
        ValueError: if the folder has no recognisable layout, or holds more than one dataset.
    """
    files = dict(_annotation_layout(folder)) or dict(_split_folder_layout(folder)) or _single_file_layout(folder)
    return {name: files[name] for name in _SPLIT_NAMES if name in files}


def _annotation_layout(folder: Path) -> Iterator[tuple[str, Files]]:
    """Yield split → (annotation file, picture folder) for COCO's own layout."""
    for name, aliases in _SPLIT_NAMES.items():
        patterns = [pattern for alias in aliases for pattern in (f"{alias}.json", f"instances_{alias}*.json")]
        bases = (folder / "annotations", folder)
        found = {path for base in bases for pattern in patterns for path in base.glob(pattern)}
        if len(found) > 1:
            raise ValueError(f"Several {name} files in {folder}: {', '.join(sorted(map(str, found)))}. Keep one.")
        for path in found:
            stems = (path.stem.removeprefix("instances_"), *aliases)
            folders = [parent / stem for parent in (folder, folder / "images") for stem in stems]
            yield name, (path, _image_dir(path, [*folders, folder / "images", folder]))


def _split_folder_layout(folder: Path) -> Iterator[tuple[str, Files]]:
    """Yield split → (annotation file, picture folder) for one folder per split; the shallowest such set counts."""
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
                yield name, (annotation_file, _image_dir(annotation_file, [path, path / "images"]))
            return
        level = sorted(path for parent in level for path in parent.iterdir() if path.is_dir() and path.name[0] != ".")


def _single_file_layout(folder: Path) -> dict[str, Files]:
    """Return the one COCO file of a folder as the split ``train``.

    Raises:
        ValueError: if there is none, or more than one; names the files that are there.
    """
    seen = [path for base in (folder, folder / "annotations") for path in sorted(base.glob("*.json"))]
    found = [path for path in seen if _is_coco(path)]
    if len(found) != 1:
        came = ", ".join(str(path.relative_to(folder)) for path in (found or seen)[:10]) or "no JSON file"
        what = f"several COCO files in {folder} that no split is named after" if found else f"no COCO file in {folder}"
        raise ValueError(f"Found {what}: {came}. {LAYOUT_HINT}.")
    (path,) = found
    stem = path.stem.removeprefix("instances_")
    candidates = [folder / "images" / stem, folder / stem, folder / "images", path.parent, folder]
    return {"train": (path, _image_dir(path, candidates))}


def _is_coco(path: Path) -> bool:
    """Return whether a JSON file has the lists of a COCO file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content


def _annotation_file(folder: Path) -> Path | None:
    """Return the COCO file of a split folder; few-shot subsets do not count."""
    for name in _ANNOTATION_FILES:
        if (folder / name).is_file():
            return folder / name
    others = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith((".", "fewshot_"))]
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise ValueError(f"Several COCO files in {folder}: {names}. Name the right one {_ANNOTATION_FILES[1]}.")
    return others[0] if others else None


def _image_dir(annotation_file: Path, candidates: list[Path]) -> Path:
    """Return the first folder that holds the first picture; if none does, the first that exists."""
    existing = [path for path in candidates if path.is_dir()]
    if len(existing) > 1:
        try:
            first = json.loads(annotation_file.read_bytes())["images"][0]["file_name"]
            return next(path for path in existing if picture_path(path, first).is_file())
        except (ValueError, LookupError, TypeError, StopIteration):
            pass  # load_split says what is wrong
    return existing[0]
