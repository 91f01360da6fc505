"""Layouts for GLIGEN (arXiv 2301.07093): detections as phrases and boxes that its pipeline in diffusers draws anew."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from glip_adapt.core.files import written_whole
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.images import read_header

if TYPE_CHECKING:
    from glip_adapt.core.structures import Detections

MOST_OBJECTS = 30
"""That the pipeline takes; it leaves later ones out."""


class Layout(TypedDict):
    """Arguments of ``StableDiffusionGLIGENPipeline``: ``pipeline(prompt, **layout)``.

    Attributes:
        gligen_phrases: what is in each box.
        gligen_boxes: left, top, right and bottom edge of each, as shares of width and height of the image, in [0, 1].
    """

    gligen_phrases: list[str]
    gligen_boxes: list[list[float]]


def to_gligen(detections: Detections, size_hw: SizeHW) -> Layout:
    """Return detections of one image as phrases and boxes for GLIGEN: ``pipeline(prompt, **to_gligen(found, (h, w)))``.

    The best ``MOST_OBJECTS`` are taken, best first. Boxes are clipped to the image; those without an area are left out.
    Phrases are the names of classes, or the phrases of a sentence, in one line and without control codes.

    Args:
        detections: from ``model.predict``, with ``class_names``.
        size_hw: (height, width) of the image in pixels.

    Raises:
        ValueError: if nothing is left to draw.
    """
    names = [detections.class_names[label] for label in detections.labels.tolist()]
    return _layout(zip(names, detections.scores.tolist(), detections.boxes_xyxy.tolist(), strict=True), size_hw)


def export_gligen(results: Path, file: Path) -> Layout:
    """Write the shown detections of a JSON file of ``detect`` as a layout for GLIGEN, in JSON; return it.

    Args:
        results: ``NAME.json`` that ``detect`` wrote; its image is where it says.
        file: JSON to write.

    Raises:
        FileNotFoundError: if a file or the image is missing.
        ValueError: if the file is no result of ``detect``, or nothing is left to draw.
    """
    rows, image = _read(results)
    layout = _layout(rows, read_header(image).size_hw)
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(layout, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return layout


def _layout(rows: Iterable[tuple[str, float, Sequence[float]]], size_hw: SizeHW) -> Layout:
    """Return the layout of rows of name, score, and edges in pixels."""
    height, width = size_hw
    objects = []
    for name, _, edges in sorted(rows, key=lambda row: -row[1]):
        shares = [min(1.0, max(0.0, edge / side)) for edge, side in zip(edges, (width, height) * 2, strict=True)]
        phrase = _cleaned(name)
        if phrase and shares[0] < shares[2] and shares[1] < shares[3]:
            objects.append((phrase, shares))
    if not objects:
        raise ValueError("There is no detection to lay out. Lower the threshold, or look for other names.")
    phrases, boxes = zip(*objects[:MOST_OBJECTS], strict=True)
    return Layout(gligen_phrases=list(phrases), gligen_boxes=list(boxes))


def _cleaned(text: str) -> str:
    """Return text in one line, without control codes, marks of direction and halves of surrogate pairs."""
    return " ".join("".join(c for c in " ".join(text.split()) if unicodedata.category(c)[0] != "C").split())


def _read(file: Path) -> tuple[list[tuple[str, float, list[float]]], Path]:
    """Return name, score and edges of each shown detection of a JSON file of ``detect``, and the path of its image."""
    expected = "Expected a file NAME.json that `glip-adapt detect` wrote"
    if not file.is_file():
        raise FileNotFoundError(f"No file at {file}. {expected}.")
    try:
        document: Any = json.loads(file.read_bytes())
        shown = [box for box in document["detections"] if box["shown"]]
        rows = [(str(box["class"]), float(box["score"]), [float(edge) for edge in box["box_xyxy"]]) for box in shown]
        if any(len(edges) != 4 for _, _, edges in rows):
            raise ValueError("a box has not four edges")
        return rows, Path(document["image"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read ({type(error).__name__}: {error}). {expected}.") from error
