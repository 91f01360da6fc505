"""Score files of predictions from any detector, without one at work: COCO and LVIS AP, recall of phrases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from glip_adapt.data.flickr import read_sentences
from glip_adapt.data.formats.coco import load_ground_truth, read_file
from glip_adapt.data.scan import require_sound
from glip_adapt.data.split import AnnotationIds
from glip_adapt.engine.metrics import METRICS, masks
from glip_adapt.engine.metrics.protocol import Scores
from glip_adapt.engine.metrics.recall import Boxes, recall

DetectionMetric = Literal["coco", "fixed_ap", "lvis_ap", "masks"]


def score_detections(
    predictions: Path, truth: Path, metric: DetectionMetric = "coco", annotation_ids: AnnotationIds = "renumbered"
) -> Scores:
    """Return a metric of a file of predictions against any COCO or LVIS file.

    Args:
        predictions: JSON list in COCO result form.
        truth: COCO JSON; for ``fixed_ap`` and ``lvis_ap``, LVIS JSON.
        metric: one of ``METRICS``; or ``masks``, for which both files hold a ``segmentation`` of each object.
        annotation_ids: how boxes of a COCO file are numbered for scoring, as in ``Split``.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the predictions are not in COCO result form, or name an unknown image or category; if the truth
            is ambiguous, or lacks what the metric needs.
    """
    if metric in ("coco", "masks"):
        document = load_ground_truth(truth, annotation_ids, masks=metric == "masks")
    else:
        document = _read_lvis(truth)
    entries = _read_predictions(predictions, document, truth, "segmentation" if metric == "masks" else "bbox")
    try:
        return (masks.score if metric == "masks" else METRICS[metric])(entries, document)
    except ValueError as error:
        raise ValueError(f"{truth}: {error}") from error


def score_phrases(predictions: Path, truth: Path) -> dict[Boxes, dict[str, dict[str, float | None]]]:
    """Return recall of phrases by way to count several boxes, type of phrase and number of boxes; see ``recall``.

    Args:
        predictions: JSON list of ``{"image_id", "sentence_id", "boxes"}``, see ``Grounded``.
        truth: list of the images in a folder of Flickr30k Entities, such as ``flickr30k/test.txt``.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is in another form, or the predictions do not fit the sentences.
    """
    sentences = read_sentences(truth)
    expected = "Expected a JSON list of {image_id, sentence_id, boxes: for each phrase [[left, top, right, bottom], …]}"
    entries = _read_list(predictions, expected)
    for index, entry in enumerate(entries):
        if not _is_grounded(entry):
            raise ValueError(f"{predictions}: entry {index} is {str(entry)[:100]}. {expected}.")
    try:
        return {boxes: recall(entries, sentences, boxes) for boxes in ("any", "merged")}
    except ValueError as error:
        raise ValueError(f"{predictions}: {error}") from error


def _read_predictions(
    path: Path, document: Mapping[str, Any], truth: Path, shape: Literal["bbox", "segmentation"]
) -> list[dict[str, Any]]:
    """Return predictions in COCO result form; each must name an image and a category of the truth."""
    shapes = {"bbox": "bbox: [x, y, width, height]", "segmentation": "segmentation: run lengths"}
    expected = f"Expected a JSON list of {{image_id, category_id, {shapes[shape]}, score}}"
    entries = _read_list(path, expected)
    known = {
        "image_id": {entry["id"] for entry in document["images"]},
        "category_id": {entry["id"] for entry in document["categories"]},
    }
    for index, entry in enumerate(entries):
        if not _is_prediction(entry, shape):
            raise ValueError(f"{path}: entry {index} is {str(entry)[:100]}. {expected}.")
        for key, values in known.items():
            if entry[key] not in values:
                raise ValueError(f"{path}: entry {index} has {key} {entry[key]}, which {truth} does not have.")
    return entries


def _read_lvis(file: Path) -> dict[str, Any]:
    """Return an LVIS file; its images have an address where those of COCO have a file name.

    Raises:
        FileNotFoundError, ValueError: as ``load_ground_truth``.
    """
    source = read_file(file, file.parent)
    images = [{"file_name": str(e.get("coco_url", e.get("id")))} | e for e in _entries(source.document, "images")]
    named = dict(source.document) | ({"images": images} if images else {})
    require_sound(replace(source, document=named), images=False, need_sizes=False)
    boxes = enumerate(source.document["annotations"], start=1)
    numbered = [{"id": n, "area": entry["bbox"][2] * entry["bbox"][3]} | entry for n, entry in boxes]
    return named | {"annotations": numbered}


def _entries(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return what a document lists, if it does; what is wrong with it, a check says."""
    listed = document.get(key)
    return listed if isinstance(listed, list) and all(isinstance(entry, dict) for entry in listed) else []


def _read_list(path: Path, expected: str) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"No predictions at {path}. `glip-adapt eval --predictions FILE` writes them.")
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: malformed JSON ({error}). {expected}.") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds a {type(entries).__name__}. {expected}.")
    return entries


def _is_prediction(entry: Any, shape: str) -> bool:
    """Tell whether an entry of a predictions file has every part in the right type, and finite numbers."""
    if not isinstance(entry, dict) or (shape == "segmentation" and not isinstance(entry.get(shape), dict)):
        return False
    ids, box = (entry.get("image_id"), entry.get("category_id")), entry.get("bbox", [0, 0, 0, 0])
    return (
        all(isinstance(key, int | str) for key in ids)
        and ("bbox" in entry or shape == "segmentation")
        and _is_box(box)
        and _is_finite(entry.get("score"))
    )


def _is_grounded(entry: Any) -> bool:
    """Tell whether an entry holds boxes for the phrases of one sentence."""
    if not isinstance(entry, dict) or not isinstance(entry.get("boxes"), list):
        return False
    is_named = all(str(entry.get(key)).isdecimal() for key in ("image_id", "sentence_id"))
    return is_named and all(isinstance(boxes, list) and all(map(_is_box, boxes)) for boxes in entry["boxes"])


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))


def _is_finite(number: Any) -> bool:
    return type(number) in (int, float) and abs(number) < float("inf")
