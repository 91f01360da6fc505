"""Matching of predictions with the truth: as pycocotools does it, and cases computed by hand."""

import contextlib
import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glip_adapt.engine.metrics.matching import balanced_thresholds, confusion, match, precision_recall

NAMES = ("cat", "dog", "emu")
_places, _sides = st.integers(0, 6), st.integers(1, 5)
_boxes = st.tuples(_places, _places, _sides, _sides)
_labels = st.integers(0, 2)
_truths = st.lists(st.tuples(st.integers(0, 2), _labels, _boxes, st.booleans()), max_size=12)
_founds = st.lists(st.tuples(st.integers(0, 2), _labels, _boxes, st.integers(1, 6)), max_size=20)


def document(*boxes):
    """Return a COCO document from (image, label, xywh, is crowd)."""
    annotations = [
        {"id": n, "image_id": i, "category_id": 10 * k, "bbox": list(b), "area": b[2] * b[3], "iscrowd": int(crowd)}
        for n, (i, k, b, crowd) in enumerate(boxes, start=1)
    ]
    categories = [{"id": 10 * k, "name": name} for k, name in enumerate(NAMES)]
    return {"images": [{"id": i} for i in range(3)], "annotations": annotations, "categories": categories}


def results(*boxes):
    """Return COCO results from (image, label, xywh, tenths of the score)."""
    return [{"image_id": i, "category_id": 10 * k, "bbox": list(b), "score": s / 10} for i, k, b, s in boxes]


def pairs(matches):
    """Return how often each kind of hit and of false alarm is there, by image, class, boxes and score."""
    found = Counter()
    for image in matches.images:
        for row, hit in enumerate(image.hit.tolist()):
            of_truth = tuple(image.truth_xywh[hit]) if hit >= 0 else None
            label, box = int(image.found_labels[row]), tuple(image.found_xywh[row])
            found[image.image_id, label, box, round(10 * image.scores[row]), of_truth] += 1
    return found


def pairs_of_pycocotools(predictions, truth):
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes([dict(p) for p in predictions]), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.evaluate()
    boxes = {entry["id"]: tuple(map(float, entry["bbox"])) for entry in truth["annotations"]}
    found = Counter()
    for cell in filter(None, evaluation.evalImgs):
        for key, hit, ignored in zip(cell["dtIds"], cell["dtMatches"][0], cell["dtIgnore"][0], strict=True):
            entry = evaluation.cocoDt.anns[key]
            if not ignored:
                place = cell["image_id"], cell["category_id"] // 10, tuple(map(float, entry["bbox"]))
                found[*place, round(10 * entry["score"]), boxes.get(hit)] += 1
    return found


@example([(0, 0, (0, 0, 4, 2), False), (0, 0, (2, 0, 4, 2), False)], [(0, 0, (1, 0, 4, 2), 5)])  # overlaps both alike
@given(_truths, _founds.filter(len))
def test_hits_and_false_alarms_are_those_of_pycocotools(truth, found):
    predictions, truth = results(*found), document(*truth)
    assert pairs(match(predictions, truth)) == pairs_of_pycocotools(predictions, truth)


@given(_truths, _founds, st.integers(1, 7))
def test_a_threshold_gives_the_matches_of_the_predictions_that_reach_it(truth, found, least):
    thresholds = {"cat": least / 10, "dog": 0.3, "emu": 0.0}
    kept = [entry for entry in found if entry[3] / 10 >= thresholds[NAMES[entry[1]]]]
    above = match(results(*found), document(*truth)).above(thresholds)
    assert pairs(above) == pairs(match(results(*kept), document(*truth)))


@given(_truths, _founds)
def test_the_threshold_is_the_highest_with_the_best_f1(truth, found):
    """F1 from counts at every score: 2 hits / (predictions + boxes)."""
    matches = match(results(*found), document(*truth))
    chosen = balanced_thresholds(matches)
    for label, name in enumerate(NAMES):
        boxes = sum(int((image.truth_labels == label).sum()) for image in matches.images)
        f1 = {}
        for tenths in range(1, 7):
            rows = [(i.scores >= tenths / 10) & (i.found_labels == label) for i in matches.images]
            hits = sum(int((m & (i.hit >= 0)).sum()) for m, i in zip(rows, matches.images, strict=True))
            f1[tenths] = 2 * hits / max(1, sum(int(m.sum()) for m in rows) + boxes)
        if any(f1.values()):
            best = max(tenths for tenths, value in f1.items() if value == pytest.approx(max(f1.values())))
            assert chosen[name] == best / 10


@given(_truths, _founds)
def test_the_confusion_matrix_counts_every_box_and_every_prediction_once(truth, found):
    matches = match(results(*found), document(*truth))
    counts = confusion(matches)
    for label in range(3):
        assert counts[label].sum() == sum(int((i.truth_labels == label).sum()) for i in matches.images)
        assert counts[:, label].sum() == sum(int((i.found_labels == label).sum()) for i in matches.images)
        hits = sum(int((i.found_labels[i.hits] == label).sum()) for i in matches.images)
        assert counts[label, label] == hits
    assert counts[3, 3] == 0


@given(_truths, _founds)
def test_hits_and_misses_are_all_boxes_and_hits_and_false_alarms_all_predictions(truth, found):
    for image in match(results(*found), document(*truth)).images:
        assert len(image.hits) + len(image.misses) == len(image.truth_labels)
        assert len(image.hits) + len(image.false_alarms) == len(image.scores)
        assert sorted([*image.hit[image.hits], *image.misses]) == list(range(len(image.truth_labels)))


@given(_truths, _founds)
def test_recall_rises_and_ends_at_all_hits(truth, found):
    matches = match(results(*found), document(*truth))
    for curve in precision_recall(matches):
        assert (np.diff(curve.thresholds) < 0).all()
        assert (np.diff(curve.recall) >= 0).all()
        assert ((curve.precision >= 0) & (curve.precision <= 1)).all()
        assert (curve.recall <= 1).all()


BOX, FAR, FARTHER = (0, 0, 10, 10), (50, 0, 10, 10), (90, 0, 10, 10)


def test_a_curve_by_hand():
    """Hit at 0.9, false alarm at 0.8, two hits at 0.7 of four boxes."""
    truth = document((0, 0, BOX, False), (0, 0, FAR, False), (1, 0, BOX, False), (1, 0, FAR, False))
    found = results((0, 0, BOX, 9), (0, 0, FARTHER, 8), (0, 0, FAR, 7), (1, 0, BOX, 7))
    curve = precision_recall(match(found, truth))[0]
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.7]
    assert curve.precision.tolist() == [1, 1 / 2, 3 / 4]
    assert curve.recall.tolist() == [1 / 4, 1 / 4, 3 / 4]
    assert (curve.boxes, curve.balanced) == (4, 0.7)


def test_of_equal_f1_the_higher_threshold_is_taken():
    """Two boxes: one hit alone, and both hits among four, have F1 2/3."""
    truth = document((0, 0, BOX, False), (0, 0, FAR, False))
    found = results((0, 0, BOX, 9), (0, 0, FARTHER, 8), (1, 0, BOX, 8), (0, 0, FAR, 7))
    assert balanced_thresholds(match(found, truth))["cat"] == 0.9


def test_a_class_without_hits_gets_the_threshold_of_all_together():
    """Cats and dogs have a box each, emus none; dogs are only found in the wrong place."""
    truth = document((0, 0, BOX, False), (0, 1, BOX, False), (1, 0, BOX, False))
    found = results((0, 0, BOX, 8), (1, 0, BOX, 6), (0, 1, FAR, 9), (0, 2, FAR, 3))
    assert balanced_thresholds(match(found, truth)) == {"cat": 0.6, "dog": 0.6, "emu": 0.6}
    for nothing in (results((0, 1, FAR, 9)), []):
        assert balanced_thresholds(match(nothing, truth)) == dict.fromkeys(NAMES, 0.5)


def test_a_confusion_matrix_by_hand():
    """A cat is found, another taken for a dog, a dog missed, and an emu seen where nothing is."""
    truth = document((0, 0, BOX, False), (0, 0, FAR, False), (1, 1, BOX, False))
    found = results((0, 0, BOX, 9), (0, 1, FAR, 8), (1, 2, FARTHER, 7))
    counts = confusion(match(found, truth))
    assert counts.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_a_second_box_on_the_same_object_is_a_false_alarm_on_background():
    counts = confusion(match(results((0, 0, BOX, 9), (0, 1, BOX, 8)), document((0, 0, BOX, False))))
    assert counts.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_a_crowd_region_is_no_box_and_what_lies_in_it_no_false_alarm():
    image = match(results((0, 0, (2, 2, 3, 3), 9)), document((0, 0, BOX, True))).images[0]
    assert (len(image.truth_labels), len(image.scores)) == (0, 0)


def test_errors_say_what_is_missing():
    with pytest.raises(ValueError, match="image 7 and category 0"):
        match(results((7, 0, BOX, 9)), document())
    with pytest.raises(ValueError, match="image 0 and category 90"):
        match(results((0, 9, BOX, 9)), document())
    with pytest.raises(ValueError, match=r"threshold for each class; \['dog', 'emu'\]"):
        match([], document()).above({"cat": 0.5})
