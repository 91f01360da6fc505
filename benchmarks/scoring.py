"""How long scoring takes, and how much memory, on synthetic result files of the sizes of LVIS and COCO.

    python benchmarks/scoring.py lvis     # 5 000 pictures × 300 boxes among 1 203 classes: fixed and standard AP
    python benchmarks/scoring.py coco     # 5 000 pictures × 100 boxes among 80 classes: beside pycocotools

Seconds are of the processor. Memory is the peak of the process, with the predictions as a list of mappings in it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from glip_adapt.engine.metrics import coco, lvis

Document = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=("lvis", "coco"))
    parser.add_argument("--pictures", type=int, default=5000)
    arguments = parser.parse_args()
    if arguments.size == "lvis":
        predictions, truth = make(arguments.pictures, classes=1203, boxes=10, found=300)
        print(f"{len(predictions)} predictions, {len(truth['annotations'])} boxes; {peak_gb():.2f} GB before scoring")
        for name, metric in (("fixed AP", lvis.fixed_ap), ("standard AP", lvis.standard_ap)):
            scores, seconds = timed(partial(metric, predictions, truth))
            print(f"{name} {scores.values['ap']:.4f}: {seconds:.1f} s, peak {peak_gb():.2f} GB")
        return
    predictions, truth = make(arguments.pictures, classes=80, boxes=7, found=100)
    print(f"{len(predictions)} predictions, {len(truth['annotations'])} boxes; {peak_gb():.2f} GB before scoring")
    scores, ours = timed(lambda: coco.score(predictions, truth))
    print(f"ours: AP {scores.values['ap']:.6f}, {ours:.1f} s, peak {peak_gb():.2f} GB")
    stats, theirs = timed(lambda: by_pycocotools(predictions, truth))
    print(f"pycocotools: AP {stats[0]:.6f}, {theirs:.1f} s, peak {peak_gb():.2f} GB")
    largest = max(abs((-1 if a is None else a) - b) for a, b in zip(scores.values.values(), stats, strict=False))
    print(f"{theirs / ours:.1f} times as fast; largest difference of the six values {largest:.1e}")


def make(pictures: int, classes: int, boxes: int, found: int) -> tuple[list[Document], Document]:
    """Return predictions and truth: a few classes in a picture, and predictions near its boxes and elsewhere."""
    random = np.random.default_rng(0)
    annotations: list[Document] = []
    predictions: list[Document] = []
    images: list[Document] = []
    for image in range(pictures):
        shown = random.integers(classes, size=1 + random.poisson(2))
        labels = random.choice(shown, size=1 + random.poisson(boxes - 1))
        corners, sides = random.uniform(0, 500, (len(labels), 2)), np.exp(random.uniform(2.3, 5.5, (len(labels), 2)))
        true = np.hstack([corners, sides])
        for label, box in zip(labels.tolist(), true.round(2).tolist(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1, "bbox": box}
            annotations.append(entry | {"area": 0.7 * box[2] * box[3], "iscrowd": int(random.random() < 0.01)})
        near = random.integers(len(labels), size=found)
        moved = true[near] * np.exp(random.normal(0, 0.15, (found, 4)))
        guessed = np.where(random.random(found) < 0.7, labels[near], random.integers(classes, size=found))
        columns = (guessed.tolist(), moved.round(2).tolist(), random.random(found).round(4).tolist())
        for label, box, score in zip(*columns, strict=True):
            predictions.append({"image_id": image, "category_id": label + 1, "bbox": box, "score": score})
        absent = (1 + random.integers(classes, size=12)).tolist()
        listed = {"neg_category_ids": absent, "not_exhaustive_category_ids": (1 + shown[:1]).tolist()}
        images.append({"id": image, "height": 600, "width": 600} | listed)
    categories = [{"id": k + 1, "name": f"class {k}", "frequency": "rcf"[k % 3]} for k in range(classes)]
    return predictions, {"images": images, "annotations": annotations, "categories": categories}


def by_pycocotools(predictions: list[Document], truth: Document) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(predictions), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return function(), time.process_time() - start


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
