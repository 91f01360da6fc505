"""Label files of formats with one file per image: find that of an image; and lists of classes beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from glip_adapt.core.files import written_whole
from glip_adapt.data.documents import CLASSES_FILE, read_classes
from glip_adapt.data.relabel.objects import NamedBox


def label_file_of(
    image: Path, likely: Path, others: Callable[[], Iterable[Path]], image_of: Callable[[Path], Path | None]
) -> Path:
    """Return the label file of an image; a file that does not exist if it has none yet.

    Args:
        image: that the file speaks of.
        likely: where it is as a rule, and where a new one goes.
        others: returns all label files of the folder; asked only where it is somewhere else.
        image_of: returns the image that a label file speaks of, or None.

    Raises:
        ValueError: if a new file cannot have that place, as it is the label file of another image.
    """
    if likely.is_file() and image_of(likely) == image:
        return likely
    found = next((file for file in others() if image_of(file) == image), likely)
    if found == likely and likely.is_file():
        raise ValueError(f"{likely} belongs to another image of the same name. Rename {image}.")
    return found


def list_classes(folder: Path, boxes: Sequence[NamedBox] | None, class_lists: Sequence[str] = (CLASSES_FILE,)) -> None:
    """Add the classes of objects to the list of classes of a folder, if it has one."""
    files = [path for path in (folder / name for name in class_lists) if path.is_file()]
    if files:
        append_classes(files[0], boxes)


def append_classes(file: Path, boxes: Sequence[NamedBox] | None) -> None:
    """Add the classes of objects to a file with one class name a line."""
    known = read_classes(file)
    fresh = [name for name in dict.fromkeys(name for name, _ in boxes or ()) if name not in known]
    if not fresh:
        return
    text = file.read_text(encoding="utf-8-sig")
    lines = text if not text or text.endswith("\n") else f"{text}\n"
    with written_whole(file) as temporary:
        temporary.write_text(lines + "".join(f"{name}\n" for name in fresh), encoding="utf-8")
