"""Where a YOLO dataset states its classes and splits: ``data.yaml``, lists of images, names of folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from glip_adapt.core.files import written_whole
from glip_adapt.data.documents import (
    CLASSES_FILE,
    SPLIT_ALIASES,
    Finding,
    image_files,
    read_classes,
    split_folders,
)
from glip_adapt.data.images import SUFFIXES
from glip_adapt.data.label_files import files_below

SETTINGS_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES_FILES = (CLASSES_FILE, "_darknet.labels")  # the second is of Roboflow; darknet writes obj.names
_MOST_BYTES = 2**20
_NOTHING = ("", "~", "null")  # spellings of an entry without a value


def settings_files(folder: Path) -> list[Path]:
    """Return the YAML file of a dataset: of the usual name, even if it is damaged; else all that name splits."""
    for path in (folder / name for name in SETTINGS_FILES):
        if path.is_file():
            try:
                is_meant = bool(read_settings(path).keys() & {"names", "nc", *SPLIT_ALIASES})
            except ValueError:
                is_meant = True
            if is_meant:
                return [path]
    found = []
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
        try:
            keys = read_settings(path).keys()
        except ValueError:
            continue
        found += [path] if "names" in keys and keys & {*SPLIT_ALIASES} else []
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """Return the entries of a YAML file that have a value; every value is text, so that a class may be called no."""
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"{size:,} bytes")
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: cannot be read as YAML ({reason}). Expected names, train and val.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no entries. Expected names, train and val.")
    return {key: value for key, value in content.items() if isinstance(key, str) and value not in _NOTHING}


def class_names(folder: Path, file: Path | None, settings: Mapping[str, Any]) -> list[str]:
    """Return the class names by number, from the entries of ``data.yaml`` or from a file of names.

    Raises:
        ValueError: if there are none, or they leave numbers out; or if files of names differ.
    """
    if "names" not in settings:
        return _names_beside(folder)
    names = settings["names"]
    if isinstance(names, dict) and set(names) == {str(number) for number in range(len(names))}:
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: expected names as a list or as 0: NAME, 1: NAME and so on, got {str(names)[:100]}.")
    return [name.strip() for name in names]


def _names_beside(folder: Path) -> list[str]:
    """Return the class names of a folder without ``data.yaml``."""
    lists = {tuple(read_classes(path)): path for path in names_files(folder)}
    if len(lists) != 1:
        came = "differ: " + ", ".join(map(str, lists.values())) if lists else "are missing"
        raise ValueError(f"{folder}: the class names {came}. Expected one {CLASSES_FILE} with one name a line.")
    return list(next(iter(lists)))


def add_names(file: Path, names: Sequence[str]) -> None:
    """Write another list of class names into ``data.yaml``; the other entries stay, comments do not."""
    content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    content["names"] = dict(enumerate(names)) if isinstance(content["names"], dict) else [*names]
    if "nc" in content:
        content["nc"] = len(names)
    with written_whole(file) as temporary:
        text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=10**6)
        temporary.write_text(text, encoding="utf-8")


def names_files(folder: Path) -> list[Path]:
    """Return the files below a folder that list class names by number."""
    return [path for path in files_below(folder, "") if path.name in _NAMES_FILES or path.suffix == ".names"]


def images_of_splits(folder: Path, settings: Mapping[str, Any]) -> tuple[dict[str, list[Path]], list[Finding]]:
    """Return the images of each split, and what is wrong with the description of the splits."""
    stated = {
        name: entries if isinstance(entries, list) else [entries]
        for name, aliases in SPLIT_ALIASES.items()
        for entries in [settings[alias] for alias in aliases if alias in settings][:1]
    }
    if not stated:
        return _splits_beside(folder), []
    found: dict[str, dict[Path, None]] = {}
    findings = []
    for name, entries in stated.items():
        for entry in entries:
            place = _resolve(entry, folder, settings.get("path", ""))
            if place is None:
                findings.append(("missing split", f"{name} is {str(entry)[:100]!r}, which does not exist"))
            else:
                images = _listed(place, folder) if place.is_file() else image_files(place)
                found.setdefault(name, {}).update(dict.fromkeys(images))
    return {name: list(images) for name, images in found.items()}, findings


def _splits_beside(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each split by lists such as ``train.txt``, or else by the names of folders."""
    lists = {
        name: path
        for name, aliases in SPLIT_ALIASES.items()
        for path in (base / f"{alias}.txt" for base in (folder, folder / "data") for alias in aliases)
        if _is_image_list(path)
    }
    if lists:
        return {name: _listed(path, folder) for name, path in lists.items()}
    parts = split_folders(folder / "images")
    if parts == {"train": folder / "images"}:  # no folder in it is named after a split
        parts = split_folders(folder)
    return {name: image_files(path) for name, path in parts.items()}


def _resolve(entry: Any, folder: Path, root: Any) -> Path | None:
    """Return the file or folder that an entry of ``data.yaml`` means, or None.

    Roboflow writes ``../train/images`` for a folder beside the file. Paths of another machine are looked for by their
    last parts.
    """
    if not isinstance(entry, str) or not isinstance(root, str):
        return None
    entry, root = entry.replace("\\", "/"), root.replace("\\", "/")
    parts = [part for part in PurePosixPath(root, entry).parts if part not in ("/", "..", ".")]
    names = [position for position, part in enumerate(parts) if _is_split_name(PurePosixPath(part).stem)]
    tails = ["/".join(parts[start:]) for start in range(min([len(parts), *(p + 1 for p in names[-1:])]))]
    inside = [entry.replace("../", "")] if entry.startswith("../") else []
    for path in (*inside, PurePosixPath(root, entry), entry, *tails):
        try:
            place = Path(os.path.normpath(folder / path))
            if place.exists() and place not in folder.parents:
                return place
        except (OSError, ValueError):  # a name too long, or with a null byte
            continue
    return None


def _is_split_name(text: str) -> bool:
    return any(text in aliases for aliases in SPLIT_ALIASES.values())


def _is_image_list(file: Path) -> bool:
    """Tell whether a text file lists images."""
    first = read_text(file).strip().partition("\n")[0] if file.is_file() else ""
    return os.path.splitext(first.strip())[1].lower() in SUFFIXES


def _listed(file: Path, folder: Path) -> list[Path]:
    """Return the images in a list; one that does not exist stays, so that the check names it."""
    lines = (line.strip() for line in read_text(file).split("\n"))
    return [
        _resolve(line, file.parent, "") or _resolve(line, folder, "") or Path(os.path.normpath(file.parent / line))
        for line in lines
        if line
    ]


def read_text(file: Path) -> str:
    """Return the text of a file; bytes that are not UTF-8 become question marks."""
    return file.read_bytes().decode("utf-8-sig", errors="replace")
