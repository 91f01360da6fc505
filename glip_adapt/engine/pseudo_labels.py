"""Pseudo-labels: what a detector finds, taken as labels of images that nobody labelled.

GLIP, arXiv 2112.03857, section 3.3: a teacher finds the phrases of captions, and a student learns from what it found.

A detection becomes a label by these rules:

- its score reaches the threshold of its class;
- of several classes on one place, IoU above 0.7, the best stays; phrases of a sentence may share a place, such as
  "a man" and "the man with the hat";
- clipped to the image, both of its sides have at least 2 pixels.

Scores are kept: ``FitConfig.weights`` makes training trust an unsure label less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_iou, nms

from glip_adapt.core import boxes
from glip_adapt.core.captions import Caption
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.captioned import CaptionedImage
from glip_adapt.data.formats.coco import build_target
from glip_adapt.data.images import read_header
from glip_adapt.data.split import Annotation, ImageRecord, Split
from glip_adapt.engine.adapted import AdaptedModel, AdaptedTrunk
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.detector import Detector
from glip_adapt.engine.evaluate import predict_split, to_coco_results

THRESHOLD = 0.5
"""Lowest score of a label unless something else is asked for: that of GLIP, section 3.3."""
RULES = "the best class of a place (IoU above 0.7), at least 2 pixels a side"
SHARED_RULES = "at least 2 pixels a side; phrases may share a place"
"""What else makes a label, for people: of classes, and of phrases."""
SAME_PLACE = 0.7
"""IoU; boxes of different objects seldom overlap as much."""
_LEAST_SIDE = 2.0  # pixels
_MOST_SURE = 0.9999  # score of a label: 1 is that of a box drawn by hand
_AGREES = 0.5  # IoU of a pseudo-label with a labelled box of the same image that makes it needless

Result = Mapping[str, Any]
"""A detection in COCO result form: ``category_id``, ``bbox`` and ``score``."""


def unlabelled(path: Path) -> ImageRecord:
    """Return an image without boxes; its id is its path.

    Raises:
        FileNotFoundError, ValueError: if it is no image that can be read.
    """
    return with_labels(ImageRecord(str(path), path, read_header(path).size_hw, partial(build_target, (), (), (1, 1))))


def with_labels(
    record: ImageRecord, annotations: Sequence[Annotation] = (), label_of: Mapping[int, int] | Sequence[int] = ()
) -> ImageRecord:
    """Return an image with other boxes; ``label_of`` tells the label of each category id."""
    stated = tuple(annotations)
    return replace(record, learned=partial(build_target, stated, label_of, record.size_hw), annotations=stated)


def labels_among(
    found: Sequence[Result], thresholds: Mapping[int, float], size_hw: SizeHW, *, shared: bool = False
) -> tuple[Annotation, ...]:
    """Return the labels among the detections in one image, the best first.

    Args:
        found: the detections.
        thresholds: category id → lowest score of a label.
        size_hw: (height, width) of the image in pixels.
        shared: whether several categories may share a place.
    """
    height, width = size_hw
    sure = sorted((entry for entry in found if entry["score"] >= thresholds[entry["category_id"]]), key=_by_score)
    edges = boxes.xywh_to_edges(torch.tensor([entry["bbox"] for entry in sure], dtype=torch.float32).reshape(-1, 4))
    edges = edges.clamp(min=0).minimum(edges.new_tensor((width, height, width, height)))
    scores = torch.tensor([entry["score"] for entry in sure], dtype=torch.float32)
    kept = range(len(sure)) if shared else sorted(nms(edges, scores, SAME_PLACE).tolist())
    return tuple(
        Annotation(sure[i]["category_id"], (x, y, w, h), w * h, False, score=min(sure[i]["score"], _MOST_SURE))
        for i in kept
        for x, y, w, h in boxes.edges_to_xywh(edges[i : i + 1]).tolist()
        if min(w, h) >= _LEAST_SIDE
    )


def label_images(
    model: AdaptedModel,
    records: Sequence[ImageRecord],
    like: Split,
    thresholds: Mapping[str, float],
    *,
    view: ViewConfig | None = None,
    cache: FeatureCache | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> Split:
    """Return images with what a model finds in them; those without a label are left out.

    Args:
        model: for the classes of ``like``.
        records: the images, each with an id of its own; boxes that they have are not looked at.
        like: split whose classes and category ids the labels have.
        thresholds: name of a class in ``like`` → lowest score of a label.
        view: resizing and precision; by default those of the trunk.
        cache: keeps the features of the frozen stages.
        on_image: as for ``predict_split``.

    Raises:
        ValueError: as ``predict_split``.
    """
    asked = replace(like, name="unlabelled", records=tuple(records), annotation_file=None, prepared=None)
    found: dict[int | str, list[Result]] = {record.image_id: [] for record in records}
    for entry in predict_split(model, asked, view, cache=cache, on_image=on_image):
        found[entry["image_id"]].append(entry)
    by_id = {key: thresholds[name] for key, name in zip(like.category_ids, like.classes, strict=True)}
    label_of = {key: label for label, key in enumerate(like.category_ids)}
    labelled = [(record, labels_among(found[record.image_id], by_id, record.size_hw)) for record in records]
    return replace(asked, records=tuple(with_labels(record, own, label_of) for record, own in labelled if own))


def find_phrases(
    model: AdaptedTrunk | AdaptedModel, record: ImageRecord, sentence: Caption, **options: Any
) -> list[Result]:
    """Return what a model finds of the phrases of a sentence, as results whose category is the place of the phrase.

    Args:
        model: of a method that reads sentences.
        record: the image.
        sentence: with the spans of its phrases.
        options: of ``Detector.predict``.

    Raises:
        ValueError: as ``AdaptedTrunk.for_sentence``.
        FileNotFoundError, ValueError: as ``Detector.predict``.
    """
    return found_in(model.for_sentence(sentence), record, tuple(range(len(sentence.spans))), **options)


def found_in(model: Detector, record: ImageRecord, category_ids: tuple[int, ...], **options: Any) -> list[Result]:
    """Return what a model finds in an image, with the category id of each label; options are those of ``predict``."""
    return list(to_coco_results(model.predict(record.path, **options), record.image_id, category_ids))


def captioned_image(
    record: ImageRecord, sentence: Caption, found: Sequence[Result], threshold: float
) -> CaptionedImage:
    """Return an image with a sentence, and the labels of its phrases among what ``find_phrases`` found."""
    phrases = range(len(sentence.spans))
    labels = labels_among(found, dict.fromkeys(phrases, threshold), record.size_hw, shared=True)
    return CaptionedImage(record=with_labels(record, labels, phrases), sentences=(sentence,))


def together(labelled: Split, pseudo: Split) -> Split:
    """Return labelled images and pseudo-labelled ones as one split, to learn from.

    An image of both keeps its labels, and gets the pseudo-labels that agree with none of them, IoU below 0.5: objects
    that nobody labelled. Other images follow under new ids.
    """
    label_of = {key: label for label, key in enumerate(labelled.category_ids)}
    own = {record.path: labelled.annotations_of(record) for record in labelled.records}
    more = {record.path: record for record in pseudo.records}
    records = []
    for record in labelled.records:
        added = _unlike(more[record.path].annotations, own[record.path]) if record.path in more else ()
        records.append(with_labels(record, (*own[record.path], *added), label_of) if added else record)
    first = 1 + max((record.image_id for record in records if isinstance(record.image_id, int)), default=0)
    others = (record for record in pseudo.records if record.path not in own)
    records += [replace(record, image_id=number) for number, record in enumerate(others, start=first)]
    return replace(labelled, records=tuple(records), prepared=None)


def _unlike(pseudo: Sequence[Annotation], labelled: Sequence[Annotation]) -> tuple[Annotation, ...]:
    """Return the boxes that overlap none of the labelled ones much."""
    mine, theirs = (
        boxes.xywh_to_edges(torch.tensor([a.bbox_xywh for a in part], dtype=torch.float32).reshape(-1, 4))
        for part in (pseudo, labelled)
    )
    agrees = (box_iou(mine, theirs) >= _AGREES).any(dim=1).tolist()
    return tuple(one for one, is_known in zip(pseudo, agrees, strict=True) if not is_known)


def _by_score(entry: Result) -> float:
    return -float(entry["score"])
