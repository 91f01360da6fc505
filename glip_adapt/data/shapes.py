"""A small rendered dataset in COCO form, for a first run without downloads: synthetic, and called so."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

CLASSES = ("circle", "square", "triangle")
SPLIT_SIZES = {"train": 30, "valid": 10, "test": 10}  # pictures
WIDTH, HEIGHT = 160, 120  # pixels
COLOURS = ((214, 69, 65), (65, 131, 215), (38, 166, 91), (244, 179, 80), (142, 68, 173))


def write_shapes(folder: Path, seed: int = 0) -> Path:
    """Write a dataset of coloured circles, squares and triangles on grey, and return its folder.

    A folder that exists is taken as complete: it appears under its name only when all of it is written.

    Args:
        folder: where ``train``, ``valid`` and ``test`` go, each with pictures and annotations.
        seed: of everything drawn.
    """
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        for position, (split, count) in enumerate(SPLIT_SIZES.items()):
            _write_split(partial / split, count, random.Random(1000 * seed + position))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_split(folder: Path, count: int, generator: random.Random) -> None:
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        shade = generator.randint(150, 235)
        picture = Image.new("RGB", (WIDTH, HEIGHT), (shade, shade, shade))
        taken: list[tuple[int, int, int, int]] = []
        for _ in range(generator.randint(1, 3)):
            label = generator.randrange(len(CLASSES))
            box = _free_box(taken, generator)
            taken.append(box)
            _draw(ImageDraw.Draw(picture), CLASSES[label], box, generator.choice(COLOURS))
            x1, y1, x2, y2 = box
            bbox = [x1, y1, x2 - x1 + 1, y2 - y1 + 1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )
        name = f"{image_id:03d}.png"
        picture.save(folder / name)
        images.append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT})
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
    }
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")


def _free_box(taken: list[tuple[int, int, int, int]], generator: random.Random) -> tuple[int, int, int, int]:
    """Return a square box, inclusive corners, that keeps clear of the others unless 50 tries were in vain."""
    box = (0, 0, 0, 0)
    for _ in range(50):
        side = generator.randint(24, 56)
        x, y = generator.randint(0, WIDTH - side), generator.randint(0, HEIGHT - side)
        box = (x, y, x + side - 1, y + side - 1)
        if all(box[0] > t[2] or box[2] < t[0] or box[1] > t[3] or box[3] < t[1] for t in taken):
            break
    return box


def _draw(
    canvas: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> None:
    x1, y1, x2, y2 = box
    match shape:
        case "circle":
            canvas.ellipse(box, fill=colour)
        case "square":
            canvas.rectangle(box, fill=colour)
        case "triangle":
            canvas.polygon(((x1, y2), (x2, y2), (math.floor((x1 + x2) / 2), y1)), fill=colour)
