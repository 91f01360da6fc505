"""Detect in many image files: one JSON file and one annotated image each, and labels for another detector."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glip_adapt.core.files import written_whole
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import Detections
from glip_adapt.data.images import SUFFIXES, load_rgb
from glip_adapt.engine.detector import Detector
from glip_adapt.engine.draw import draw_detections
from glip_adapt.share.interop import write_pseudo_labels

SCHEMA = 2  # of the JSON; boxes of schema 1 ended with their last pixel, one pixel before the edge


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """Detections in one file, or the reason why there are none.

    Attributes:
        image: path of the file.
        found: all detections, best first; None if the file could not be read.
        seconds: that detection took.
        drawing: path of the annotated image.
        error: message; empty if the file could be read.
    """

    image: Path
    found: Detections | None = None
    seconds: float = 0.0
    drawing: Path | None = None
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the result as it is written: boxes are edges (left, top, right, bottom) in pixels."""
        start = {"schema": SCHEMA, "image": str(self.image)}
        if self.found is None:
            return {**start, "error": self.error}
        boxes = [
            {"class": self.found.class_names[label], "score": score, "box_xyxy": box}
            for box, score, label in zip(
                self.found.boxes_xyxy.tolist(), self.found.scores.tolist(), self.found.labels.tolist(), strict=True
            )
        ]
        return {**start, "seconds": round(self.seconds, 3), "detections": boxes}


def detect_files(
    model: Detector,
    images: Sequence[Path],
    out: Path,
    *,
    threshold: float = 0.3,
    view: ViewConfig | None = None,
    labels: Path | None = None,
    on_file: Callable[[FileResult], None] | None = None,
) -> list[FileResult]:
    """Detect in image files, and write ``NAME.json`` with all boxes and ``NAME.png`` with the good ones into a folder.

    A file that cannot be read is left out; its result has an error.

    Args:
        model: from ``attach``, ``load_adapter`` or ``load_baked``.
        images: files, see ``find_images``.
        out: folder for the results.
        threshold: lowest score in [0, 1] of a box that is drawn, or becomes a label.
        view: resizing and precision; by default those of the trunk.
        labels: COCO file to write, with the boxes above the threshold as annotations.
        on_file: called after each file.

    Raises:
        ValueError: before the first file, if results would overwrite each other or an image.
        OSError: if a result cannot be written.
    """
    results = []
    for path, target in zip(images, _targets(images, out), strict=True):
        results.append(_detect_one(model, path, target, threshold, view))
        if on_file:
            on_file(results[-1])
    if labels is not None:
        good = [(r.image, r.found.above(threshold)) for r in results if r.found is not None]
        write_pseudo_labels(labels, [path for path, _ in good], [found for _, found in good], model.class_names)
    return results


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the files that are named, and the images in the folders that are named, once each.

    Raises:
        ValueError: if a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        inside = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES] if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"There is no image in {path}. Name a folder of JPEG or PNG files, for example.")
        found += inside
    return list(dict.fromkeys(found))


def _detect_one(model: Detector, path: Path, target: Path, threshold: float, view: ViewConfig | None) -> FileResult:
    """Detect in one file and write the results."""
    try:
        image = load_rgb(path)
        started = time.perf_counter()
        found = model.predict(image, view=view)
    except (ValueError, FileNotFoundError) as error:
        return FileResult(image=path, error=str(error))
    seconds = time.perf_counter() - started
    result = FileResult(image=path, found=found, seconds=seconds, drawing=target.with_name(f"{target.name}.png"))
    with written_whole(target.with_name(f"{target.name}.json")) as temporary:
        temporary.write_text(json.dumps(result.to_json(), indent=1), encoding="utf-8")
    with written_whole(target.with_name(f"{target.name}.png")) as temporary:
        draw_detections(image, found.above(threshold)).save(temporary)
    return result


def _targets(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return the path of each result without suffix: the name of the image, with its suffix where two share a stem.

    Raises:
        ValueError: if results would overwrite each other or an image.
    """
    stems = Counter(path.stem for path in paths)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in paths]
    written = {(out / f"{name}{suffix}").resolve() for name in names for suffix in (".json", ".png")}
    if len(written) < 2 * len(names) or {path.resolve() for path in paths} & written:
        raise ValueError(f"Results in {out} would overwrite each other or an image. Name another folder (--out).")
    return [out / name for name in names]
