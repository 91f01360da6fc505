"""COCO metrics: perfect, hopeless, none at all, and cases that can be computed by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glip_adapt.core.boxes import to_edges
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import Detections, Target
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.evaluate import evaluate, score, to_coco_results
from glip_adapt.engine.metrics import coco
from glip_adapt.engine.scored_files import score_detections

METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def evaluate_split(detect, split):
    """Return the metrics of a function image record → detections."""
    found = [to_coco_results(detect(record), record.image_id, split.category_ids) for record in split.records]
    return score([entry for entries in found for entry in entries], split)


ONE = pytest.approx(1)  # pycocotools divides by a little more than the number of detections


def detections(boxes_xyxy, scores=None, labels=None):
    """Detections whose last pixels are those of ``boxes_xyxy``."""
    count = len(boxes_xyxy)
    return Detections(
        to_edges(torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4)),
        torch.tensor([1.0] * count if scores is None else scores, dtype=torch.float32),
        torch.tensor([0] * count if labels is None else labels, dtype=torch.int64),
    )


def truth_of(record):
    return Detections(to_edges(record.target.boxes_xyxy), torch.full((len(record.target),), 0.9), record.target.labels)


def in_order(split, answer):
    """A predict function that answers for the records of ``split`` in turn."""
    records = iter(split.records)
    return lambda record: answer(next(records))


@pytest.fixture
def split(coco_folder):
    return load_dataset(str(coco_folder)).test


@pytest.fixture
def one_image(tmp_path):
    """Makes a split of one 200 × 200 image with the given boxes, categories 0 (cat) and 7 (dog)."""

    def build(boxes_xyxy, labels=None, image_id=5):
        Image.new("RGB", (200, 200)).save(tmp_path / "x.png")
        target = Target(torch.tensor(boxes_xyxy).float().reshape(-1, 4), detections(boxes_xyxy, labels=labels).labels)
        record = ImageRecord(image_id, tmp_path / "x.png", (200, 200), target)
        return Split("toy/test", (record,), ("cat", "dog"), (0, 7), tmp_path / "boxes.json")

    return build


def scores_of(split, found):
    return evaluate_split(lambda record: found, split)


def test_perfect_predictions_score_one_in_every_defined_metric(split):
    found = evaluate_split(in_order(split, truth_of), split)
    values = {name: found.values[name] for name in METRICS}
    assert values == {"ap": ONE, "ap50": ONE, "ap75": ONE, "ap_small": ONE, "ap_medium": None, "ap_large": None}
    assert found.per_class == {"red box": ONE, "blue box": ONE}
    assert list(found.per_class) == list(split.classes)


def test_hopeless_predictions_score_zero(split):
    swapped = evaluate_split(
        in_order(split, lambda r: replace(truth_of(r), labels=1 - r.target.labels)), split
    )  # fmt: skip
    corner = evaluate_split(lambda record: detections([[0, 0, 1, 1]] * 2, labels=[0, 1]), split)
    for found in (swapped, corner):
        assert [found.ap, found.values["ap50"], found.values["ap75"], found.values["ap_small"]] == [0, 0, 0, 0]
        assert found.per_class == {"red box": 0, "blue box": 0}


def test_no_predictions_at_all_score_zero_where_there_is_something_to_find(split):
    found = evaluate_split(lambda record: detections([]), split)
    assert [
        found.ap,
        found.values["ap50"],
        found.values["ap75"],
        found.values["ap_small"],
        found.values["ap_large"],
    ] == [0, 0, 0, 0, None]
    assert found.per_class == {"red box": 0, "blue box": 0}
    assert found.predictions == ()


def test_where_there_is_nothing_to_find_nothing_is_defined(one_image):
    for found in (scores_of(one_image([]), detections([])), scores_of(one_image([]), detections([[0, 0, 9, 9]]))):
        assert [found.values[name] for name in METRICS] == [None] * 6
        assert found.per_class == {"cat": None, "dog": None}


def test_a_class_without_boxes_is_undefined_and_left_out_of_the_mean(one_image):
    found = scores_of(one_image([[10, 10, 29, 29]]), detections([[10, 10, 29, 29], [50, 50, 99, 99]], labels=[0, 1]))
    assert found.per_class == {"cat": ONE, "dog": None}
    assert found.ap == ONE


def test_each_size_is_scored_for_itself(one_image):
    """31² is small, 40² medium, 97² large; only the large one is found: recall 1/3 reaches 34 of the 101 points."""
    boxes = [[0, 0, 30, 30], [50, 0, 89, 39], [100, 100, 196, 196]]
    found = scores_of(one_image(boxes), detections(boxes[2:]))
    assert (found.values["ap_small"], found.values["ap_medium"], found.values["ap_large"]) == (0, 0, ONE)
    assert found.ap == found.per_class["cat"] == pytest.approx(34 / 101)


def test_a_hand_computed_case_of_two_boxes(one_image):
    """Box two overlaps by 5/8: a hit at IoU 0.50, 0.55 and 0.60, and a miss at the seven others.

    A miss leaves recall 1/2 at precision 1, which reaches 51 of the 101 recall points.
    """
    split = one_image([[0, 0, 7, 7], [100, 100, 107, 107]])
    found = scores_of(split, detections([[0, 0, 7, 7], [100, 100, 107, 104]], [0.9, 0.8]))
    assert found.ap == pytest.approx(0.3 + 0.7 * 51 / 101)
    assert found.values["ap50"] == ONE
    assert found.values["ap75"] == pytest.approx(51 / 101)
    assert found.per_class["cat"] == found.ap


def test_overlap_is_measured_on_inclusive_pixels(one_image):
    """10 × 10 against 10 × 5.5 pixels is 0.55 by a hair more; without the last pixel it would be 0.5."""
    found = scores_of(one_image([[0, 0, 9, 9]]), detections([[0, 0, 9, 4.51]]))
    assert found.ap == pytest.approx(0.2)


@pytest.mark.parametrize(("wrong_score", "precision"), [(0.7, 1), (0.95, 1 / 2)])
def test_a_false_alarm_costs_only_where_it_is_more_certain_than_the_hits(one_image, wrong_score, precision):
    split = one_image([[0, 0, 9, 9]])
    found = scores_of(split, detections([[0, 0, 9, 9], [50, 50, 80, 80]], [0.9, wrong_score]))
    assert found.ap == pytest.approx(precision)


def test_a_duplicate_detection_costs_precision(one_image):
    """Hit, duplicate, hit: precision 1 up to recall 1/2 (51 points), 2/3 beyond (50 points)."""
    split = one_image([[0, 0, 9, 9], [100, 100, 109, 109]])
    boxes = [[0, 0, 9, 9], [0, 0, 9, 9], [100, 100, 109, 109]]
    assert scores_of(split, detections(boxes, [0.9, 0.8, 0.7])).ap == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert scores_of(split, detections(boxes[::2], [0.9, 0.7])).ap == ONE


def test_a_detection_counts_only_in_its_own_image_and_class(split):
    first = truth_of(split.records[0])
    found = evaluate_split(lambda record: first, split)
    assert found.ap < 0.5


def test_category_ids_with_gaps_and_id_zero_survive(split):
    found = evaluate_split(in_order(split, truth_of), split)
    assert split.category_ids == (0, 7)
    assert [p["category_id"] for p in found.predictions] == [
        (0, 7)[label] for record in split.records for label in record.target.labels
    ]
    only_zero = evaluate_split(in_order(split, lambda r: truth_of(r).select(r.target.labels == 0)), split)
    assert only_zero.per_class == {"red box": ONE, "blue box": 0}
    assert only_zero.ap == pytest.approx(0.5)


def test_results_are_in_coco_form():
    found = detections([[4, 5, 13, 24], [0.5, 0, 0.5, 0]], [0.75, 0.25], [1, 0])
    assert to_coco_results(found, "image", (3, 9)) == [
        {"image_id": "image", "category_id": 9, "bbox": [4, 5, 10, 20], "score": 0.75},
        {"image_id": "image", "category_id": 3, "bbox": [0.5, 0, 1, 1], "score": 0.25},
    ]
    assert to_coco_results(detections([]), 1, (3,)) == []


def shaky(record):
    """Boxes that are off by a few pixels, in one class less than by one, and a false alarm."""
    shift = torch.tensor([[0.37, 0.0, 0.37, 0.0], [3.1, 1.0, 3.1, 1.0]])
    boxes = torch.cat((record.target.boxes_xyxy + shift, torch.tensor([[0.0, 0.0, 20.0, 20.0]])))
    return Detections(boxes, torch.tensor([0.51, 0.83, 0.6]), torch.cat((record.target.labels, torch.tensor([1]))))


def test_results_survive_json_and_score_the_same_again(split):
    found = evaluate_split(in_order(split, shaky), split)
    assert 0 < found.ap < 1
    again = score(json.loads(json.dumps(found.predictions, allow_nan=False)), split)
    assert again == found


def test_scoring_leaves_the_predictions_as_they_are(split):
    predictions = [p for r in split.records for p in to_coco_results(truth_of(r), r.image_id, split.category_ids)]
    before = json.dumps(predictions)
    assert score(predictions, split).predictions == tuple(predictions)
    assert json.dumps(predictions) == before


def test_scoring_prints_nothing(split, capfd):
    evaluate_split(in_order(split, truth_of), split)
    evaluate_split(lambda record: detections([]), split)
    assert capfd.readouterr() == ("", "")


def test_text_image_ids_work(one_image):
    assert scores_of(one_image([[0, 0, 9, 9]], image_id="one"), detections([[0, 0, 9, 9]])).ap == ONE


def test_metrics_are_plain_numbers(split):
    found = evaluate_split(in_order(split, truth_of), split)
    assert all(type(found.values[name]) in (float, type(None)) for name in METRICS)
    assert all(type(value) is float and math.isfinite(value) for value in found.per_class.values())


def test_a_few_shot_subset_is_scored_on_its_own_images_only(coco_folder):
    data = load_dataset(str(coco_folder))
    subset = data.train.few_shot(1, seed=3)
    assert 0 < len(subset) < len(data.train)
    assert evaluate_split(in_order(subset, truth_of), subset).ap == ONE


def test_an_empty_split_cannot_be_scored(tiny_trunk, split):
    with pytest.raises(ValueError, match=rf"{split.name} has no images"):
        evaluate(attach(tiny_trunk, "zero_shot", classes=split.classes), replace(split, records=()))


def test_a_model_is_scored_by_what_it_predicts(tiny_trunk, split):
    config, seen = ViewConfig(short_side=64), []
    model = attach(tiny_trunk, "zero_shot", classes=split.classes)
    found = evaluate(model, split, config, on_image=lambda *position: seen.append(position))
    expected = evaluate_split(lambda record: model.predict(record.load(), view=config), split)
    assert found.ap == pytest.approx(expected.ap, abs=1e-6)
    assert len(found.predictions) > 0
    for one, other in zip(found.predictions, expected.predictions, strict=True):  # a batch adds up in another order
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert [one["score"], *one["bbox"]] == pytest.approx([other["score"], *other["bbox"]], abs=1e-3)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_model_for_another_number_of_classes_is_refused_and_both_are_named(tiny_trunk, split):
    model = attach(tiny_trunk, "zero_shot", classes=("red box", "blue box", "cat"))
    with pytest.raises(
        ValueError, match=rf"detects the 3 classes .*'cat'.*{split.name} has the 2 classes \('red box', 'blue box'\)"
    ):
        evaluate(model, split)


def test_a_missing_image_says_so(tiny_trunk, split):
    gone = replace(split.records[0], path=Path("nowhere.png"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        evaluate(attach(tiny_trunk, "zero_shot", classes=split.classes), replace(split, records=(gone,)))


def test_classes_in_another_order_are_refused_and_other_names_of_a_prompt_are_not(tiny_trunk, split):
    config = ViewConfig(short_side=64, max_long_side=80)
    swapped = attach(tiny_trunk, "zero_shot", classes=split.classes[::-1])
    with pytest.raises(ValueError, match=r"in its order.*aliases of the split"):
        evaluate(swapped, split, config)
    worded = attach(tiny_trunk, "zero_shot", classes=("scarlet box", "azure box"))
    with pytest.raises(ValueError, match="scarlet box"):
        evaluate(worded, split, config)
    found = evaluate(worded, replace(split, aliases=("scarlet box", "azure box")), config)
    assert list(found.per_class) == list(split.classes)


def boxes_with_ids(*ids):
    """Ground truth and perfect predictions of boxes that do not touch, with falling scores."""
    boxes = [[20 * n, 0, 10, 10] for n in range(len(ids))]
    entries = [{"id": i, "image_id": 1, "category_id": 1, "bbox": b} for i, b in zip(ids, boxes, strict=True)]
    truth = {
        "images": [{"id": 1, "file_name": "none.png"}],
        "annotations": entries,
        "categories": [{"id": 1, "name": "box"}],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": b, "score": 0.9 - n / 100} for n, b in enumerate(boxes)]
    return truth, found


@pytest.fixture
def files(tmp_path):
    """Writes predictions and truth as files."""

    def write(truth, predictions):
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        (tmp_path / "found.json").write_text(predictions if isinstance(predictions, str) else json.dumps(predictions))
        return tmp_path / "found.json", tmp_path / "truth.json"

    return write


@pytest.mark.parametrize(
    ("ids", "ap"),
    [
        ((1, 2, 3, 4, 5), 1),
        # Of five boxes the third best is lost: precision 1 up to recall 2/5 (41 points), 4/5 up to recall 4/5 (40).
        ((3, 4, 0, 1, 2), (41 + 40 * 4 / 5) / 101),
        ((0,), 0),
        ((1, 2, 3, 4, 0), 81 / 101),  # the least certain one is lost, and costs recall alone
    ],
)
def test_a_box_with_id_zero_is_never_found_where_the_ids_of_the_file_count(files, ids, ap):
    paths = files(*boxes_with_ids(*ids))
    assert score_detections(*paths, annotation_ids="as_in_file").values["ap"] == pytest.approx(ap)
    assert score_detections(*paths).values["ap"] == ONE


def test_the_two_known_saturated_scores_of_the_public_evaluator(files):
    cases = Path(__file__).resolve().parents[3] / "shared" / "cases" / "annotation_ids.json"
    if not cases.is_file():
        pytest.skip("the cases are not beside this checkout")
    for case, ap in zip(json.loads(cases.read_text()), (0.881, 0.723), strict=True):
        paths = files(case["truth"], case["predictions"])
        assert score_detections(*paths, annotation_ids="as_in_file").values["ap"] == pytest.approx(ap, abs=5e-4)
        assert score_detections(*paths).values["ap"] == ONE


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ("{", "malformed JSON"),
        ("{}", "holds a dict"),
        ([3], "entry 0 is 3"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9], "score": 1}], "entry 0 is"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": math.nan}], "entry 0 is"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}], "entry 0 is"),
        ([{"image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1}], "image_id 2, which .*truth"),
        ([{"image_id": 1, "category_id": 9, "bbox": [0, 0, 9, 9], "score": 1}], "category_id 9, which"),
    ],
)
def test_predictions_that_cannot_be_scored_say_where_and_why(files, predictions, message):
    with pytest.raises(ValueError, match=message):
        score_detections(*files(boxes_with_ids(1)[0], predictions))


def test_no_predictions_in_a_file_score_zero(files):
    assert score_detections(*files(boxes_with_ids(1)[0], [])).values["ap"] == 0


def test_classes_of_one_name_are_scored_apart(files):
    truth, found = boxes_with_ids(1, 2)
    truth["categories"].append({"id": 2, "name": "box"})
    truth["annotations"][1]["category_id"] = 2
    assert score_detections(*files(truth, found[:1])).per_class == {"box (category 1)": ONE, "box (category 2)": 0}


def test_ap_alone_has_the_bits_of_ap_among_all_values():
    random = np.random.default_rng(5)
    for case in range(20):
        truth, found = made_up_boxes(random, images=1 + case % 5, classes=1 + case % 3, boxes=case % 7)
        assert coco.ap(found, truth) == coco.score(found, truth).values["ap"]


def made_up_boxes(random, images, classes, boxes):
    """Return a COCO document with random boxes, and predictions near some of them."""
    truth = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": c, "name": f"c{c}"} for c in range(classes)],
    }
    truth["annotations"], found = [], []
    for number in range(boxes * images):
        place = {"image_id": int(random.integers(images)), "category_id": int(random.integers(classes))}
        x, y, w, h = (*random.uniform(0, 200, 2), *random.uniform(5, 150, 2))
        truth["annotations"].append(
            {"id": number + 1, **place, "bbox": [x, y, w, h], "area": w * h, "iscrowd": int(random.random() < 0.1)}
        )
        for _ in range(int(random.integers(3))):
            shift = random.normal(0, 8, 4)
            found.append(
                {**place, "bbox": [x + shift[0], y + shift[1], w + abs(shift[2]), h], "score": random.random()}
            )
    return truth, found
