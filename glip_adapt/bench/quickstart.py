"""The first run: a plan that needs neither weights nor data, and an image of what its methods find.

The plan is the whole protocol over thirteen synthetic sets. The image has a row per dataset: ground truth, zero-shot,
each adapted method.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from glip_adapt.bench.plan import ZERO_SHOT, BenchPlan, ProtocolConfig, RunKey
from glip_adapt.bench.records import RunRecord, read_records
from glip_adapt.core import boxes
from glip_adapt.core.structures import Detections
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.formats.coco import coco_ground_truth
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.engine.draw import Mark, draw_marks, match_marks, truth_marks
from glip_adapt.engine.evaluate import to_coco_results
from glip_adapt.engine.metrics.matching import match

NOTE = (
    "The thirteen datasets are synthetic pictograms and glip-nano is a trunk of 3 million parameters, pre-trained on "
    "such pictograms: this shows how the methods compare, not what GLIP does on photographs."
)
SHOTS = 5
# The first run should take minutes: a sixth to a half of the steps of the trunk's recipe, images of one size, and no
# validation, which would have few states to choose from.
SHORTER: dict[str, Any] = {
    "prompt": {"max_steps": 25},
    "linear_probe": {"max_steps": 40},
    "full": {"max_steps": 25, "short_sides": (160,)},
}

CELL = (390, 480)  # height and width of the place of an image, pixels; in a smaller one the labels hide the objects
LETTERS = 17  # height of the text on an image, pixels
HEADING = 42  # pixels above the images of a row
WANTED_OBJECTS = 3  # the first test image with so many is shown, or with the nearest number


def quickstart_plan(full: bool) -> BenchPlan:
    """Return zero-shot and 5 shots with one seed, or all shots with three."""
    return BenchPlan(
        trunks=("glip-nano",),
        datasets=("glyphs13",),
        methods=("prompt", "linear_probe", "full"),
        shots=(0, 1, 3, SHOTS, 10, "all") if full else (0, SHOTS),
        seeds=(3, 30, 300) if full else (3,),
        fit={} if full else SHORTER,
        protocol=ProtocolConfig() if full else ProtocolConfig(selection="last"),
    )


def draw_strip(out: Path, shots: int, title: str = "") -> Image.Image:
    """Return an image with one row per dataset: the truth, zero-shot, then each method at ``shots``.

    Of each run in the results folder ``out`` the best boxes are drawn, as many as there are objects, so that no
    threshold flatters a method: hits (✓, green), false alarms (✗, red, dotted), and misses (?, amber, dashed).

    Raises:
        FileNotFoundError: if the folder holds no finished run at these shots.
    """
    finished = [record for record in read_records(out) if record.status == "done" and record.key.shots in (0, shots)]
    by_dataset: dict[str, list[RunRecord]] = {}
    for record in sorted(finished, key=lambda record: (record.key.method != ZERO_SHOT, record.key.seed)):
        row = by_dataset.setdefault(record.key.dataset, [])
        if record.key.method not in [shown.key.method for shown in row]:  # of several seeds the first
            row.append(record)
    if not by_dataset:
        raise FileNotFoundError(f"{out} holds no finished run at 0 or {shots} shots; run the plan first.")
    height, width = CELL
    columns = 1 + max(len(row) for row in by_dataset.values())
    strip = Image.new("RGB", (columns * width, 40 + len(by_dataset) * (height + HEADING)), "white")
    ImageDraw.Draw(strip).text((6, 7), title, "black", ImageFont.load_default(24))
    for position, (dataset, records) in enumerate(by_dataset.items()):
        split = load_dataset(dataset).test
        shown = min(split.records, key=lambda record: abs(len(record.target) - WANTED_OBJECTS))
        top = 40 + position * (height + HEADING)
        truth = coco_ground_truth(replace(split, records=(shown,)))
        cells = [(f"{split.name}: truth", truth_marks(match((), truth).images[0], split.classes))]
        for record in records:
            found = to_coco_results(_best(out, record.key, shown, split), shown.image_id, split.category_ids)
            assert record.metrics is not None
            name = "zero-shot" if record.key.method == ZERO_SHOT else f"{record.key.method}, {shots} shots"
            marks = match_marks(match(found, truth).images[0], split.classes)
            cells.append((f"{name}: AP {100 * (record.metrics.ap or 0):.0f}", marks))
        for column, (heading, marks) in enumerate(cells):
            ImageDraw.Draw(strip).text((column * width + 6, top + 10), heading, "black", ImageFont.load_default(20))
            strip.paste(_draw_cell(shown, marks), (column * width, top + HEADING))
    return strip


def _best(out: Path, key: RunKey, record: ImageRecord, split: Split) -> Detections:
    """Return as many of a run's boxes on an image as it has objects, best first."""
    path = out / key.name / "predictions.json"
    try:
        stored: Sequence[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        mine = [entry for entry in stored if entry["image_id"] == record.image_id]
        mine = sorted(mine, key=lambda entry: -entry["score"])[: len(record.target)]
        return Detections(
            boxes.xywh_to_edges(torch.tensor([entry["bbox"] for entry in mine], dtype=torch.float32).reshape(-1, 4)),
            torch.tensor([entry["score"] for entry in mine]),
            torch.tensor([split.category_ids.index(entry["category_id"]) for entry in mine], dtype=torch.int64),
        )
    except (ValueError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: no predictions ({error}). Remove the folder to run it again.") from error


def _draw_cell(record: ImageRecord, marks: Sequence[Mark]) -> Image.Image:
    """Return an image with boxes, in the size of a cell."""
    image = record.load()
    fitted = ImageOps.contain(image, (CELL[1] - 6, CELL[0]))
    return draw_marks(fitted, marks, letters=LETTERS, scale=fitted.width / image.width)
