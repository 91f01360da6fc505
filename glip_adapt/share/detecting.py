"""Detect in many image files: one JSON file and one annotated image each, and labels for another detector."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from glip_adapt.core.files import check_room, written_whole
from glip_adapt.core.masks import Mask
from glip_adapt.core.settings import ViewConfig, Views
from glip_adapt.core.structures import Detections
from glip_adapt.data.documents import image_files
from glip_adapt.data.images import SUFFIXES, load_rgb
from glip_adapt.engine.detector import Detector
from glip_adapt.engine.draw import add_sentence, draw_detections
from glip_adapt.engine.feeding import ahead
from glip_adapt.engine.segment import segment
from glip_adapt.share.interop import (
    place_yolo_labels,
    write_boxes_csv,
    write_cvat,
    write_pseudo_labels,
    write_yolo_labels,
)
from glip_adapt.trunks.segmenter import Segmenter

SCHEMA = 2  # of the JSON; boxes of schema 1 ended with their last pixel, one pixel before the edge
THRESHOLD = 0.3  # of a box to show, for models that hold none of their own

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # two letters at least: C:/ is a disk

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """Detections in one file, or the reason why there are none.

    Attributes:
        image: path of the file.
        found: all detections, best first; None if the file could not be read.
        is_shown: (N,) bool, which of them reach the threshold of their class; None if there are none.
        seconds: that detection and segmentation took.
        drawing: path of the annotated image.
        error: message; empty if the file could be read.
        sentence: whose phrases were looked for; empty for a list of classes.
        masks: of the shown detections, in their order; empty if there was no segmenter.
    """

    image: Path
    found: Detections | None = None
    is_shown: Tensor | None = None
    seconds: float = 0.0
    drawing: Path | None = None
    error: str = ""
    sentence: str = ""
    masks: tuple[Mask, ...] = ()

    @property
    def shown(self) -> Detections | None:
        """The detections that reach the threshold of their class, with their masks."""
        if self.found is None or self.is_shown is None:
            return None
        return replace(self.found.select(self.is_shown), masks=self.masks)

    def to_json(self) -> dict[str, Any]:
        """Return the result as it is written, with all boxes; ``shown`` tells which reach the threshold of their class.

        Boxes are edges (left, top, right, bottom) in pixels of the upright image. Those of a sentence have the
        ``phrase`` and its ``span``, start and end in the ``sentence``. After segmentation the shown ones have a
        ``segmentation``, run lengths as in COCO.
        """
        start = {"schema": SCHEMA, "image": str(self.image)}
        if self.found is None or self.is_shown is None:
            return {**start, "error": self.error}
        columns = (self.found.boxes_xyxy, self.found.scores, self.found.labels, self.is_shown)
        names = self.found.class_names
        spans = [{"phrase": p.text, "span": list(p.span)} for p in self.found.phrases] or [{}] * len(names)
        boxes = [
            {"class": names[label], **spans[label], "score": score, "box_xyxy": box, "shown": shown}
            for box, score, label, shown in zip(*(column.tolist() for column in columns), strict=True)
        ]
        for box, mask in zip((box for box in boxes if box["shown"]), self.masks, strict=False):  # or no masks at all
            box["segmentation"] = mask.to_rle()
        sentence = {"sentence": self.sentence} if self.sentence else {}
        return {**start, **sentence, "seconds": round(self.seconds, 3), "detections": boxes}


def detect_files(
    model: Detector,
    images: Sequence[Path],
    out: Path,
    *,
    threshold: float | None = None,
    view: ViewConfig | None = None,
    views: Views | None = None,
    as_coco: Path | None = None,
    as_csv: Path | None = None,
    as_cvat: Path | None = None,
    as_yolo: Path | None = None,
    segmenter: Segmenter | None = None,
    on_file: Callable[[FileResult], None] | None = None,
) -> list[FileResult]:
    """Detect in image files, and write ``NAME.json`` with all boxes and ``NAME.png`` with the good ones into a folder.

    Images are turned upright as their EXIF orientation says; boxes are in pixels of the upright image. A file that
    cannot be read is left out; its result has an error.

    Args:
        model: from ``attach``, ``load_adapter`` or ``load_baked``.
        images: files, see ``find_images``.
        out: folder for the results.
        threshold: lowest score in [0, 1] of a box that is drawn, or becomes a label; by default that of its class in
            ``model.thresholds``, or ``THRESHOLD`` if the model holds none.
        view: resizing and precision; by default those of the trunk.
        views: sizes, mirror images and tiles that are looked at one after the other; by default one view.
        as_coco: COCO file to write, with the boxes that reach the threshold as annotations.
        as_csv: table of the same boxes to write.
        as_cvat: XML file of the same boxes to write, to upload to a task of CVAT.
        as_yolo: folder for the same boxes in YOLO format.
        segmenter: from ``load_segmenter``; cuts out the boxes that are drawn, for the JSON, the drawing and
            ``as_coco``.
        on_file: called after each file.

    Raises:
        ValueError: before the first file, if results would overwrite each other or an image.
        FileExistsError: before the first file, if ``as_yolo`` holds labels.
        OSError: if a result cannot be written.
    """
    targets = _targets(images, out)
    for file in (as_coco, as_csv, as_cvat):
        if file is not None:
            check_room(file.parent, 1)
    if as_yolo is not None:
        place_yolo_labels(as_yolo, images)
    limits = (model.thresholds or dict.fromkeys(model.class_names, THRESHOLD)) if threshold is None else threshold
    results = []
    for path, target, opened in zip(images, targets, ahead(_try_open, images, model.device), strict=True):
        results.append(_detect_one(model, path, opened, target, limits, view, views, segmenter))
        if on_file:
            on_file(results[-1])
    good = {result.image: shown for result in results if (shown := result.shown) is not None}
    paths, found = list(good), list(good.values())
    if as_coco is not None:
        write_pseudo_labels(as_coco, paths, found, model.class_names)
    if as_csv is not None:
        write_boxes_csv(as_csv, paths, found)
    if as_cvat is not None:
        write_cvat(as_cvat, paths, found)
    if as_yolo is not None:
        write_yolo_labels(as_yolo, paths, found, model.class_names)
    return results


def find_images(named: Iterable[str | Path]) -> list[Path]:
    """Return the image files that paths, folders and patterns name, once each.

    A folder stands for the images in it, without those in its subfolders, which a warning counts. A pattern stands for
    the images that match: ``photos/*.jpg``, or with subfolders ``photos/**``.

    Raises:
        ValueError: if a folder holds no image, a pattern matches none, or an address of the web is given.
    """
    found: list[Path] = []
    for entry in named:
        text, path = str(entry), Path(entry)
        if path.is_dir():
            found += _inside(path)
        elif path.exists() or not (glob.has_magic(text) or _ADDRESS.match(text)):
            found.append(path)
        elif _ADDRESS.match(text):
            raise ValueError(f"{text} is an address, and only local files are read. Download the image first.")
        else:
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
            if not (matches := [match for match in matches if _is_image_file(match)]):
                raise ValueError(f"No image matches {text}. Expected a pattern such as 'photos/*.jpg' or 'photos/**'.")
            found += matches
    first: dict[str, Path] = {}
    for path in found:
        first.setdefault(os.path.abspath(path), path)
    return list(first.values())


def _inside(folder: Path) -> list[Path]:
    """Return the images in a folder, and warn of those in its subfolders."""
    inside = [path for path in sorted(folder.iterdir()) if _is_image_file(path) and path.name[0] != "."]
    deeper = sum(path.parent != folder for path in image_files(folder))
    hint = f"{deeper} lie in subfolders; '{folder}/**' names them too" if deeper else ""
    if not inside:
        raise ValueError(f"There is no image in {folder}. {hint or 'Name a folder of JPEG or PNG files, for example'}.")
    if deeper:
        logger.warning("%s: %d images are taken. %s.", folder, len(inside), hint)
    return inside


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _try_open(path: Path) -> Image.Image | str:
    """Return an image, or why it cannot be read."""
    try:
        return load_rgb(path)
    except (ValueError, FileNotFoundError) as error:
        return str(error)


def _detect_one(
    model: Detector,
    path: Path,
    image: Image.Image | str,
    target: Path,
    limits: float | Mapping[str, float],
    view: ViewConfig | None,
    views: Views | None,
    segmenter: Segmenter | None,
) -> FileResult:
    """Detect in one opened file and write the results."""
    if isinstance(image, str):
        return FileResult(image=path, error=image)
    started = time.perf_counter()
    found = model.predict(image, view=view, views=views)
    shown = found.above(limits)
    if segmenter is not None:
        shown = segment(image, shown, segmenter)
    seconds = time.perf_counter() - started
    result = FileResult(
        image=path,
        found=found,
        is_shown=found.reach(limits),
        seconds=seconds,
        drawing=target.with_name(f"{target.name}.png"),
        sentence=model.sentence.text if model.sentence else "",
        masks=shown.masks,
    )
    with written_whole(target.with_name(f"{target.name}.json")) as temporary:
        temporary.write_text(json.dumps(result.to_json(), indent=1), encoding="utf-8")
    with written_whole(target.with_name(f"{target.name}.png")) as temporary:
        drawn = draw_detections(image, shown)
        (add_sentence(drawn, model.sentence) if model.sentence else drawn).save(temporary)
    return result


def _targets(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return the path of each result without suffix.

    It has the name of the image, with its suffix where two share a stem. Images of one name in several folders keep
    their folders below the one that holds all images.

    Raises:
        ValueError: if results would overwrite each other or an image.
    """
    stems, whole = (Counter(getattr(path, part) for path in paths) for part in ("stem", "name"))
    places = [Path(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath([place.parent for place in places]) if places else ""
    names = [
        path.stem if stems[path.stem] == 1 else path.name if whole[path.name] == 1 else str(place.relative_to(root))
        for path, place in zip(paths, places, strict=True)
    ]
    written = {(out / f"{name}{suffix}").resolve() for name in names for suffix in (".json", ".png")}
    if len(written) < 2 * len(names) or written & {path.resolve() for path in paths}:
        raise ValueError(f"Results in {out} would overwrite each other or an image. Name another folder (--out).")
    return [out / name for name in names]
