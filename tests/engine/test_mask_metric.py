"""AP of masks equals that of pycocotools (``segm``) to the last bit, and says what is missing for it."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glip_adapt.core.masks import Mask
from glip_adapt.engine.metrics.masks import MASK_NAMES, score

HW = (120, 140)


def by_pycocotools(predictions, truth):
    """Return the values of ``MASK_NAMES``, and AP per category id; -1 where it is undefined."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes([dict(entry) for entry in predictions]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    curves = evaluation.eval["precision"][:, :, :, 0, -1]
    means = [curve[curve > -1].mean() if (curve > -1).any() else -1 for curve in np.moveaxis(curves, 2, 0)]
    return dict(zip(MASK_NAMES, evaluation.stats, strict=False)), dict(
        zip(evaluation.params.catIds, means, strict=True)
    )


def make(seed):
    """Return predictions and truth: ellipses and polygons, some moved by little, some crowds, scores that tie."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: HW[0], : HW[1]]

    def ellipse(middle, sides):
        return Mask.of(((x - middle[0]) / sides[0]) ** 2 + ((y - middle[1]) / sides[1]) ** 2 <= 1)

    annotations, found = [], []
    images = [{"id": int(n), "height": HW[0], "width": HW[1]} for n in random.permutation(50)[:4]]
    categories = [{"id": int(n), "name": f"class {n}"} for n in random.permutation(20)[:2]]
    for key in [{"image_id": i["id"], "category_id": c["id"]} for i in images for c in categories]:
        for _ in range(random.integers(4)):
            middle, sides = random.uniform(10, 110, 2), random.uniform(3, 60, 2)
            mask, crowd = ellipse(middle, sides), int(random.random() < 0.2)
            segmentation = mask.to_polygons() if random.random() < 0.5 and mask.area else mask.to_rle()
            own = {"id": len(annotations) + 1, "segmentation": segmentation, "iscrowd": crowd, "area": mask.area}
            annotations.append(key | own | {"bbox": [0.0, 0.0, 1.0, 1.0]})
            for _ in range(random.integers(3)):
                moved = ellipse(middle + random.normal(0, 4, 2), sides * random.uniform(0.8, 1.2))
                found.append(key | {"segmentation": moved.to_rle(), "score": random.integers(6) / 6})
        for _ in range(random.integers(3)):
            false_alarm = ellipse(random.uniform(10, 110, 2), random.uniform(3, 60, 2))
            found.append(key | {"segmentation": false_alarm.to_rle(), "score": random.integers(6) / 6})
    random.shuffle(found)
    return found, {"images": images, "annotations": annotations, "categories": categories}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_values_are_those_of_pycocotools(seed):
    found, truth = make(seed)
    if not found:
        return  # pycocotools cannot load an empty list
    scores = score([entry | {"bbox": [3.0, 4.0, 5.0, 6.0]} for entry in found], truth)  # which do not count
    values, per_class = by_pycocotools(found, truth)
    assert {name: -1 if value is None else value for name, value in scores.values.items()} == values
    assert [-1 if value is None else value for value in scores.per_class.values()] == [
        per_class[entry["id"]] for entry in truth["categories"]
    ]


def test_without_a_prediction_nothing_is_found():
    assert score([], make(1)[1]).values["mask_ap"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found, truth: found[1].pop("segmentation"), "of each prediction.*prediction 1.*has None"),
        (lambda found, truth: found[1].update(segmentation=Mask.of(np.ones((3, 4))).to_rle()), "for 120 × 140 pixels"),
        (lambda found, truth: truth["annotations"][0].pop("segmentation"), "of each annotation.*annotation 0"),
        (lambda found, truth: [image.pop("height") for image in truth["images"]], "states no height and width"),
        (lambda found, truth: found[0].update(image_id=99), "image_id 99, which the truth does not have"),
    ],
)
def test_what_is_missing_for_masks_is_said(change, message):
    found, truth = make(1)
    score(found, truth)
    change(found, truth)
    with pytest.raises(ValueError, match=message):
        score(found, truth)
