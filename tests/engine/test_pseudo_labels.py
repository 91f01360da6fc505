"""Which detections become labels, what training sees of them, and self-training on the tiny trunk."""

from dataclasses import replace

import pytest
import torch

from glip_adapt.core.sentences import sentence_caption
from glip_adapt.core.settings import FitConfig
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.split import Annotation
from glip_adapt.engine import self_training
from glip_adapt.engine.adapted import adapt, attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.features import FrozenFeatures
from glip_adapt.engine.pseudo_labels import (
    captioned_image,
    find_phrases,
    label_images,
    labels_among,
    together,
    unlabelled,
    with_labels,
)
from glip_adapt.engine.ranks import Ranks
from glip_adapt.engine.samples import draw_batches
from glip_adapt.engine.selection import Candidate
from glip_adapt.engine.self_training import self_train
from glip_adapt.engine.train import train_model

SIZE_HW = (30, 40)
SHORT = FitConfig(
    short_sides=(64,), test_short_side=64, batch_size=2, schedule="cosine", max_steps=1, learning_rate=0.01
)


def result(score, box, category=1):
    return {"category_id": category, "bbox": list(box), "score": score}


@pytest.fixture
def data(coco_folder):
    return load_dataset(coco_folder)


def test_scores_places_borders_and_sizes_decide_what_becomes_a_label():
    found = [
        result(0.6, (1, 1, 10, 10)),
        result(0.9, (1, 1, 10, 10.5), category=2),  # the same place, and surer
        result(0.8, (30, 20, 20, 20)),  # beyond the border
        result(0.7, (39, 2, 10, 10)),  # of which one pixel is left
        result(0.49, (15, 15, 5, 5)),
        result(0.5, (20, 2, 6, 6)),
        result(1.0, (2, 20, 6, 6)),
    ]
    labels = labels_among(found, {1: 0.5, 2: 0.5}, SIZE_HW)
    assert [(a.category_id, a.bbox_xywh, pytest.approx(a.score)) for a in labels] == [
        (1, (2, 20, 6, 6), 0.9999),  # never as sure as a hand
        (2, (1, 1, 10, 10.5), 0.9),
        (1, (30, 20, 10, 10), 0.8),
        (1, (20, 2, 6, 6), 0.5),
    ]
    assert labels[2].area == 100
    assert labels_among(found, {1: 0.5, 2: 0.95}, SIZE_HW)[2].bbox_xywh == (1, 1, 10, 10)  # thresholds are of a class
    assert labels_among([], {1: 0.5}, SIZE_HW) == ()


def test_phrases_of_a_sentence_may_share_a_place(coco_folder):
    record = unlabelled(coco_folder / "test" / "0.png")
    found = [result(0.9, (1, 1, 10, 10), category=0), result(0.8, (1, 1, 10, 10), category=1)]
    image = captioned_image(record, sentence_caption("[a man], [the man with the hat]"), found, 0.5)
    assert [a.category_id for a in image.record.annotations] == [0, 1]
    assert image.record.target.labels.tolist() == [0, 1]
    torch.testing.assert_close(image.record.target.weights, torch.tensor([0.9, 0.8]))
    assert unlabelled(record.path).target.labels.tolist() == []


def test_an_image_of_both_keeps_its_labels_and_gets_what_agrees_with_none(data):
    first, second = data.train.records[:2]
    hand = replace(data.train, records=(first,))
    known = hand.annotations_of(first)[0]
    x, y, w, h = known.bbox_xywh
    again = replace(known, bbox_xywh=(x + 1, y, w, h), score=0.7)
    other = Annotation(known.category_id, (0, 0, 3, 3), 9, False, score=0.6)
    label_of = {key: label for label, key in enumerate(hand.category_ids)}
    pseudo = replace(
        data.train,
        records=(with_labels(first, [again, other], label_of), with_labels(second, [other], label_of)),
    )
    both = together(hand, pseudo)
    assert both.annotations_of(both.records[0]) == (*hand.annotations_of(first), other)
    assert [record.path for record in both.records] == [first.path, second.path]
    assert len({record.image_id for record in both.records}) == 2
    assert both.records[1].target.weights.tolist() == [pytest.approx(0.6)]
    assert hand.records[0].target.weights is None


@pytest.mark.parametrize(("weights", "expected"), [("equal", None), ("score", 0.5)])
def test_training_sees_scores_where_it_is_asked_to(tiny_trunk, data, weights, expected):
    label_of = {key: label for label, key in enumerate(data.train.category_ids)}
    records = tuple(
        with_labels(r, [replace(a, score=0.5) for a in data.train.annotations_of(r)], label_of)
        for r in data.train.records
    )
    split, config = replace(data.train, records=records), replace(SHORT, weights=weights)
    model = attach(tiny_trunk, "prompt", classes=data.classes)
    features = FrozenFeatures(model, FeatureCache(), 1333, "float32")
    batches = draw_batches(model, split, features, config, Ranks())
    (target, _), *_ = (sample.prepared for sample in next(batches))
    batches.close()
    assert target.weights is None if expected is None else target.weights.tolist() == [expected] * len(target)


def test_images_are_labelled_by_class_and_captions_by_phrase(tiny_trunk, data):
    model = attach(tiny_trunk, "zero_shot", classes=data.classes)
    sure = label_images(model, data.train.records, data.train, dict.fromkeys(data.classes, 0.0))
    assert sure.classes == data.classes
    assert {record.path for record in sure.records} == {record.path for record in data.train.records}
    assert all(0 < a.score < 1 for record in sure.records for a in record.annotations)
    none = label_images(model, data.train.records, data.train, dict.fromkeys(data.classes, 1.1))
    assert len(none) == 0
    record, sentence = unlabelled(data.train.records[0].path), sentence_caption("[red box]")
    found = find_phrases(adapt(tiny_trunk, "zero_shot"), record, sentence)
    assert captioned_image(record, sentence, found, 0.0).record.annotations
    assert not captioned_image(record, sentence, found, 1.1).record.annotations


def test_weights_are_one_of_two():
    with pytest.raises(ValueError, match="weights is 'scores'; expected 'equal' or 'score'"):
        FitConfig(weights="scores")


# Self-training


@pytest.fixture
def model(tiny_trunk, data):
    return attach(tiny_trunk, "linear_probe", classes=data.classes)


def scored(*scores):
    """Return a stand-in for AP on held-out images, which is asked for once for each number of rounds."""
    answers = iter(scores)
    return lambda folds, found: next(answers)


@pytest.mark.parametrize(("scores", "rounds"), [((0.1, 0.3, 0.2), 1), ((0.1, 0.2, 0.3), 2)])
def test_as_many_rounds_are_made_as_help_held_out_images(model, data, monkeypatch, scores, rounds):
    monkeypatch.setattr(self_training, "pooled_ap", scored(*scores))
    monkeypatch.setattr(self_training, "balanced_thresholds", lambda matches: dict.fromkeys(data.classes, 0.0))
    few, rest = replace(data.train, records=data.train.records[:4]), [r.path for r in data.train.records[4:]]
    found = self_train(model, few, rest, SHORT, rounds=2)
    assert found.rounds == rounds
    assert found.scores == scores
    assert found.history.total_steps == 1
    assert {entry["image_id"] for entry in found.held_out} <= {record.image_id for record in few.records}
    boxes = sum(len(record.annotations) for record in found.labels.records)
    assert f"{boxes} boxes that it found itself in 2 unlabelled images: AP 10.0 → 30.0" in found.summary(2)


def test_no_round_is_one_training_and_held_out_images_are_never_learned_from(model, data, monkeypatch):
    learned, start = [], model.copy_owned()

    def note(model, train, *others, **options):
        learned.append({record.path for record in train.records})
        return train_model(model, train, *others, **options)

    monkeypatch.setattr("glip_adapt.engine.selection.train_model", note)
    monkeypatch.setattr(self_training, "pooled_ap", scored(0.5, 0.1))
    monkeypatch.setattr(self_training, "_candidates", lambda *given: (Candidate(1, 1.0), Candidate(1, 1.0)))
    monkeypatch.setattr(self_training, "balanced_thresholds", lambda matches: dict.fromkeys(data.classes, 0.0))
    few, rest = replace(data.train, records=data.train.records[:4]), [r.path for r in data.train.records[4:]]
    found = self_train(model, few, rest, SHORT)
    hand, more = {record.path for record in few.records}, {*rest}
    folds = learned[3:-1]  # after those of cross-validation, before the last one
    assert [bool(part & more) for part in folds] == [False, True] * 3
    assert all(part & hand < hand for part in folds)
    assert learned[-1] == hand
    assert found.rounds == 0
    assert found.labels is None
    assert "did not help" in found.summary(2)
    assert any(not torch.equal(start[name], tensor) for name, tensor in model.copy_owned().items())


def test_an_error_in_between_leaves_the_model_as_it_was(model, data, monkeypatch):
    start = model.copy_owned()
    monkeypatch.setattr(self_training, "label_images", lambda *a, **k: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        self_train(model, replace(data.train, records=data.train.records[:3]), [data.train.records[4].path], SHORT)
    assert all(torch.equal(start[name], tensor) for name, tensor in model.copy_owned().items())


def test_nothing_to_label_and_no_rounds_are_errors(model, data):
    with pytest.raises(ValueError, match="needs unlabelled images"):
        self_train(model, data.train, ())
    with pytest.raises(ValueError, match="at least 1 round"):
        self_train(model, data.train, ["a.png"], rounds=0)


def test_a_single_image_and_a_class_that_none_shows_get_no_labels(model, tiny_trunk, data, monkeypatch):
    one = replace(data.train, records=data.train.records[:1])
    found = self_train(model, one, [data.train.records[1].path], SHORT)
    assert (found.rounds, found.scores) == (0, (None,))
    assert "Nothing could be held out" in found.summary(1)
    more, asked = data.with_negatives(["tree"]), []
    monkeypatch.setattr(self_training, "label_images", lambda *a, **k: asked.append(a[3]) or label_images(*a, **k))
    few = replace(more.train, records=more.train.records[:2])
    self_train(attach(tiny_trunk, "linear_probe", classes=more.classes), few, [data.train.records[4].path], SHORT)
    assert {thresholds["tree"] for thresholds in asked} == {self_training.NEVER}


def test_exemplars_look_at_every_image_of_a_round(tiny_trunk, data, monkeypatch):
    looked = []
    real = self_training.make

    def make(model, images, candidate, config, **options):
        history = real(model, images, candidate, config, **options)
        looked.append((len(images), len(history.steps)))
        return history

    monkeypatch.setattr(self_training, "make", make)
    monkeypatch.setattr(self_training, "balanced_thresholds", lambda matched: dict.fromkeys(data.classes, 0.0))
    monkeypatch.setattr(self_training, "_candidates", lambda *given: (Candidate(2, 1.0), Candidate(2, 1.0)))
    config = replace(SHORT, batch_size=1, max_steps=None, epochs=1)
    few = replace(data.train, records=data.train.records[:2])  # a look at each of them
    model = attach(tiny_trunk, "exemplars", classes=data.classes)
    files = [record.path for record in data.test.records]
    self_train(model, few, files, config, rounds=1)
    rounds = [(images, steps) for images, steps in looked if images > 2]
    assert rounds
    assert all(steps >= images for images, steps in rounds)
