"""The K-shot subset for a seed: the official file where it exists, else the public sampler, number for number.

GLIP, arXiv 2112.03857, section E.3; class COCODataset in maskrcnn_benchmark/data/datasets/coco.py of the public code,
the one that honours the seed. K-shot means at least K pictures per class; a picture brings all its boxes. One
difference: classes are counted by id, where the public list of counters breaks on ids with gaps and on id 0.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

from glip_adapt.data.formats.coco import Split, load_split

logger = logging.getLogger(__name__)

# Last part of a split's name → role in the names of the official files.
_ROLES = {"train": "train", "val": "val", "valid": "val", "minival": "minival"}


def few_shot_split(split: Split, shots: int, seed: int) -> Split:
    """Return the official ``shots``-shot subset of ``split`` for ``seed`` where it exists, else a sampled one.

    Official files are named ``fewshot_{train,val,minival}_shot{K}_seed{S}.json`` and lie beside the annotation file.
    ``source`` of the result tells which it was.

    Args:
        split: a full split.
        shots: pictures per class, at least 1.
        seed: of the draw; the official files have 3, 30 and 300.

    Raises:
        ValueError: if ``shots`` is below 1, or no picture has a box.
    """
    _check_shots(shots)
    official = _official_file(split, shots, seed)
    if official is None:
        return sample_few_shot(split, shots, seed)
    logger.info("%s: %d-shot seed %d is the official file %s", split.name, shots, seed, official)
    categories = dict(zip(split.category_ids, split.classes, strict=True))
    image_dir = split.image_dir or official.parent
    subset = load_split(official, image_dir, _name(split, shots, seed), categories=categories).with_boxes()
    return replace(
        subset, source=f"official {official.name}", aliases=split.aliases, annotation_ids=split.annotation_ids
    )


def sample_few_shot(split: Split, shots: int, seed: int) -> Split:
    """Return the ``shots``-shot subset that the public sampler picks, in the order of picking.

    Pictures without a valid box are dropped, the rest sorted by id and, unless ``seed`` is 0, shuffled. A picture is
    taken when one of its classes still lacks pictures. A split too small for ``shots`` gives all it can.

    Raises:
        ValueError: if ``shots`` is below 1, or no picture has a box.
    """
    _check_shots(shots)
    records = sorted(split.with_boxes().records, key=lambda record: record.image_id)
    if not records:
        raise ValueError(f"No picture of {split.name} has a box to learn from. Label some, or use another split.")
    if seed != 0:
        random.Random(seed).shuffle(records)
    missing = Counter(dict.fromkeys(split.category_ids, shots))
    picked = []
    for record in records:
        present = {annotation.category_id for annotation in split.annotations(record)}
        if any(missing[category_id] > 0 for category_id in present):
            picked.append(record)
            missing.subtract(present)
    logger.info("%s: %d-shot seed %d sampled, %d pictures", split.name, shots, seed, len(picked))
    for category_id, name in zip(split.category_ids, split.classes, strict=True):
        if missing[category_id] > 0:
            logger.warning("%s has only %d of %d pictures of %r", split.name, shots - missing[category_id], shots, name)
    return replace(split, name=_name(split, shots, seed), records=tuple(picked), source="sampled")


def _check_shots(shots: int) -> None:
    if shots < 1:
        raise ValueError(f"Expected at least 1 shot, got {shots}. Zero-shot needs no training split.")


def _name(split: Split, shots: int, seed: int) -> str:
    return f"{split.name}-{shots}-shot-seed-{seed}"


def _official_file(split: Split, shots: int, seed: int) -> Path | None:
    """Return the prepared file for this split, if it has one; the name of a subset fits none."""
    role = _ROLES.get(split.name.rpartition("/")[2])
    path = split.annotation_file.parent / f"fewshot_{role}_shot{shots}_seed{seed}.json"
    return path if role is not None and path.is_file() else None
