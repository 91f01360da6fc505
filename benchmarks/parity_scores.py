"""Metrics of given predictions, compared with golden numbers of the public evaluators; rows of ``parity.py``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from glip_adapt.data.flickr import read_sentences
from glip_adapt.engine.metrics import lvis
from glip_adapt.engine.metrics.recall import TOP, Boxes, recall

Differing = tuple[str, float]  # quantity, largest difference

BOXES: dict[str, Boxes] = {"any_box": "any", "merged_boxes": "merged"}
LVIS_NAMES = {
    "AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large",
    "APr": "ap_rare", "APc": "ap_common", "APf": "ap_frequent",
    "AR": "ar", "ARs": "ar_small", "ARm": "ar_medium", "ARl": "ar_large",
}  # fmt: skip


def measure_lvis_ap(golden: Mapping[str, Any]) -> Iterator[Differing]:
    """Yield the differences of AP: fixed, fixed with another number of predictions per class, and standard."""
    predictions = [
        {"image_id": entry["image_id"], "category_id": label, "bbox": [x, y, right - x, bottom - y], "score": score}
        for entry in golden["predictions"]
        for (x, y, right, bottom), score, label in zip(entry["boxes"], entry["scores"], entry["labels"], strict=True)
    ]
    for name, expected in golden["results"].items():
        kind, _, limit = name.partition("_topk_")
        metric = {"fixed_ap": lvis.fixed_ap, "standard_ap": lvis.standard_ap}[kind]
        scores = metric(predictions, golden["ground_truth"], *([int(limit)] if limit else []))
        for public, value in expected["results"].items():
            yield f"{name} {public}", _difference(scores.values[LVIS_NAMES[public.partition("@")[0]]], value)
        pairs = zip(scores.per_class.values(), expected["per_class_ap"], strict=True)
        yield f"{name} per class", max(_difference(ours, value) for ours, value in pairs)


def measure_flickr_recall(golden: Mapping[str, Any]) -> Iterator[Differing]:
    """Yield the differences of recall at each number of boxes; 1 where the types of phrases differ."""
    with tempfile.TemporaryDirectory() as name:
        sentences = read_sentences(write_entities(golden, Path(name)))
    for boxes, expected in golden["results"].items():
        found = recall(golden["predictions"], sentences, BOXES[boxes])
        for (ours, top), (public, by_type) in zip(TOP.items(), expected["report"].items(), strict=True):
            if (top or -1) != int(public) or found.keys() != by_type.keys():
                yield f"{boxes} at {public}: types of phrases", 1.0
                continue
            yield f"{boxes} at {public}", max(_difference(found[kind][ours], by_type[kind]) for kind in by_type)


def write_entities(golden: Mapping[str, Any], folder: Path) -> Path:
    """Write the annotations of a golden file as Flickr30k Entities are published; return the list of the images."""
    for below in ("Annotations", "Sentences"):
        (folder / below).mkdir()
    for image_id, entry in golden["images"].items():
        (folder / "Annotations" / f"{image_id}.xml").write_text(entry["xml"], encoding="utf-8")
        (folder / "Sentences" / f"{image_id}.txt").write_text("\n".join(entry["sentences"]), encoding="utf-8")
    split = folder / "test.txt"
    split.write_text("\n".join(golden["test_ids"]), encoding="utf-8")
    return split


def _difference(ours: float | None, expected: float) -> float:
    return abs((-1.0 if ours is None else ours) - expected)


MEASURES: dict[str, Callable[[Mapping[str, Any]], Iterator[Differing]]] = {
    "flickr_recall": measure_flickr_recall,
    "lvis_ap": measure_lvis_ap,
}
"""By the start of a file's name."""
