"""LVIS AP of boxes, fixed and standard, as the public evaluator computes them (evaluation/lvis/lvis_eval.py).

An image is judged on the classes that it shows, and on those of which it is known that it does not show them
(``neg_category_ids``). In classes that are not labelled exhaustively in an image (``not_exhaustive_category_ids``),
a prediction that hits nothing is no false alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from glip_adapt.engine.metrics.average_precision import AREAS, IOUS, Precision, accumulate, match, mean
from glip_adapt.engine.metrics.columns import Found, Places, Truth
from glip_adapt.engine.metrics.names import distinct_names
from glip_adapt.engine.metrics.protocol import Predictions, Scores

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
"""How many images of LVIS train show a class: up to 10, up to 100, more."""
PER_CLASS = 10_000
"""Predictions of a class that fixed AP looks at."""
PER_IMAGE = 300
"""Predictions in an image that standard AP looks at."""


def fixed_ap(predictions: Predictions, truth: Mapping[str, Any], per_class: int = PER_CLASS) -> Scores:
    """Return AP of the best predictions of each class over all images, with no limit per image.

    Args:
        predictions: in COCO result form; of equal scores the first comes first.
        truth: LVIS document.
        per_class: number of predictions.

    Returns:
        ``ap`` (mean over IoU 0.50:0.95), ``ap50``, ``ap75``; of rare, common and frequent classes; of boxes below 32²,
        of 32² to 96², and above 96² pixels; average recall ``ar`` likewise. Per class, AP.

    Raises:
        ValueError: if the truth lacks what LVIS adds to COCO, or does not have the image or class of a prediction.
    """
    places = _places(truth)
    found = Found.read(predictions, places)
    return _score(found.at(found.best(found.classes, per_class)), truth, places)


def standard_ap(predictions: Predictions, truth: Mapping[str, Any], per_image: int = PER_IMAGE) -> Scores:
    """Return AP of the best predictions in each image; arguments, values and errors as ``fixed_ap``."""
    places = _places(truth)
    found = Found.read(predictions, places)
    return _score(found.at(found.best(found.images, per_image)), truth, places)


def check_federated(truth: Mapping[str, Any]) -> None:
    """Raise ValueError unless a document has what LVIS adds to COCO."""
    for entry in truth["categories"]:
        if entry.get("frequency") not in tuple(FREQUENCIES):
            raise ValueError(
                f"Expected a `frequency` of each class, one of {', '.join(FREQUENCIES)}; class {entry.get('name')!r} "
                f"has {entry.get('frequency')!r}. Score against an annotation file of LVIS v1; a COCO file by `coco`."
            )
    for entry in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if not isinstance(entry.get(key), list):
                raise ValueError(
                    f"Expected a list `{key}` of each image; image {entry['id']!r} has {entry.get(key)!r}. Score "
                    "against an annotation file of LVIS v1; a COCO file by `coco`."
                )


def _places(truth: Mapping[str, Any]) -> Places:
    """Return the positions of images and classes, if the truth is an LVIS document."""
    check_federated(truth)
    return Places.of(truth)


def _score(found: Found, truth: Mapping[str, Any], places: Places) -> Scores:
    boxes = Truth.read(truth["annotations"], places, ignored="ignore", has_crowds=False)
    absent, open_ended = (places.cells_of(truth, k) for k in ("neg_category_ids", "not_exhaustive_category_ids"))
    judged = np.concatenate([places.cells(boxes.images, boxes.classes), absent])
    found = found.at(np.isin(places.cells(found.images, found.classes), judged))
    lenient = np.isin(places.cells(found.images, found.classes), open_ended)
    curves = accumulate(match(found, boxes, places, lenient=lenient))
    names = distinct_names(truth["categories"])
    per_class = {name: mean(curves.precision[:, :, places.classes[key], 0]) for key, name in names.items()}
    return Scores(values=_values(curves, truth, places), per_class=per_class)


def _values(curves: Precision, truth: Mapping[str, Any], places: Places) -> dict[str, float | None]:
    every = curves.precision[..., 0]
    values = {"ap": mean(every), "ap50": mean(every[IOUS == 0.5]), "ap75": mean(every[IOUS == 0.75])}
    frequency = {places.classes[entry["id"]]: entry["frequency"] for entry in truth["categories"]}
    for letter, name in FREQUENCIES.items():
        values[f"ap_{name}"] = mean(every[:, :, [k for k, of_class in sorted(frequency.items()) if of_class == letter]])
    for kind, numbers in (("ap", curves.precision), ("ar", curves.recall)):
        for position, area in enumerate(AREAS):
            values[kind if area == "all" else f"{kind}_{area}"] = mean(numbers[..., position])
    return values
