"""Recall of the phrases of sentences, as the public evaluator of Flickr30k Entities (evaluation/flickr/flickr_eval.py).

A phrase is found at k if one of its first k boxes overlaps a true box of it by an IoU of at least 0.5. Phrases without
a true box do not count.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glip_adapt.data.flickr import Phrase, Sentences

logger = logging.getLogger(__name__)

IOU = 0.5
"""Least overlap of a hit."""
TOP = {"r1": 1, "r5": 5, "r10": 10, "upper_bound": None}
"""Number of boxes that count; None for all."""
EVERY_TYPE = "all"

Boxes = Literal["any", "merged"]
"""What is to be found of a phrase with several boxes: any one of them, or the one box around all."""
Grounded = Sequence[Mapping[str, Any]]
"""Boxes of phrases: ``{"image_id", "sentence_id", "boxes"}``.

Sentences of an image are numbered from 0, also those without boxes. ``boxes`` holds, for each phrase with a true box
and in the order of the sentence, a list of [left, top, right, bottom], best first.
"""


def recall(predictions: Grounded, sentences: Sentences, boxes: Boxes = "any") -> dict[str, dict[str, float | None]]:
    """Return recall in [0, 1] at 1, 5, 10 and all boxes, for all phrases and for each type of phrase.

    Of several predictions for a sentence the first counts. Those for a sentence without phrases to find do not. A
    warning says so.

    Args:
        predictions: for each sentence with a phrase to find.
        sentences: truth, from ``read_sentences``.
        boxes: what is to be found of a phrase with several true boxes.

    Returns:
        Type of phrase, first ``"all"``, → name in ``TOP`` → recall; None without a phrase.

    Raises:
        ValueError: if a sentence is missing, unknown, or has another number of phrases.
    """
    hits: dict[str, list[list[bool]]] = {EVERY_TYPE: []}
    for phrase, found in _pairs(predictions, sentences):
        truth = phrase.boxes_xyxy if boxes == "any" else _around(phrase.boxes_xyxy)
        reached = _hits(np.array(found, dtype=np.float64).reshape(-1, 4), truth)
        for kind in (EVERY_TYPE, *phrase.types):
            hits.setdefault(kind, []).append(reached)
    shares = {kind: np.mean(rows, axis=0).tolist() if rows else [None] * len(TOP) for kind, rows in hits.items()}
    return {kind: dict(zip(TOP, values, strict=True)) for kind, values in shares.items()}


def recall_rows(by_boxes: Mapping[Boxes, Mapping[str, Mapping[str, float | None]]]) -> list[dict[str, Any]]:
    """Return recall as one row for each way to count boxes and type of phrase."""
    return [
        {"boxes": boxes, "phrases": kind, **values}
        for boxes, by_type in by_boxes.items()
        for kind, values in by_type.items()
    ]


def _pairs(predictions: Grounded, sentences: Sentences) -> Iterator[tuple[Phrase, list[list[float]]]]:
    """Yield each phrase that counts, with the boxes predicted for it.

    Raises:
        ValueError: as ``recall``.
    """
    wanted = {
        (image_id, number): phrases
        for image_id, its_sentences in sentences.items()
        for number, sentence in enumerate(its_sentences)
        if (phrases := [phrase for phrase in sentence if len(phrase.boxes_xyxy)])
    }
    answered = set()
    for index, entry in enumerate(predictions):
        key = (str(entry["image_id"]), int(entry["sentence_id"]))
        place = f"sentence {key[1]} of image {key[0]}"
        if key in answered:
            logger.warning(f"Entry {index} is a second one for {place}; the first counts.")
        elif key in wanted:
            answered.add(key)
            phrases = wanted[key]
            if len(entry["boxes"]) != len(phrases):
                texts = ", ".join(repr(phrase.text) for phrase in phrases)
                raise ValueError(
                    f"Entry {index} has boxes for {len(entry['boxes'])} phrases, but {place} has {len(phrases)} with a "
                    f"true box: {texts}. Give one list of boxes for each."
                )
            yield from zip(phrases, entry["boxes"], strict=True)
        elif not 0 <= key[1] < len(sentences.get(key[0], ())):
            raise ValueError(f"Entry {index} is for {place}, which the truth does not have. Pass those of this split.")
        elif len(entry["boxes"]):
            logger.warning(f"Entry {index} is for {place}, which has no phrase with a true box; it does not count.")
    if missing := sorted(wanted.keys() - answered):
        named = ", ".join(f"sentence {number} of image {image_id}" for image_id, number in missing[:5])
        raise ValueError(
            f"Expected boxes for {len(wanted)} sentences; {len(missing)} have none, such as {named}. Give each an "
            "entry, with an empty list for a phrase of which nothing is found."
        )


def _hits(found_xyxy: NDArray[np.float64], truth_xyxy: NDArray[np.float64]) -> list[bool]:
    """Return for each number in ``TOP`` whether one of the first boxes overlaps a true box enough."""
    starts = np.maximum(found_xyxy[:, None, :2], truth_xyxy[:, :2])
    ends = np.minimum(found_xyxy[:, None, 2:], truth_xyxy[:, 2:])
    shared = np.maximum(ends - starts, 0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (found_xyxy, truth_xyxy)]
    union = areas[0][:, None] + areas[1] - shared
    overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union != 0).max(axis=1, initial=0)
    return [bool((overlap[:top] >= IOU).any()) for top in TOP.values()]


def _around(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the box around all boxes, (1, 4)."""
    return np.concatenate([boxes_xyxy[:, :2].min(axis=0), boxes_xyxy[:, 2:].max(axis=0)])[None]
