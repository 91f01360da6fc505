"""Folds of a few labelled images: which are held out, and what AP predictions on them have together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glip_adapt.core.timing import stage
from glip_adapt.data.folds import draw_folds
from glip_adapt.data.formats.coco import coco_ground_truth
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.engine.metrics import coco

Found = list[dict[str, Any]]
"""Predictions in COCO result form."""


@dataclass(frozen=True)
class Fold:
    """The images that are held out, those that are learned from, and the category ids that the latter show."""

    held: Split
    rest: Split
    learned: frozenset[int]


def split_up(train: Split, count: int, seed: int, val: Split | None = None) -> list[Fold]:
    """Return folds of labelled images; below four images, one per image. Other images, ``val``, are the only fold.

    Raises:
        ValueError: if ``count`` is below 2.
    """
    if val is not None:
        return [_fold(val, train)]
    if count < 2:
        raise ValueError(f"folds is {count}; expected at least 2, so that each is looked at after learning the others.")
    present = [_classes_of(train, record) for record in train.records]
    folds = []
    for positions in draw_folds(present, count if len(train) > 3 else len(train), seed):
        others = [position for position in range(len(train)) if position not in positions] or positions
        held, rest = (replace(train, records=tuple(train.records[i] for i in part)) for part in (positions, others))
        folds.append(_fold(held, rest))
    return folds


def _fold(held: Split, rest: Split) -> Fold:
    return Fold(held, rest, frozenset().union(*(_classes_of(rest, record) for record in rest.records)))


def _classes_of(split: Split, record: ImageRecord) -> set[int]:
    """Return the category ids that an image teaches; a crowd region teaches none."""
    return {annotation.category_id for annotation in split.annotations_of(record) if not annotation.iscrowd}


def pooled_ap(folds: Sequence[Fold], found: Sequence[Found]) -> float | None:
    """Return COCO AP over the held-out images of several folds together; None if no class can be scored."""
    records = tuple(record for fold in folds for record in fold.held.records)
    scored = {record.image_id: fold.learned for fold in folds for record in fold.held.records}
    truth = coco_ground_truth(replace(folds[0].held, records=records))
    truth["annotations"] = only_scored(truth["annotations"], scored)
    predictions = only_scored([entry for fold in found for entry in fold], scored)
    with stage("scoring"):
        return coco.ap(predictions, truth)


def only_scored(
    entries: Iterable[Mapping[str, Any]], scored: Mapping[int | str, frozenset[int]]
) -> list[Mapping[str, Any]]:
    """Return the boxes or predictions of classes that are scored on their image, see ``CrossValidation.scored``."""
    return [entry for entry in entries if entry["category_id"] in scored[entry["image_id"]]]
