"""From boxes to masks: detections of any detector, and a segmenter that cuts their objects out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import overload

from PIL import Image

from glip_adapt.core.structures import Detections
from glip_adapt.engine.detector import AnyImage, open_image
from glip_adapt.trunks.segmenter import BOXES_AT_ONCE, Segmenter

_OUTSIDE_PX = 1.0  # of an edge beyond the image, which rounding explains


@overload
def segment(images: AnyImage, found: Detections, segmenter: Segmenter, *, boxes_at_once: int = ...) -> Detections: ...


@overload
def segment(
    images: Sequence[AnyImage], found: Sequence[Detections], segmenter: Segmenter, *, boxes_at_once: int = ...
) -> list[Detections]: ...


def segment(
    images: AnyImage | Sequence[AnyImage],
    found: Detections | Sequence[Detections],
    segmenter: Segmenter,
    *,
    boxes_at_once: int = BOXES_AT_ONCE,
) -> Detections | list[Detections]:
    """Return detections with a mask each: ``segment("a.jpg", model.predict("a.jpg", threshold=0.3), segmenter)``.

    The image is encoded once for all of its boxes. Boxes, scores and labels stay. Detections without a box come back
    as they are, and the segmenter does not run.

    Args:
        images: one image or several, as for ``model.predict``.
        found: the detections of each, in pixels of the image.
        segmenter: from ``load_segmenter``.
        boxes_at_once: boxes that are decoded together, at least 1; fewer need less memory.

    Raises:
        FileNotFoundError: if an image is missing.
        ValueError: if there are not as many detections as images, boxes lie outside of their image, or a file cannot be
            decoded.
    """
    if boxes_at_once < 1:
        raise ValueError(f"Expected at least one box at a time, got {boxes_at_once}.")
    if isinstance(images, AnyImage) and isinstance(found, Detections):
        return _segment(open_image(images), found, segmenter, boxes_at_once)
    if isinstance(images, AnyImage) or isinstance(found, Detections) or len(images) != len(found):
        count = {True: "one image", False: f"a list of {0 if isinstance(images, AnyImage) else len(images)} images"}
        have = "one" if isinstance(found, Detections) else f"a list of {len(found)}"
        raise ValueError(
            f"Expected detections for {count[isinstance(images, AnyImage)]}, got {have}. Pass what `model.predict` "
            "returns for the same images."
        )
    pairs = zip(images, found, strict=True)
    return [_segment(open_image(image), of_image, segmenter, boxes_at_once) for image, of_image in pairs]


def _segment(image: Image.Image, found: Detections, segmenter: Segmenter, boxes_at_once: int) -> Detections:
    if not len(found):
        return replace(found, masks=())
    limit = found.boxes_xyxy.new_tensor((image.width, image.height)) + _OUTSIDE_PX
    if not bool((found.boxes_xyxy >= -_OUTSIDE_PX).all() and (found.boxes_xyxy[:, 2:] <= limit).all()):  # or NaN
        right, bottom = found.boxes_xyxy[:, 2:].amax(dim=0).tolist()
        raise ValueError(
            f"Expected boxes in an image of {image.width} × {image.height} pixels, got some up to ({right:.0f}, "
            f"{bottom:.0f}). The detections are of another image, or of another size of it; detect in this one."
        )
    return replace(found, masks=tuple(segmenter.masks(image, found.boxes_xyxy, boxes_at_once)))
