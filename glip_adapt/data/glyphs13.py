"""glyphs13: thirteen synthetic detection sets of named pictograms, rendered from the fonts of matplotlib.

They replace ODinW-13 on a machine without network and data, and are called synthetic in every table and figure.
glyphs13.toml holds their facts.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from glip_adapt.core.config import override, unknown_name
from glip_adapt.core.files import scratch_folder
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.formats.coco import coco_ground_truth
from glip_adapt.data.glyphs import glyph_facts, seen_glyphs, unseen_glyphs
from glip_adapt.data.scenes import TRAINING_STYLE, Scene, Style, render_scene
from glip_adapt.data.split import ImageRecord, Split

GLYPHS_VERSION = 1  # raise it when any image changes: sets rendered before are then not used
_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class GlyphSet:
    """One synthetic dataset.

    Attributes:
        name: of the dataset.
        classes: names of label 0..K-1.
        style: look of its images.
        objects: least and most objects of the classes on an image.
        distractors: least and most unlabelled glyphs on an image, seen in pre-training and not of the classes.
        images: number of images in train, val and test.
        size_hw: of an image, in pixels.
    """

    name: str
    classes: tuple[str, ...]
    style: Style = TRAINING_STYLE
    objects: tuple[int, int] = (3, 8)
    distractors: tuple[int, int] = (0, 0)
    images: tuple[int, int, int] = (80, 40, 150)
    size_hw: SizeHW = (160, 160)


@cache
def glyph_sets() -> tuple[GlyphSet, ...]:
    """Return the facts of the thirteen sets; their style is that of pre-training, with the changes of glyphs13.toml."""
    facts = glyph_facts()
    shared = GlyphSet(name="", classes=(), style=override(TRAINING_STYLE, facts["style"], "style"))
    return tuple(override(shared, entry, entry["name"]) for entry in facts["set"])


def rendered_datasets() -> dict[str, GlyphSet]:
    """Return the synthetic sets by dataset name, such as ``glyphs13/Dice``."""
    return {f"glyphs13/{spec.name}": spec for spec in glyph_sets()}


def find_glyph_set(name: str) -> GlyphSet | None:
    """Return the synthetic set with this dataset name, or None for the name of another dataset.

    Raises:
        UnknownNameError: if the name starts with ``glyphs13`` and there is no such set.
    """
    found = rendered_datasets().get(name)
    if found is None and name.startswith("glyphs13"):
        raise unknown_name("synthetic dataset", name, rendered_datasets())
    return found


def write_glyph_set(spec: GlyphSet, folder: Path) -> None:
    """Write a set in the layout of an ODinW folder: ``train``, ``valid`` and ``test``, with PNG and COCO JSON.

    A folder that exists is left alone: it gets its name only when all files are written, so it is complete.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        for split in _SPLITS:
            _write_split(spec, split, scratch / folder.name / split)
        try:
            os.replace(scratch / folder.name, folder)
        except OSError:
            if not folder.is_dir():  # else another process has just finished the same
                raise


def _write_split(spec: GlyphSet, split: str, folder: Path) -> None:
    import torch

    from glip_adapt.core.structures import Target

    folder.mkdir(parents=True)
    records = []
    for image_id, (scene, labelled) in enumerate(scenes(spec, split), start=1):
        path = folder / f"{image_id:03d}.png"
        scene.image.save(path, compress_level=1)
        labels = torch.tensor([spec.classes.index(scene.names[position]) for position in labelled], dtype=torch.int64)
        boxes_xyxy = torch.from_numpy(scene.boxes_xyxy[labelled])
        records.append(ImageRecord(image_id, path, spec.size_hw, Target(boxes_xyxy, labels)))
    file, ids = folder / "annotations.json", tuple(range(1, len(spec.classes) + 1))
    document = coco_ground_truth(Split(spec.name, tuple(records), spec.classes, ids, file, image_dir=folder))
    file.write_text(json.dumps(document), encoding="utf-8")


def scenes(spec: GlyphSet, split: str) -> Iterator[tuple[Scene, list[int]]]:
    """Yield the scenes of a split (train, valid or test), each with the positions of its labelled objects."""
    by_name = {glyph.name: glyph for glyph in (*seen_glyphs(), *unseen_glyphs())}
    others = [glyph for glyph in seen_glyphs() if glyph.name not in spec.classes]
    generator = np.random.default_rng((zlib.crc32(spec.name.encode()), _SPLITS.index(split)))
    deck: list[str] = []  # classes come in shuffled rounds: none is rare
    for _ in range(spec.images[_SPLITS.index(split)]):
        count = generator.integers(*spec.objects, endpoint=True)
        while len(deck) < count:
            deck.extend(str(name) for name in generator.permutation(spec.classes))
        glyphs = [by_name[deck.pop(0)] for _ in range(count)]
        unlabelled = generator.integers(*spec.distractors, endpoint=True)
        glyphs += [others[position] for position in generator.integers(len(others), size=unlabelled)]
        scene = render_scene(glyphs, None, spec.style, generator, spec.size_hw)
        yield scene, [position for position, name in enumerate(scene.names) if name in spec.classes]
