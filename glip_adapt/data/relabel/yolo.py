"""Change labels in YOLO files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glip_adapt.core.files import written_whole
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.formats.yolo import fractions_of, label_file, parse_line
from glip_adapt.data.relabel.label_files import append_classes
from glip_adapt.data.relabel.objects import NamedBox, same_objects
from glip_adapt.data.yolo_layouts import (
    add_names,
    class_names,
    images_of_splits,
    names_files,
    read_settings,
    read_text,
    settings_files,
)


def relabel(folder: Path, image: Path, boxes: Sequence[NamedBox] | None, size_hw: SizeHW) -> None:
    """Change the labels of one image in its text file; polygons stay where their boxes do."""
    file = label_file(image)
    if boxes is None:
        if file is not None:
            file.unlink()
        return
    settings_file = next(iter(settings_files(folder)), None)
    settings = read_settings(settings_file) if settings_file else {}
    if not any(image in paths for paths in images_of_splits(folder, settings)[0].values()):
        raise ValueError(
            f"{image} is in no split of {folder}. Move it into a folder, or add it to a list, that "
            f"{settings_file.name if settings_file else 'the dataset'} takes its images from."
        )
    names = class_names(folder, settings_file, settings)
    if fresh := [name for name in dict.fromkeys(name for name, _ in boxes) if name not in names]:
        names += fresh
        if settings_file and "names" in settings:
            add_names(settings_file, names)
        else:
            for listed in names_files(folder):
                append_classes(listed, boxes)
    old = _lines(file, names, "kpt_shape" in settings, size_hw) if file else []
    known = [(line, named) for line, named in old if named is not None]
    lines = [line for line, named in old if named is None]
    for (name, box), place in zip(boxes, same_objects([named for _, named in known], boxes), strict=True):
        fractions = fractions_of(box, *size_hw)
        if place is not None:
            lines.append(known[place][0])
        elif fractions is not None:
            lines.append(" ".join([str(names.index(name)), *(f"{value:.10f}" for value in fractions)]))
    with written_whole(file or _new_file(folder, image)) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _lines(file: Path, names: Sequence[str], has_keypoints: bool, size_hw: SizeHW) -> list[tuple[str, NamedBox | None]]:
    """Return each line of a label file with its object in pixels; None for a line that is none."""
    height, width = size_hw
    found: list[tuple[str, Any]] = []
    for line in filter(str.strip, read_text(file).split("\n")):
        try:
            label, (x, y, w, h), _ = parse_line(line, has_keypoints)
            found.append((line, (names[label], (x * width, y * height, w * width, h * height))))
        except (ValueError, IndexError):
            found.append((line, None))
    return found


def _new_file(folder: Path, image: Path) -> Path:
    """Return the place of a new label file: below ``labels`` for an image below ``images``, else beside it."""
    parts = image.relative_to(folder).with_suffix(".txt").parts
    folders = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if not folders:
        return image.with_suffix(".txt")
    return folder / os.path.join(*parts[: folders[-1]], "labels", *parts[folders[-1] + 1 :])
