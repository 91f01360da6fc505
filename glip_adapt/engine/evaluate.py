"""Score detectors and predictions on a split."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glip_adapt.core import boxes
from glip_adapt.core.config import unknown_name
from glip_adapt.core.settings import ViewConfig, Views
from glip_adapt.core.structures import Detections
from glip_adapt.core.timing import stage
from glip_adapt.data.formats.coco import coco_ground_truth, ground_truth_with_masks
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.data.transforms import ShownView, View, views_of
from glip_adapt.engine.batches import in_batches
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.detector import Detector, detections, merged_detections
from glip_adapt.engine.features import Fetched, FrozenFeatures
from glip_adapt.engine.feeding import ahead
from glip_adapt.engine.metrics import METRICS, coco, masks
from glip_adapt.engine.metrics.lvis import check_federated
from glip_adapt.engine.metrics.protocol import Metric, Predictions, Scores
from glip_adapt.engine.ranks import current
from glip_adapt.engine.segment import segment
from glip_adapt.trunks.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True)
class Evaluation(Scores):
    """Values of a metric on one split, and the predictions that were scored.

    Attributes:
        values: name → value, fractions in [0, 1]: for COCO ``ap`` (mean over IoU 0.50:0.95, the primary one), ``ap50``,
            ``ap75``, ``ap_small``, ``ap_medium`` and ``ap_large``; None where no box of that kind exists. With a
            segmenter also ``mask_ap`` and the like, of masks.
        per_class: class name → AP over IoU 0.50:0.95.
        predictions: in COCO result form, with a segmenter each with its ``segmentation``.
    """

    predictions: tuple[dict[str, Any], ...]

    @property
    def ap(self) -> float | None:
        """COCO AP, mean over IoU 0.50:0.95."""
        return self.values.get("ap")


def evaluate(
    model: Detector,
    split: Split,
    view: ViewConfig | None = None,
    *,
    views: Views | None = None,
    cache: FeatureCache | None = None,
    on_image: Callable[[int, int], None] | None = None,
    metric: str = "coco",
    boxes_per_caption: int | None = None,
    segmenter: Segmenter | None = None,
) -> Evaluation:
    """Return the metrics of ``model`` on a split: ``evaluate(model, data.test).ap``.

    Args:
        model: from ``attach``, ``load_adapter`` or ``load_baked``, for the classes of the split.
        split: images with boxes to score on.
        view: resizing and precision; by default those of the trunk.
        views: sizes, mirror images and tiles that are looked at one after the other; by default one view.
        cache: keeps the features of the frozen stages for the next evaluation.
        on_image: called after each image with its position from 1 and the number of images.
        metric: ``"coco"``; ``"fixed_ap"`` or ``"lvis_ap"`` for an annotation file of LVIS.
        boxes_per_caption: boxes that are kept of an image for each caption, in one view; by default those of the
            trunk's family. LVIS is published with 300, see ``Dataset.boxes_per_caption``.
        segmenter: from ``load_segmenter``; cuts out each box, and AP of masks is computed too. The split is then one
            of a COCO file that has a ``segmentation`` of each object.

    Raises:
        ValueError: if the split is empty, its classes are not those of the model in the same order, the metric is
            unknown, or the annotation file lacks what it needs.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if metric != "coco":
        check_federated(coco_ground_truth(replace(split, records=split.records[:1])))  # before the work
    if segmenter is not None:
        masks.score([], ground_truth_with_masks(split))  # raises before the work if the truth has no masks
    options: dict[str, Any] = {"views": views, "cache": cache, "on_image": on_image, "segmenter": segmenter}
    found = predict_split(model, split, view, boxes_per_caption=boxes_per_caption, **options)
    scored = score(found, split, METRICS[metric])
    return scored if segmenter is None else _with_masks(scored, split)


def predict_split(
    model: Detector,
    split: Split,
    view: ViewConfig | None = None,
    *,
    views: Views | None = None,
    cache: FeatureCache | None = None,
    on_image: Callable[[int, int], None] | None = None,
    boxes_per_caption: int | None = None,
    segmenter: Segmenter | None = None,
) -> list[dict[str, Any]]:
    """Return the predictions of ``model`` on a split in COCO result form; arguments and errors as ``evaluate``.

    Several ranks divide the images, and each returns all predictions, in the same order.
    """
    check_scorable(model, split)
    view, position = view or model.view, itertools.count(1)
    features = FrozenFeatures(model, cache, view.max_long_side, view.precision)
    look = OneView(features, view, boxes_per_caption) if views is None else SeveralViews(features, view, views)
    model.train(False)
    predictions: list[list[dict[str, Any]]] = []  # by group
    ranks = current()
    with ranks.together():
        groups = ranks.share(look.groups(split.records))
        for together, fetched in ahead(lambda group: (group, look.fetch(group)), groups, model.device):
            predictions.append([])
            for record, detected in zip(together, look.detect(together, fetched), strict=True):
                if segmenter is not None:
                    detected = segment(record.load(), detected, segmenter)
                predictions[-1] += to_coco_results(detected, record.image_id, split.category_ids)
                if on_image:
                    on_image(min(next(position) * ranks.count, len(split)), len(split))
    return [entry for group in ranks.gather(predictions) for entry in group]


@dataclass(frozen=True)
class OneView:
    """Detect in images shown once; neighbours of one padded size go through the network together."""

    features: FrozenFeatures
    view: ViewConfig
    limit: int | None
    "boxes of an image from one caption"

    @property
    def _shown(self) -> View:
        return View(self.view.short_side, flip=False)

    def groups(self, records: Sequence[ImageRecord]) -> Iterator[list[ImageRecord]]:
        """Yield the images that are detected in together."""
        return in_batches((record, self.features.padded_shape(record, self._shown)) for record in records)

    def fetch(self, group: Sequence[ImageRecord]) -> list[Fetched]:
        """Do what needs no network."""
        return [self.features.fetch(group, self._shown)]

    def detect(self, group: Sequence[ImageRecord], fetched: Sequence[Fetched]) -> list[Detections]:
        """Return the detections of each image of a group."""
        (state,) = map(self.features.finish, fetched)
        sizes_hw = [record.header.size_hw for record in group]
        return detections(self.features.model, state, sizes_hw, self.view, self.limit)


@dataclass(frozen=True)
class SeveralViews:
    """Detect in images one by one, each in several views, which are cached one by one."""

    features: FrozenFeatures
    view: ViewConfig
    views: Views

    def _shown(self, record: ImageRecord) -> list[ShownView]:
        return views_of(record.header.size_hw, self.views, self.view.short_side)

    def groups(self, records: Sequence[ImageRecord]) -> Iterator[list[ImageRecord]]:
        """Yield each image by itself."""
        return ([record] for record in records)

    def fetch(self, group: Sequence[ImageRecord]) -> list[Fetched]:
        """Do what needs no network, for each view."""
        return [self.features.fetch(group, shown.view) for shown in self._shown(group[0])]

    def detect(self, group: Sequence[ImageRecord], fetched: Sequence[Fetched]) -> list[Detections]:
        """Return the merged detections of the image."""
        states = zip(self._shown(group[0]), map(self.features.finish, fetched), strict=True)
        size_hw, merging, precision = group[0].header.size_hw, self.views.merging, self.view.precision
        return [merged_detections(self.features.model, states, size_hw, merging, precision)]


def check_scorable(model: Detector, split: Split) -> None:
    """Raise ValueError if the split is empty, or its classes are not those of the model in the same order."""
    if not len(split):
        raise ValueError(f"{split.name} has no images to evaluate on. Name a split that has some.")
    if model.class_names not in (split.classes, split.aliases):
        raise ValueError(
            f"The model detects the {len(model.prompts)} classes {model.class_names}, but {split.name} has the "
            f"{len(split.classes)} classes {split.classes}. Attach with the classes of the dataset, in its order. "
            "Where a prompt words them by other names, state these as the aliases of the split."
        )


def to_coco_results(detections: Detections, image_id: int | str, category_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return detections in COCO result form; boxes are (x, y, width, height) in pixels, masks are run lengths."""
    columns = (boxes.edges_to_xywh(detections.boxes_xyxy), detections.scores, detections.labels)
    shapes = [{"segmentation": mask.to_rle()} for mask in detections.masks] or [{}] * len(detections)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, **shape, "score": score}
        for box, score, label, shape in zip(*(column.tolist() for column in columns), shapes, strict=True)
    ]


def score(predictions: Predictions, split: Split, metric: Metric = METRICS["coco"]) -> Evaluation:
    """Return a metric of predictions in COCO result form."""
    with stage("scoring"):
        scores = metric(predictions, coco_ground_truth(split))
        return Evaluation(**vars(scores), predictions=tuple(map(dict, predictions)))


def _with_masks(scored: Evaluation, split: Split) -> Evaluation:
    """Return an evaluation with AP of the masks of its predictions."""
    with stage("scoring"):
        values = masks.score(scored.predictions, ground_truth_with_masks(split)).values
    return replace(scored, values={**scored.values, **values})


def score_ap(predictions: Predictions, split: Split) -> float | None:
    """Return COCO AP alone, bit for bit that of ``score``, in less time; None without a box to find."""
    with stage("scoring"):
        return coco.ap(predictions, coco_ground_truth(split))
