"""COCO AP equals that of pycocotools to the last bit: with crowds, ties, small boxes, and boxes whose id is 0."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glip_adapt.engine.metrics.coco import NAMES, ap, score

PLACES, SIDES = (0, 8, 12, 30, 40, 64, 100), (8, 12, 32, 48, 96, 128)


def by_pycocotools(predictions, truth):
    """Return the values of ``NAMES``, and AP per category id; -1 where it is undefined."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes([dict(p) for p in predictions]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    curves = evaluation.eval["precision"][:, :, :, 0, -1]
    means = [curve[curve > -1].mean() if (curve > -1).any() else -1 for curve in np.moveaxis(curves, 2, 0)]
    return dict(zip(NAMES, evaluation.stats, strict=False)), dict(zip(evaluation.params.catIds, means, strict=True))


def make(seed, first_id, texts):
    """Return predictions and truth on a coarse grid, so that overlaps and scores are often equal."""
    random = np.random.default_rng(seed)
    boxes, found = [], []

    def somewhere():
        return [*map(float, random.choice(PLACES, 2)), *map(float, random.choice(SIDES, 2))]

    ids = [f"picture {n}" if texts else int(n) for n in random.permutation(50)[:5]]
    categories = [{"id": int(n), "name": f"class {n}"} for n in random.permutation(20)[:3]]
    for key in [{"image_id": i, "category_id": c["id"]} for i in ids for c in categories]:
        own = [somewhere() for _ in range(random.integers(5))]
        for bbox in own:
            area = bbox[2] * bbox[3] * float(random.choice((0.5, 0.9, 1)))
            crowd = int(random.random() < 0.2)
            boxes.append(key | {"id": len(boxes) + first_id, "bbox": bbox, "area": area, "iscrowd": crowd})
        for _ in range(random.integers(9) if random.random() < 0.9 else 130):  # more than count
            moved = [*own[random.integers(len(own))]] if own and random.random() < 0.7 else somewhere()
            moved[random.integers(4)] += float(random.choice((0, 0, 1, 2, 4)))
            found.append(key | {"bbox": moved, "score": random.integers(8) / 8})
    random.shuffle(found)
    return found, {"images": [{"id": i} for i in ids], "annotations": boxes, "categories": categories}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 1), st.booleans())
def test_values_are_those_of_pycocotools(seed, first_id, texts):
    found, truth = make(seed, first_id, texts)
    values, per_class = by_pycocotools(found, truth)
    scores = score(found, truth)
    assert {name: -1 if value is None else value for name, value in scores.values.items()} == values
    assert [-1 if value is None else value for value in scores.per_class.values()] == [
        per_class[entry["id"]] for entry in truth["categories"]
    ]
    assert ap(found, truth) == scores.values["ap"]


def test_predictions_about_an_unknown_image_or_class_are_refused():
    found, truth = make(0, 1, False)
    for key in ("image_id", "category_id"):
        with pytest.raises(ValueError, match=rf"Entry 2 is for {key} 99, which the truth does not have"):
            score([*found[:2], found[2] | {key: 99}], truth)
