"""Pre-labels: what a detector finds in suggested images, as a dataset that labelling tools open, and as one picture."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torchvision.ops import nms

from glip_adapt.core import boxes
from glip_adapt.core.files import scratch_folder, written_whole
from glip_adapt.core.structures import Detections
from glip_adapt.data.dataset import find_format
from glip_adapt.data.formats import coco
from glip_adapt.data.glyphs import font
from glip_adapt.data.images import load_rgb
from glip_adapt.data.split import Annotation, ImageRecord, Split
from glip_adapt.engine.draw import draw_detections
from glip_adapt.engine.pseudo_labels import SAME_PLACE, unlabelled
from glip_adapt.share.suggesting import Suggestion

MOST_DRAWN = 40  # suggestions on the sheet
SHEET_SUFFIX = ".png"

_CELL, _COLUMNS, _LINES = (400, 300), 4, 4  # width and height of an image in pixels; lines of text below it
_FONT, _LETTERS, _LINE, _GAP = "DejaVuSans.ttf", 14, 18, 12  # pixels
_LETTERS_OF_LINE = 48


def check_place(out: Path, photographs: Path) -> None:
    """Check that pre-labels and their sheet may be written.

    Raises:
        FileExistsError: if ``out`` is not a new or empty folder, or its sheet exists.
        ValueError: if ``out`` lies inside the photographs, where the copies would count as further ones.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder. Name a new one (--out).")
    if sheet_of(out).exists():
        raise FileExistsError(f"{sheet_of(out)} exists. Name another folder (--out), or move the picture away.")
    if Path(os.path.realpath(photographs)) in (real := Path(os.path.realpath(out)), *real.parents):
        raise ValueError(f"{out} lies inside {photographs}. Name a folder outside of it (--out).")


def sheet_of(out: Path) -> Path:
    """Return the path of the sheet, beside the folder, as readers would take it for an image of the dataset."""
    return out.with_name(out.name + SHEET_SUFFIX)


def prelabels(found: Detections, thresholds: Mapping[str, float]) -> Tensor:
    """Return which detections become labels, (N,) bool: those above the threshold of their class, one for each place.

    Of several classes on one place the best score stays: to correct a class is one click, to remove doubles is many.
    """
    above = found.reach(thresholds).nonzero().squeeze(1)
    chosen = torch.zeros(len(found), dtype=torch.bool)
    chosen[above[nms(found.boxes_xyxy[above], found.scores[above], SAME_PLACE)]] = True
    return chosen


def to_json(suggestion: Suggestion, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Return a suggestion with all boxes; ``shown`` tells which are pre-labels.

    Boxes are edges (left, top, right, bottom) in pixels of the upright image.
    """
    found = suggestion.detections
    columns = (found.boxes_xyxy, found.scores, found.labels, prelabels(found, thresholds))
    detections = [
        {"class": found.class_names[label], "score": score, "box_xyxy": box, "shown": shown}
        for box, score, label, shown in zip(*(column.tolist() for column in columns), strict=True)
    ]
    start = {"image": str(suggestion.path), "score": suggestion.score, "reason": suggestion.reason}
    return {**start, "detections": detections}


def write_prelabels(
    suggestions: Sequence[Suggestion],
    out: Path,
    thresholds: Mapping[str, float],
    *,
    format: str = coco.NAME,
    like: Split | None = None,
) -> None:
    """Write copies of suggested images with their pre-labels, and their sheet beside them.

    Args:
        suggestions: best first.
        out: new or empty folder; it appears when it is complete, with the images as the split ``train``.
        thresholds: class name → lowest score of a box that becomes a label, see ``prelabels``.
        format: of the labels.
        like: split whose classes, order and ids are kept, so that labels fit to it; classes of the detector that it
            does not have follow.

    Raises:
        FileExistsError: if ``out`` is not empty.
        OSError: if it cannot be written.
    """
    writer, split = find_format(format), _as_split(suggestions, thresholds, like)
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(out) as scratch, written_whole(sheet_of(out)) as sheet:
        complete = scratch / out.name
        complete.mkdir()
        writer.write({"train": split}, complete)
        draw_sheet(suggestions, thresholds).save(sheet, format="PNG")
        os.replace(complete, out)  # also of an empty folder


def draw_sheet(suggestions: Sequence[Suggestion], thresholds: Mapping[str, float]) -> Image.Image:
    """Return one picture of the best suggestions: pre-labels, rank, name and reason of each."""
    shown = suggestions[:MOST_DRAWN]
    columns = min(_COLUMNS, len(shown))
    width, height = _CELL[0] + _GAP, _CELL[1] + _LINES * _LINE + 2 * _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(shown) // columns) * height + _GAP), "white")
    canvas = ImageDraw.Draw(sheet)
    for position, suggestion in enumerate(shown):
        left, top = _GAP + position % columns * width, _GAP + position // columns * height
        image = load_rgb(suggestion.path)
        fitted = ImageOps.contain(image, _CELL)
        found = suggestion.detections.select(prelabels(suggestion.detections, thresholds))
        seen = boxes.scale(found.boxes_xyxy, (image.height, image.width), (fitted.height, fitted.width))
        sheet.paste(draw_detections(fitted, replace(found, boxes_xyxy=seen)), (left, top))
        lines = [f"{position + 1}. {suggestion.path.name}"[:_LETTERS_OF_LINE]]
        lines += textwrap.wrap(suggestion.reason, _LETTERS_OF_LINE, max_lines=_LINES - 1, placeholder=" …")
        for number, line in enumerate(lines):
            place = (left, top + _CELL[1] + 4 + number * _LINE)
            canvas.text(place, line, fill="black" if number == 0 else "#555555", font=font(_FONT, _LETTERS))
    return sheet


def _as_split(suggestions: Sequence[Suggestion], thresholds: Mapping[str, float], like: Split | None) -> Split:
    """Return suggested images with their pre-labels."""
    number_of = dict(zip(like.classes, like.category_ids, strict=True)) if like else {}
    for name in suggestions[0].detections.class_names:
        number_of.setdefault(name, max(number_of.values(), default=0) + 1)
    records = []
    for position, suggestion in enumerate(suggestions, start=1):
        record = unlabelled(suggestion.path)
        found = suggestion.detections.select(prelabels(suggestion.detections, thresholds))
        annotations = _annotations(found, record, number_of)
        records.append(replace(record, image_id=position, annotations=annotations))
    return Split("suggested", tuple(records), tuple(number_of), tuple(number_of.values()))


def _annotations(found: Detections, record: ImageRecord, number_of: Mapping[str, int]) -> tuple[Annotation, ...]:
    """Return boxes, clipped to the image; without those of which nothing is left."""
    height, width = record.size_hw
    limit = found.boxes_xyxy.new_tensor((width, height, width, height))
    boxes_xywh = boxes.edges_to_xywh(found.boxes_xyxy.clamp(min=0).minimum(limit)).tolist()
    return tuple(
        Annotation(number_of[found.class_names[label]], (x, y, w, h), w * h, False)
        for (x, y, w, h), label in zip(boxes_xywh, found.labels.tolist(), strict=True)
        if w > 0 and h > 0
    )
