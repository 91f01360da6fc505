"""Bootstrap interval of COCO AP over images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.engine.metrics.coco import ap_interval, score


def make(images, seed, *, quality=0.7, classes=3, alike=False):
    """Return predictions and truth of random images, or of one image many times."""
    found, boxes = [], []
    for image in range(images):
        random = np.random.default_rng((seed, 0 if alike else image))
        for label in range(classes):
            for place in range(int(random.integers(1, 3))):
                box = [100.0 * place, 100.0 * label, *random.uniform(20, 60, 2)]
                boxes.append({"id": len(boxes) + 1, "image_id": image, "category_id": label, "bbox": box})
                moved = [*(np.array(box[:2]) + random.normal(0, 3, 2)), *box[2:]]
                if random.random() < quality:
                    found.append((image, label, moved, random.beta(4, 2)))
            found.append((image, label, [300.0, 300.0, 30.0, 30.0], random.beta(2, 4)))
    for entry in boxes:
        entry |= {"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
    truth = {
        "images": [{"id": image} for image in range(images)],
        "annotations": boxes,
        "categories": [{"id": label, "name": str(label)} for label in range(classes)],
    }
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, entry, strict=True)) for entry in found], truth


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(12, 25))
def test_the_interval_contains_the_ap(seed, images):
    found, truth = make(images, seed)
    low, high = ap_interval(found, truth, resamples=60)
    assert 0 <= low <= score(found, truth).values["ap"] <= high <= 1
    assert low < high


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(3, 8))
def test_images_that_are_all_alike_leave_no_doubt(seed, images):
    found, truth = make(images, seed, alike=True)
    ap = pytest.approx(score(found, truth).values["ap"])
    assert ap_interval(found, truth, resamples=20) == (ap, ap)


def test_more_images_narrow_it():
    """On average: the width from one set of images is itself uncertain."""
    few, many = (
        np.mean([np.diff(ap_interval(*make(images, seed), resamples=60)) for seed in range(5)]) for images in (6, 60)
    )
    assert many < few


def test_equal_seeds_give_equal_intervals():
    data = make(8, 1)
    assert ap_interval(*data, seed=5) == ap_interval(*data, seed=5) != ap_interval(*data, seed=6)


def test_resampled_ap_is_that_of_a_document_in_which_images_are_repeated():
    """Three images with one box each, found or not: a set with n found ones has AP by its recall n/3."""
    boxes = [
        {"id": n + 1, "image_id": n, "category_id": 0, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0} for n in range(3)
    ]
    truth = {"images": [{"id": n} for n in range(3)], "annotations": boxes, "categories": [{"id": 0, "name": "cat"}]}
    found = [{"image_id": 0, "category_id": 0, "bbox": [0, 0, 9, 9], "score": 0.5}]
    low, high = ap_interval(found, truth)
    # AP is one of three: 34 of 101 recall points. P(none) = 8/27 and P(all) = 1/27, so that the percentiles are none
    # and two of three, 67 points; mirrored at AP they are 1 and 68.
    assert (low, high) == (pytest.approx(1 / 101), pytest.approx(68 / 101))


def test_too_few_images_or_nothing_to_find_have_none():
    assert ap_interval(*make(2, 0)) is None
    found, truth = make(5, 0)
    assert ap_interval(found, truth | {"annotations": []}) is None
    assert ap_interval([], truth) == (0, 0)


def test_it_prints_nothing(capfd):
    ap_interval(*make(4, 0), resamples=3)
    assert capfd.readouterr() == ("", "")
