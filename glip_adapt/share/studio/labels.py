"""The pictures of a folder and their labels: read from its label files, and changed there one picture at a time.

Nothing is kept but what the files say, so that a closed page loses nothing. Whoever saves names the revision that the
change started from; if another page, or another program, has changed the same picture since, the save is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glip_adapt.core.captions import clean_name
from glip_adapt.core.config import unknown_name
from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.core.files import locked, written_whole
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.dataset import FORMATS, find_format, recognise_format
from glip_adapt.data.documents import BoxXYWH, SplitDocument, image_files
from glip_adapt.data.entries import box_of, declared_size, image_path, root_category
from glip_adapt.data.formats import coco
from glip_adapt.data.images import SUFFIXES, read_header
from glip_adapt.data.relabel import RELABEL, read_labels, relabel
from glip_adapt.data.relabel import coco as coco_files
from glip_adapt.data.relabel.objects import NamedBox
from glip_adapt.data.scan import require_sound

logger = logging.getLogger(__name__)

STATE_FILE = ".glip-adapt-studio.json"  # class names that have been typed; labels are not in it
_DECIMALS = 2  # of pixels
_MOST_BOXES = 2000  # of one picture
_MOST_LETTERS = 200  # of a class name


class StaleError(GlipAdaptError):
    """A picture was changed since the labels that a save started from.

    Attributes:
        labels: what the files say now.
    """

    def __init__(self, labels: Labels) -> None:
        super().__init__("The labels of this picture were changed elsewhere. They are loaded again.")
        self.labels = labels


@dataclass(frozen=True)
class Labels:
    """The labels of one picture.

    Attributes:
        boxes: class name and box (left, top, width, height in pixels) of each object; crowd regions are not among them.
        is_labelled: whether a label file speaks of the picture, if only to say that it shows nothing.
    """

    boxes: tuple[NamedBox, ...] = ()
    is_labelled: bool = False

    @property
    def revision(self) -> str:
        """What tells one state of the labels from another."""
        boxes = [(name, [round(edge, _DECIMALS) + 0.0 for edge in box]) for name, box in self.boxes]
        return hashlib.sha256(json.dumps([self.is_labelled, boxes]).encode()).hexdigest()[:16]


class LabelStore:
    """Pictures and labels of a folder.

    Attributes:
        folder: absolute, without links.
        format: of the labels; COCO if there are none yet.
    """

    def __init__(self, folder: Path, format: str | None = None) -> None:
        """Look at a folder; pictures are not opened, unless the format of the labels needs their sizes.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if its label files cannot be understood, are of several formats, or of one that is not changed.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}. Give one with pictures.")
        self.folder = Path(os.path.realpath(folder))
        has_labels = any(known.recognises(self.folder) for known in FORMATS)
        if not has_labels and (damaged := self.folder / coco_files.FILE).exists():
            raise ValueError(f"{damaged} cannot be read as COCO. Restore the file, or remove it to start anew.")
        self.format = format or (recognise_format(self.folder).NAME if has_labels else coco.NAME)
        find_format(self.format)
        if self.format not in RELABEL:
            raise unknown_name("format of labels to change", self.format, list(RELABEL))
        self._guard = threading.RLock()
        self._pictures: dict[str, Path] = {}
        self._labels: dict[str, Labels] = {}
        self._sizes: dict[str, SizeHW] = {}
        self._classes: list[str] = []
        self._seen: object = None
        self._left_out = 0
        self.refresh()

    def refresh(self) -> None:
        """Look for new pictures, and read the labels again if files have changed."""
        with self._guard:
            found = image_files(self.folder)
            kept = [path for path in found if self._is_inside(path)]
            if len(found) - len(kept) > self._left_out:
                self._left_out = len(found) - len(kept)
                logger.warning(
                    f"{self._left_out} pictures are links out of {self.folder}. They are left out; copy the files."
                )
            pictures = {self._id(path): path for path in kept}
            if pictures.keys() != self._pictures.keys():
                self._pictures, self._seen = pictures, None  # the labels may have spoken of the new ones before
            self._read()

    @property
    def pictures(self) -> dict[str, Path]:
        """Path of each picture, by its id."""
        return self._pictures

    @property
    def classes(self) -> list[str]:
        """Names of the classes: those that were typed, in that order, then the others of the labels."""
        return list(dict.fromkeys([*self._typed(), *self._classes]))

    @property
    def used_classes(self) -> list[str]:
        """Names of the classes of the labels."""
        return self._classes

    def type_classes(self, names: Sequence[str]) -> None:
        """Keep names that were typed, so that they are there again after the page was closed."""
        with self._guard, written_whole(self.folder / STATE_FILE) as temporary:
            cleaned = [_checked_name(name) for name in names]
            temporary.write_text(json.dumps({"names": cleaned}, ensure_ascii=False), encoding="utf-8")

    def path_of(self, key: str) -> Path:
        """Return the path of a picture; KeyError if there is none, or it has become a link out of the folder."""
        if not self._is_inside(path := self._pictures[key]):
            raise KeyError(key)
        return path

    def name_of(self, key: str) -> str:
        """Return the path of a picture below the folder, as it can be shown and sent."""
        return os.fsencode(self._pictures[key].relative_to(self.folder)).decode(errors="replace")

    def labels_of(self, key: str) -> Labels:
        """Return the labels of a picture; KeyError if there is no such picture."""
        with self._guard:
            self._read()
            self._pictures[key]
            return self._labels.get(key, Labels())

    def overview(self) -> list[tuple[str, str, Labels]]:
        """Return id, name and labels of all pictures."""
        return [(key, self.name_of(key), self._labels.get(key, Labels())) for key in self._pictures]

    def size_of(self, key: str) -> SizeHW:
        """Return the (height, width) in pixels that boxes of a picture refer to; errors as ``read_header``."""
        if key not in self._sizes:
            self._sizes[key] = read_header(self._pictures[key]).size_hw
        return self._sizes[key]

    def declared_size(self, key: str) -> SizeHW | None:
        """Return the (height, width) that the labels state, which tells how the picture is turned; see ``load_rgb``."""
        return self._sizes.get(key)

    def save(self, key: str, boxes: Sequence[NamedBox] | None, revision: str) -> Labels:
        """Write the labels of one picture into the label files, and return them.

        Args:
            key: of the picture.
            boxes: all its objects; they are clipped to the picture. None takes the labels away.
            revision: of the labels that the change started from.

        Raises:
            StaleError: if the labels are others by now; nothing is written.
            KeyError: if there is no such picture.
            ValueError, OSError: if a box or a name is no good, or as ``relabel``; nothing is written.
        """
        with self._alone():
            self._read()
            image, now = self._pictures[key], self._labels.get(key, Labels())
            if now.revision != revision:
                raise StaleError(now)
            if boxes is None and self.format != coco.NAME and len(self._labels) == 1 and now.is_labelled:
                raise ValueError(
                    f"This is the last labelled picture, and a folder in the format {self.format} needs one. Label "
                    "another one first."
                )
            checked = None if boxes is None else self._checked(boxes, now, self.size_of(key))
            relabel(self.folder, self.format, image, checked, self.size_of(key))
            # Reading a thousand label files again would take a second for each box that is drawn.
            self._labels.pop(key, None)
            if checked is not None:
                self._labels[key] = Labels(tuple(checked), True)
                self._classes = list(dict.fromkeys([*self._classes, *(name for name, _ in checked)]))
            self._seen = _look_of(self.folder)
            return self._labels.get(key, Labels())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and processes from saving."""
        with self._guard, locked(self.folder):
            yield

    def _checked(self, boxes: Sequence[NamedBox], now: Labels, size_hw: SizeHW) -> list[NamedBox]:
        """Return objects as they can be written; those that are there already stay as they are."""
        if len(boxes) > _MOST_BOXES:
            raise ValueError(f"Expected at most {_MOST_BOXES} boxes in a picture, got {len(boxes)}.")
        known = set(self._classes)
        named = [(name if name in known else _checked_name(name), box) for name, box in boxes]
        return [
            (name, inside)
            for name, box in named
            if (inside := box if (name, box) in now.boxes else _clipped(box, size_hw)) is not None
        ]

    def _is_inside(self, path: Path) -> bool:
        return os.path.realpath(path).startswith(str(self.folder) + os.sep)

    def _id(self, path: Path) -> str:
        """Return what names a picture in addresses: short, without any sign of a path."""
        return hashlib.sha256(os.fsencode(path.relative_to(self.folder))).hexdigest()[:16]

    def _typed(self) -> list[str]:
        try:
            names = json.loads((self.folder / STATE_FILE).read_bytes())["names"]
            return [_checked_name(name) for name in names]
        except (OSError, ValueError, LookupError, TypeError):
            return []

    def _read(self) -> None:
        """Read the label files, if they are not those that were read last."""
        if (seen := _look_of(self.folder)) == self._seen:
            return
        has_labels = find_format(self.format).recognises(self.folder)
        documents = read_labels(self.folder, self.format) if has_labels else {}
        labels: dict[str, Labels] = {}
        sizes: dict[str, SizeHW] = {}
        classes: dict[str, None] = {}
        roots = {root_category(source.document) for source in documents.values()}
        for source in documents.values():
            lists = [source.document.get(name) for name in ("images", "categories")]
            is_damaged = source.findings and source.document.get("images") != []
            if is_damaged or source.document.get("annotations") or all(lists):  # else nothing is labelled yet
                require_sound(source, images=False, need_sizes=False)
            names = {entry["id"]: entry["name"] for entry in source.document["categories"]}
            classes |= dict.fromkeys(name for key, name in names.items() if roots != {(key, name)})
            for path, boxes, size_hw in _images_of(source, names):
                if (key := self._key_of(path)) is not None:
                    labels[key] = Labels(boxes, True)
                    if size_hw is not None:
                        sizes[key] = size_hw
        self._labels, self._sizes, self._classes, self._seen = labels, sizes, list(classes), seen

    def _key_of(self, path: Path) -> str | None:
        path = Path(os.path.abspath(path))
        key = self._id(path) if path.is_relative_to(self.folder) else ""
        return key if key in self._pictures else None


def _images_of(
    source: SplitDocument, names: dict[int, str]
) -> Iterator[tuple[Path, tuple[NamedBox, ...], SizeHW | None]]:
    """Yield path, objects and stated size of each image of a split."""
    boxes: dict[Any, list[NamedBox]] = {entry["id"]: [] for entry in source.document["images"]}
    for note in source.document["annotations"]:
        if note.get("iscrowd") not in (1, True) and (box := box_of(note)) is not None:
            boxes[note["image_id"]].append((names[note["category_id"]], (box[0], box[1], box[2], box[3])))
    for entry in source.document["images"]:
        yield image_path(source.image_dir, entry["file_name"]), tuple(boxes[entry["id"]]), declared_size(entry)


def _look_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, time and size of the files in a folder that may be labels; hidden ones are none."""
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        for name in names:
            if name[0] != "." and os.path.splitext(name)[1].lower() not in SUFFIXES:
                path = os.path.join(base, name)
                try:
                    facts = os.stat(path)
                except OSError:  # removed meanwhile
                    continue
                found.append((path, facts.st_mtime_ns, facts.st_size))
    return tuple(sorted(found))


def _clipped(box: BoxXYWH, size_hw: SizeHW) -> BoxXYWH | None:
    """Return a box as far as it is inside the picture, rounded; None if nothing is, ValueError if it is no box."""
    x, y, w, h = box
    if not all(map(math.isfinite, box)) or min(w, h) <= 0:
        raise ValueError(f"Expected a box with a width and a height, got {[*box]}.")
    left, right = (round(min(max(edge, 0), size_hw[1]), _DECIMALS) for edge in (x, x + w))
    top, bottom = (round(min(max(edge, 0), size_hw[0]), _DECIMALS) for edge in (y, y + h))
    if right <= left or bottom <= top:
        return None
    return left, top, round(right - left, _DECIMALS), round(bottom - top, _DECIMALS)


def _checked_name(name: str) -> str:
    """Return a class name without blanks around it; ValueError if nothing is left, or label files cannot hold it."""
    if not isinstance(name, str) or not (cleaned := " ".join(name.split())) or not clean_name(cleaned):
        raise ValueError(f"Expected the name of a class, got {name!r}.")
    if len(cleaned) > _MOST_LETTERS or not cleaned.isprintable():
        raise ValueError(f"Expected a class name of at most {_MOST_LETTERS} letters without control codes.")
    return cleaned
