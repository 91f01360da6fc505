"""COCO AP of masks (``segm``), equal to that of pycocotools for predictions that state no box."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from glip_adapt.engine.metrics.average_precision import match
from glip_adapt.engine.metrics.coco import NAMES, PER_CELL, summarise
from glip_adapt.engine.metrics.columns import Found, Places, Truth
from glip_adapt.engine.metrics.protocol import Predictions, Scores

if TYPE_CHECKING:
    from glip_adapt.core.masks import Rle

MASK_NAMES = tuple(f"mask_{name}" for name in NAMES)
"""As ``NAMES`` of boxes; small, medium and large are masks by the area that the truth states."""

_NO_BOX = (0.0, 0.0, 0.0, 0.0)


def score(predictions: Predictions, truth: Mapping[str, Any]) -> Scores:
    """Return the values of ``MASK_NAMES``, and AP of masks per class.

    Args:
        predictions: in COCO result form, each with a ``segmentation`` as run lengths.
        truth: COCO document, each annotation with a ``segmentation``, each image with ``height`` and ``width``.

    Raises:
        ValueError: if a prediction or an annotation has no mask of the size of its image, or a prediction names an
            image or category that the truth does not have.
    """
    places = Places.of(truth)
    predictions = [{"bbox": _NO_BOX} | dict(entry) for entry in predictions]  # results of masks alone have none
    found = Found.read(predictions, places).with_masks(_rles(predictions, truth, "prediction"))
    found = found.at(found.best(places.cells(found.images, found.classes), PER_CELL))
    boxes = Truth.read(truth["annotations"], places, ignored="iscrowd", has_crowds=True)
    boxes = boxes.with_masks(_rles(truth["annotations"], truth, "annotation"))
    scores = summarise(match(found, boxes, places), truth, places)
    values = dict(zip(MASK_NAMES, scores.values.values(), strict=True))
    return Scores(values=values, per_class=scores.per_class)


def _rles(entries: Iterable[Mapping[str, Any]], truth: Mapping[str, Any], what: str) -> list[Rle]:
    from glip_adapt.core.masks import read_rle  # when there is something to score: it imports pycocotools

    sizes_hw = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    rles = []
    for index, entry in enumerate(entries):
        height, width = sizes_hw[entry["image_id"]]
        if height is None or width is None:
            raise ValueError(
                f"Image {entry['image_id']!r} states no height and width, which AP of masks needs. Add them, or score "
                "boxes alone."
            )
        rle = read_rle(entry.get("segmentation"), (height, width))
        if rle is None:
            raise ValueError(
                f"Expected a `segmentation` of each {what}, polygons or run lengths for {height} × {width} pixels; "
                f"{what} {index}, on image {entry['image_id']!r}, has {str(entry.get('segmentation'))[:60]}. Score "
                "boxes alone, or add its mask."
            )
        rles.append(rle)
    return rles
