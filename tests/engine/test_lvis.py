"""LVIS AP: numbers of the public evaluator, and cases computed by hand."""

import copy
import json
from pathlib import Path

import pytest
from conftest import load_benchmark

from glip_adapt.engine.metrics.lvis import fixed_ap, standard_ap

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "parity" / "extra" / "lvis_ap.json").read_text())
BOX, ELSEWHERE = [10, 10, 20, 20], [200, 200, 20, 20]
CAT, DOG, EEL = 3, 5, 9  # rare, common, frequent


def image(number, *, absent=(), open_ended=()):
    return {"id": number, "neg_category_ids": list(absent), "not_exhaustive_category_ids": list(open_ended)}


def box(image_id, category_id, bbox=BOX):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox}


def found(image_id, category_id, score, bbox=BOX):
    return box(image_id, category_id, bbox) | {"score": score}


def truth(images, boxes):
    names = {CAT: ("cat", "r"), DOG: ("dog", "c"), EEL: ("eel", "f")}
    return {
        "images": images,
        "annotations": [b | {"id": n, "area": b["bbox"][2] * b["bbox"][3]} for n, b in enumerate(boxes, 1)],
        "categories": [{"id": key, "name": name, "frequency": letter} for key, (name, letter) in names.items()],
    }


ONE = pytest.approx(1)


@pytest.fixture(scope="module")
def parity():
    yield from load_benchmark("parity_scores")


def test_numbers_are_those_of_the_public_evaluator(parity):
    differences = dict(parity.measure_lvis_ap(GOLDEN))
    assert len(differences) == 3 * 14
    assert max(differences.values()) < 1e-9


def test_the_golden_numbers_are_compared_with_what_is_computed(parity):
    other = copy.deepcopy(GOLDEN)
    for entry in other["predictions"]:
        entry["scores"].reverse()
    assert min(difference for quantity, difference in parity.measure_lvis_ap(other) if " AR" not in quantity) > 1e-3


def test_classes_are_averaged_by_frequency():
    predictions = [found(1, CAT, 0.9), found(1, EEL, 0.9, ELSEWHERE)]
    scores = fixed_ap(predictions, truth([image(1)], [box(1, CAT), box(1, EEL)]))
    assert scores.per_class == {"cat": ONE, "dog": None, "eel": 0}
    wanted = {
        "ap": pytest.approx(0.5),
        "ap_rare": ONE,
        "ap_common": None,
        "ap_frequent": 0,
        "ap_small": pytest.approx(0.5),
    }
    assert {name: scores.values[name] for name in wanted} == wanted


@pytest.mark.parametrize("metric", [fixed_ap, standard_ap])
@pytest.mark.parametrize(
    ("listed", "ap"),
    [
        ({}, ONE),  # nobody looked for cats in the second image
        ({"absent": [CAT]}, pytest.approx(0.5)),
        ({"absent": [DOG]}, ONE),
        ({"absent": [CAT], "open_ended": [CAT]}, ONE),
        ({"absent": [CAT, 77], "open_ended": [DOG, 77]}, pytest.approx(0.5)),  # 77 is no class of the file
    ],
)
def test_an_image_is_judged_on_classes_that_were_looked_for(metric, listed, ap):
    predictions = [found(2, CAT, 0.9), found(1, CAT, 0.8)]
    assert metric(predictions, truth([image(1), image(2, **listed)], [box(1, CAT)])).values["ap"] == ap


def test_only_false_alarms_are_forgiven_where_labels_are_incomplete():
    images = [image(1, open_ended=[CAT])]
    predictions = [found(1, CAT, 0.9, ELSEWHERE), found(1, CAT, 0.8)]
    assert fixed_ap(predictions, truth(images, [box(1, CAT)])).values["ap"] == ONE
    assert fixed_ap(predictions[:1], truth(images, [box(1, CAT)])).values["ap"] == 0


def test_limits_hold_per_class_or_per_image_and_the_first_of_equal_scores_stays():
    images, boxes = [image(1), image(2)], [box(1, CAT), box(2, CAT), box(2, DOG)]
    predictions = [found(2, CAT, 0.5), found(1, CAT, 0.5), found(2, DOG, 0.4)]
    by_class, by_image = (metric(predictions, truth(images, boxes), 1) for metric in (fixed_ap, standard_ap))
    half = pytest.approx(51 / 101)  # of two boxes one is found: recall 0.00, 0.01, … 0.50
    assert by_class.per_class == {"cat": half, "dog": ONE, "eel": None}
    assert by_image.per_class == {"cat": ONE, "dog": 0, "eel": None}
    assert (by_class.values["ar"], by_image.values["ar"]) == (0.75, 0.5)


def test_an_ignored_box_is_neither_found_nor_missed():
    document = truth([image(1)], [box(1, CAT), box(1, CAT, ELSEWHERE)])
    document["annotations"][1]["ignore"] = 1
    assert fixed_ap([found(1, CAT, 0.9, ELSEWHERE), found(1, CAT, 0.8)], document).values["ap"] == ONE


def test_without_predictions_or_boxes():
    assert fixed_ap([], truth([image(1)], [box(1, CAT)])).values["ap"] == 0
    assert fixed_ap([found(1, CAT, 0.9)], truth([image(1, absent=[CAT])], [])).values["ap"] is None


def test_a_coco_file_is_no_truth():
    document = truth([image(1)], [box(1, CAT)])
    del document["categories"][1]["frequency"]
    with pytest.raises(ValueError, match=r"`frequency` of each class, one of r, c, f; class 'dog' has None"):
        fixed_ap([], document)
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        document = truth([image(7)], [])
        del document["images"][0][key]
        with pytest.raises(ValueError, match=rf"list `{key}` of each image; image 7 has None"):
            standard_ap([], document)


def test_a_prediction_for_an_unknown_image_or_class_is_refused():
    document = truth([image(1)], [box(1, CAT)])
    with pytest.raises(ValueError, match=r"Entry 1 is for image_id 8, which the truth does not have"):
        fixed_ap([found(1, CAT, 0.5), found(8, CAT, 0.5)], document)
    with pytest.raises(ValueError, match=r"Entry 0 is for category_id 4,"):
        standard_ap([found(1, 4, 0.5)], document)


def ap50_of(predictions, boxes, images=(1,), **more):
    document = truth([image(number) for number in images], boxes)
    document["annotations"][0] |= more
    return fixed_ap(predictions, document).values["ap50"]


def test_a_box_to_be_found_comes_before_one_that_need_not_be():
    boxes = [box(1, CAT), box(1, CAT, [10, 10, 20, 14])]
    assert ap50_of([found(1, CAT, 0.9)], boxes, ignore=1) == ONE


def test_of_equal_overlaps_the_last_box_is_taken():
    boxes = [box(1, CAT, [0, 0, 20, 20]), box(1, CAT, [10, 0, 20, 20])]
    predictions = [found(1, CAT, 0.9, [5, 0, 20, 20]), found(1, CAT, 0.8, [10, 0, 20, 20])]
    assert ap50_of(predictions, boxes) == pytest.approx(51 / 101)  # the second finds its box taken


def test_of_equal_scores_the_image_with_the_lower_id_comes_first():
    predictions = [found(2, CAT, 0.9), found(1, CAT, 0.9, ELSEWHERE)]
    boxes = [box(2, CAT), box(1, CAT, [90, 90, 20, 20])]
    assert ap50_of(predictions, boxes, images=(1, 2)) == pytest.approx(51 / 101 / 2)  # half right at half of recall


def test_an_overlap_of_exactly_the_threshold_is_a_hit():
    assert ap50_of([found(1, CAT, 0.9, [0, 0, 20, 10])], [box(1, CAT, [0, 0, 20, 20])]) == ONE
