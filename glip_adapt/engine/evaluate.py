"""Predict function + split → COCO metrics, through pycocotools; ``evaluate`` alone knows that there is a model."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glip_adapt.adapters.base import Detector
from glip_adapt.core import boxes
from glip_adapt.core.structures import Detections
from glip_adapt.data.formats.coco import coco_ground_truth, load_ground_truth
from glip_adapt.data.split import AnnotationIds, ImageRecord, Split
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.features import FrozenFeatures, in_batches
from glip_adapt.engine.predict import PredictConfig, detections


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """COCO metrics of one split, as fractions in [0, 1]; None where no box of that kind exists."""

    ap: float | None
    "mean over IoU 0.50:0.95, the primary metric"
    ap50: float | None
    "at IoU 0.50"
    ap75: float | None
    "at IoU 0.75"
    ap_small: float | None
    "boxes below 32² pixels"
    ap_medium: float | None
    "boxes of 32² to 96² pixels"
    ap_large: float | None
    "boxes above 96² pixels"
    per_class: Mapping[str, float | None]
    "class name → AP over IoU 0.50:0.95"
    predictions: tuple[dict[str, Any], ...]
    "what was scored, in COCO result form"


def evaluate(
    model: Detector,
    split: Split,
    config: PredictConfig | None = None,
    *,
    cache: FeatureCache | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Return the COCO metrics of ``model`` on a split.

    Args:
        model: from ``attach``, ``load_adapter`` or ``load_baked``, for the classes of the split.
        split: what to score on.
        config: resizing and precision; by default those of the trunk, ``PredictConfig.of``.
        cache: keeps what the frozen stages make of each picture, for the next evaluation.
        on_image: called after each picture with its position from 1 and the number of pictures.

    Raises:
        ValueError: if the split is empty, or its classes are not those of the model in the same order.
    """
    check_scorable(model, split)
    config = config or PredictConfig.of(model.trunk.name)
    features = FrozenFeatures(model, cache, config.max_long_side, config.precision)
    model.train(False)
    return _score_all(_detect_all(model, split.records, features, config), split, on_image)


def _detect_all(
    model: Detector, records: Iterable[ImageRecord], features: FrozenFeatures, config: PredictConfig
) -> Iterator[Detections]:
    """Yield the detections of each picture in turn; small ones go through the network together."""
    for together in in_batches((record, features.padded_shape(record, config.view)) for record in records):
        prefix = features.of(together, config.view)
        yield from detections(model, prefix, [record.header.size_hw for record in together], config)


def evaluate_split(
    detect: Callable[[ImageRecord], Detections], split: Split, *, on_image: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Return the COCO metrics of ``detect`` on a split.

    Args:
        detect: picture of the split → detections in its own pixels, labels in the order of ``split.classes``.
        split: what to score on.
        on_image: called after each picture with its position from 1 and the number of pictures.

    Raises:
        ValueError: if the split is empty.
    """
    _check_filled(split)
    return _score_all(map(detect, split.records), split, on_image)


def _score_all(found: Iterable[Detections], split: Split, on_image: Callable[[int, int], None] | None) -> Evaluation:
    """Score the detections of all pictures of a split, in order."""
    predictions: list[dict[str, Any]] = []
    for position, (record, detected) in enumerate(zip(split.records, found, strict=True), start=1):
        predictions += to_coco_results(detected, record.image_id, split.category_ids)
        if on_image:
            on_image(position, len(split))
    return score(predictions, split)


def check_scorable(model: Detector, split: Split) -> None:
    """Raise ValueError if the split is empty, or its classes are not those of the model in the same order."""
    _check_filled(split)
    if model.class_names not in (split.classes, split.aliases):
        raise ValueError(
            f"The model detects the {len(model.classes)} classes {model.class_names}, but {split.name} has the "
            f"{len(split.classes)} classes {split.classes}. Attach with the classes of the dataset, in its order. "
            "Where a prompt words them by other names, state these as the aliases of the split."
        )


def _check_filled(split: Split) -> None:
    if not len(split):
        raise ValueError(f"{split.name} has no pictures to evaluate on. Name a split that has some.")


def to_coco_results(detections: Detections, image_id: int | str, category_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return detections in COCO result form; boxes are (x, y, width, height) in pixels."""
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(
            boxes.xyxy_to_xywh(detections.boxes_xyxy).tolist(),
            detections.scores.tolist(),
            detections.labels.tolist(),
            strict=True,
        )
    ]


def score(predictions: Sequence[Mapping[str, Any]], split: Split) -> Evaluation:
    """Return the COCO metrics of predictions in COCO result form."""
    return _score(predictions, coco_ground_truth(split))


def score_files(predictions: Path, truth: Path, annotation_ids: AnnotationIds = "renumbered") -> Evaluation:
    """Return the COCO metrics of a file of predictions against any COCO file.

    Args:
        predictions: JSON list in COCO result form.
        truth: COCO JSON.
        annotation_ids: the numbers that boxes have while they are scored, as in ``Split``.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the predictions are not in COCO result form, or are about pictures or categories that the truth
            does not have; or if the truth has a defect that leaves its meaning open.
    """
    document = load_ground_truth(truth, annotation_ids)
    return _score(_read_predictions(predictions, document, truth), document)


def _read_predictions(path: Path, document: Mapping[str, Any], truth: Path) -> list[dict[str, Any]]:
    """Return predictions in COCO result form, after checking that each is about what the truth has."""
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


def _score(predictions: Sequence[Mapping[str, Any]], document: dict[str, Any]) -> Evaluation:
    """Return the COCO metrics of predictions in COCO result form against a COCO document."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(p) for p in predictions]) if predictions else COCO(), "bbox")
        evaluation.params.imgIds = [entry["id"] for entry in document["images"]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, detections)
    per_class = {
        name: _mean(precision[:, :, evaluation.params.catIds.index(category_id), 0, -1])
        for category_id, name in _distinct_names(document["categories"]).items()
    }
    return Evaluation(
        **{name: _defined(value) for name, value in zip(names, evaluation.stats, strict=False)},
        per_class=per_class,
        predictions=tuple(dict(p) for p in predictions),
    )


def _distinct_names(categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return category id → name, with the id where several categories have one name."""
    counts = Counter(entry["name"] for entry in categories)
    return {e["id"]: e["name"] if counts[e["name"]] == 1 else f"{e['name']} (category {e['id']})" for e in categories}


def _mean(precision: np.ndarray) -> float | None:
    return _defined(float(precision[precision > -1].mean())) if (precision > -1).any() else None


def _defined(value: float) -> float | None:
    """Turn pycocotools' -1 into None."""
    return None if value < 0 or math.isnan(value) else float(value)
