"""Score detectors, and files of predictions, on a split."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glip_adapt.core import boxes
from glip_adapt.core.settings import ViewConfig, Views
from glip_adapt.core.structures import Detections
from glip_adapt.core.timing import stage
from glip_adapt.data.formats.coco import coco_ground_truth, load_ground_truth
from glip_adapt.data.split import AnnotationIds, ImageRecord, Split
from glip_adapt.data.transforms import ShownView, View, views_of
from glip_adapt.engine.batches import in_batches
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.detector import Detector, detections, merged_detections
from glip_adapt.engine.features import Fetched, FrozenFeatures
from glip_adapt.engine.feeding import ahead
from glip_adapt.engine.metrics import METRICS, coco
from glip_adapt.engine.metrics.protocol import Metric, Predictions, Scores
from glip_adapt.engine.ranks import current


@dataclass(frozen=True, kw_only=True)
class Evaluation(Scores):
    """Values of a metric on one split, and the predictions that were scored.

    Attributes:
        values: name → value, fractions in [0, 1]: for COCO ``ap`` (mean over IoU 0.50:0.95, the primary one), ``ap50``,
            ``ap75``, ``ap_small``, ``ap_medium`` and ``ap_large``; None where no box of that kind exists.
        per_class: class name → AP over IoU 0.50:0.95.
        predictions: in COCO result form.
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
) -> Evaluation:
    """Return the metrics of ``model`` on a split: ``evaluate(model, data.test).ap``.

    Args:
        model: from ``attach``, ``load_adapter`` or ``load_baked``, for the classes of the split.
        split: images with boxes to score on.
        view: resizing and precision; by default those of the trunk.
        views: sizes, mirror images and tiles that are looked at one after the other; by default one view.
        cache: keeps the features of the frozen stages for the next evaluation.
        on_image: called after each image with its position from 1 and the number of images.
        metric: one of ``METRICS``.

    Raises:
        ValueError: if the split is empty, or its classes are not those of the model in the same order.
    """
    return score(predict_split(model, split, view, views=views, cache=cache, on_image=on_image), split, METRICS[metric])


def predict_split(
    model: Detector,
    split: Split,
    view: ViewConfig | None = None,
    *,
    views: Views | None = None,
    cache: FeatureCache | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Return the predictions of ``model`` on a split in COCO result form; arguments and errors as ``evaluate``.

    Several ranks divide the images, and each returns all predictions, in the same order.
    """
    check_scorable(model, split)
    view, position = view or model.view, itertools.count(1)
    features = FrozenFeatures(model, cache, view.max_long_side, view.precision)
    look = OneView(features, view) if views is None else SeveralViews(features, view, views)
    model.train(False)
    predictions: list[list[dict[str, Any]]] = []  # by group
    ranks = current()
    with ranks.together():
        groups = ranks.share(look.groups(split.records))
        for together, fetched in ahead(lambda group: (group, look.fetch(group)), groups, model.device):
            predictions.append([])
            for record, detected in zip(together, look.detect(together, fetched), strict=True):
                predictions[-1] += to_coco_results(detected, record.image_id, split.category_ids)
                if on_image:
                    on_image(min(next(position) * ranks.count, len(split)), len(split))
    return [entry for group in ranks.gather(predictions) for entry in group]


@dataclass(frozen=True)
class OneView:
    """Detect in images shown once; neighbours of one padded size go through the network together."""

    features: FrozenFeatures
    view: ViewConfig

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
        return detections(self.features.model, state, [record.header.size_hw for record in group], self.view)


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
    """Return detections in COCO result form; boxes are (x, y, width, height) in pixels."""
    columns = (boxes.edges_to_xywh(detections.boxes_xyxy), detections.scores, detections.labels)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(*(column.tolist() for column in columns), strict=True)
    ]


def score(predictions: Predictions, split: Split, metric: Metric = METRICS["coco"]) -> Evaluation:
    """Return a metric of predictions in COCO result form."""
    return _score(predictions, coco_ground_truth(split), metric)


def score_ap(predictions: Predictions, split: Split) -> float | None:
    """Return COCO AP alone, bit for bit that of ``score``, in a fourth of its time; None without a box to find."""
    with stage("scoring"):
        return coco.ap(predictions, coco_ground_truth(split))


def score_files(predictions: Path, truth: Path, annotation_ids: AnnotationIds = "renumbered") -> Evaluation:
    """Return the COCO metrics of a file of predictions against any COCO file.

    Args:
        predictions: JSON list in COCO result form.
        truth: COCO JSON.
        annotation_ids: how boxes are numbered for scoring, as in ``Split``.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the predictions are not in COCO result form, or name an unknown image or category; or if the
            truth is ambiguous.
    """
    document = load_ground_truth(truth, annotation_ids)
    return _score(_read_predictions(predictions, document, truth), document)


def _score(predictions: Predictions, truth: Mapping[str, Any], metric: Metric = METRICS["coco"]) -> Evaluation:
    with stage("scoring"):
        return Evaluation(**vars(metric(predictions, truth)), predictions=tuple(map(dict, predictions)))


def _read_predictions(path: Path, document: Mapping[str, Any], truth: Path) -> list[dict[str, Any]]:
    """Return predictions in COCO result form; each must name an image and a category of the truth."""
    expected = "Expected a JSON list of {image_id, category_id, bbox: [x, y, width, height], score}"
    if not path.is_file():
        raise FileNotFoundError(f"No predictions at {path}. `glip-adapt eval --predictions FILE` writes them.")
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: malformed JSON ({error}). {expected}.") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds a {type(entries).__name__}. {expected}.")
    known = {
        "image_id": {entry["id"] for entry in document["images"]},
        "category_id": {entry["id"] for entry in document["categories"]},
    }
    for index, entry in enumerate(entries):
        if not _is_prediction(entry):
            raise ValueError(f"{path}: entry {index} is {str(entry)[:100]}. {expected}.")
        for key, values in known.items():
            if entry[key] not in values:
                raise ValueError(f"{path}: entry {index} has {key} {entry[key]}, which {truth} does not have.")
    return entries


def _is_prediction(entry: Any) -> bool:
    """Tell whether an entry of a predictions file has every part in the right type, and finite numbers."""
    if not isinstance(entry, dict) or not isinstance(bbox := entry.get("bbox"), list) or len(bbox) != 4:
        return False
    ids = (entry.get("image_id"), entry.get("category_id"))
    numbers = [*bbox, entry.get("score")]
    return all(isinstance(key, int | str) for key in ids) and all(
        type(number) in (int, float) and abs(number) < float("inf") for number in numbers
    )
