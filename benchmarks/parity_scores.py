"""Metrics of given predictions, compared with golden numbers of the public evaluators; rows of ``parity.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glip_adapt.engine.metrics import lvis

LIMIT = 1e-9

Differing = tuple[str, float]  # quantity, largest difference

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


def _difference(ours: float | None, expected: float) -> float:
    return abs((-1.0 if ours is None else ours) - expected)


MEASURES: dict[str, Callable[[Mapping[str, Any]], Iterator[Differing]]] = {"lvis_ap": measure_lvis_ap}
"""By the start of a file's name."""
