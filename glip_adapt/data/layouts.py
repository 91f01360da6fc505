"""Folder layouts of COCO datasets: find the annotation file and the image folder of each split.

Three layouts are known: folders ``train``, ``valid`` or ``val``, and ``test`` with one COCO file each; files such as
``annotations/train.json`` or ``annotations/instances_train2017.json`` beside the image folders; and a single COCO file,
which becomes the split ``train``, as CVAT, Label Studio and Roboflow export it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from glip_adapt.data.entries import image_path

Files = tuple[Path, Path]  # annotation file, image folder
_Candidates = tuple[Path, list[Path]]  # annotation file, folders that may hold its images

_SPLIT_NAMES = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
_ANNOTATION_FILES = ("annotations_without_background.json", "_annotations.coco.json", "annotations.json")
_MAX_DEPTH = 3  # folders between a dataset folder and its split folders, the latter included
LAYOUT_HINT = (
    "Expected folders train, valid (or val) and test with one COCO JSON file each, at most three levels down, "
    "or annotations/train.json (val, test) beside the image folders"
)


def coco_layout(folder: Path) -> dict[str, Files]:
    """Return split → (annotation file, image folder) for the one dataset in a folder.

    Raises:
        ValueError: if the folder has no recognisable layout, or holds more than one dataset.
    """
    found = _named_files(folder) or _single_file(folder)
    return {name: (found[name][0], _image_dir(*found[name])) for name in _SPLIT_NAMES if name in found}


def has_coco_layout(folder: Path) -> bool:
    """Tell whether a folder holds COCO files where ``coco_layout`` looks, also if it refuses them as ambiguous."""
    try:
        return bool(_named_files(folder) or _coco_files(folder))
    except ValueError:
        return True


def _named_files(folder: Path) -> dict[str, _Candidates]:
    """Return split → annotation file where files or folders are named after splits."""
    return dict(_annotation_layout(folder)) or dict(_split_folder_layout(folder))


def _annotation_layout(folder: Path) -> Iterator[tuple[str, _Candidates]]:
    """Yield the splits of COCO's own layout."""
    for name, aliases in _SPLIT_NAMES.items():
        patterns = [pattern for alias in aliases for pattern in (f"{alias}.json", f"instances_{alias}*.json")]
        bases = (folder / "annotations", folder)
        found = {path for base in bases for pattern in patterns for path in base.glob(pattern)}
        if len(found) > 1:
            raise ValueError(f"Several {name} files in {folder}: {', '.join(sorted(map(str, found)))}. Keep one.")
        for path in found:
            stems = (path.stem.removeprefix("instances_"), *aliases)
            folders = [parent / stem for parent in (folder, folder / "images") for stem in stems]
            yield name, (path, [*folders, folder / "images", folder])


def _split_folder_layout(folder: Path) -> Iterator[tuple[str, _Candidates]]:
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


def _coco_files(folder: Path) -> list[Path]:
    """Return the COCO files of a folder, recognised by their content."""
    return [path for path in _json_files(folder) if _is_coco(path)]


def _json_files(folder: Path) -> list[Path]:
    return [path for base in (folder, folder / "annotations") for path in sorted(base.glob("*.json"))]


def _single_file(folder: Path) -> dict[str, _Candidates]:
    """Return the one COCO file of a folder as the split ``train``.

    Raises:
        ValueError: if there is none or more than one; the message lists the files.
    """
    found = _coco_files(folder)
    if len(found) != 1:
        came = (
            ", ".join(str(path.relative_to(folder)) for path in (found or _json_files(folder))[:10]) or "no JSON file"
        )
        what = f"several COCO files in {folder} that no split is named after" if found else f"no COCO file in {folder}"
        raise ValueError(f"Found {what}: {came}. {LAYOUT_HINT}.")
    (path,) = found
    stem = path.stem.removeprefix("instances_")
    return {"train": (path, [folder / "images" / stem, folder / stem, folder / "images", path.parent, folder])}


def _is_coco(path: Path) -> bool:
    """Tell whether a JSON file has the lists of a COCO file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content


def _annotation_file(folder: Path) -> Path | None:
    """Return the COCO file of a split folder; files of few-shot subsets do not count."""
    for name in _ANNOTATION_FILES:
        if (folder / name).is_file():
            return folder / name
    others = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith((".", "fewshot_"))]
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise ValueError(f"Several COCO files in {folder}: {names}. Name the right one {_ANNOTATION_FILES[1]}.")
    return others[0] if others else None


def _image_dir(annotation_file: Path, candidates: list[Path]) -> Path:
    """Return the first folder that holds the first image of the file; if none does, the first that exists."""
    existing = [path for path in candidates if path.is_dir()]
    if len(existing) > 1:
        try:
            first = json.loads(annotation_file.read_bytes())["images"][0]["file_name"]
            return next(path for path in existing if image_path(path, first).is_file())
        except (ValueError, LookupError, TypeError, StopIteration):
            pass  # load_split raises the error
    return existing[0]
