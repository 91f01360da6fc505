"""Training without validation images, on the tiny trunk."""

import itertools
from dataclasses import replace

import pytest
import torch

from glip_adapt.core.settings import FitConfig
from glip_adapt.core.structures import Target
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.split import Annotation
from glip_adapt.engine import selection
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.evaluate import evaluate, predict_split, score
from glip_adapt.engine.fold_files import FoldFiles, fold_key
from glip_adapt.engine.selection import GRID, START, Candidate, bounded, cross_validate, fit, shots_of, train_candidate
from glip_adapt.engine.train import train_model

CLASSES = ("red box", "blue box")
SHORT = FitConfig(
    short_sides=(64,), test_short_side=64, batch_size=2, schedule="cosine", max_steps=4, learning_rate=0.01
)


@pytest.fixture
def data(coco_folder):
    return load_dataset(str(coco_folder))


@pytest.fixture
def build(tiny_trunk):
    return lambda method="linear_probe": attach(tiny_trunk, method, classes=CLASSES)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def only(record, label):
    """Return an image with one box, of this class."""
    box = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
    return replace(record, learned=Target(box, torch.tensor([label])), annotations=())


@pytest.mark.parametrize("method", ["linear_probe", "prompt", "lora", "full"])
def test_the_model_is_as_before_and_no_image_is_seen_by_the_model_that_looks_at_it(build, data, method, monkeypatch):
    model, seen = build(method), []
    before = model.copy_owned()

    def note(model, rest, val, config, **others):
        seen.append({record.image_id for record in rest.records})
        return train_model(model, rest, val, config, **others)

    monkeypatch.setattr(selection, "train_model", note)
    found = cross_validate(model, data.train, SHORT)
    assert same(model.copy_owned(), before)
    everything = {record.image_id for record in data.train.records}
    assert [everything - set(fold) for fold in found.folds] == seen
    assert set(itertools.chain(*found.folds)) == everything


def test_scores_are_those_of_the_pooled_predictions(build, data):
    """The start needs no training, so its score is that of the trunk on all images."""
    found = cross_validate(build(), data.train, SHORT)
    assert found.start == pytest.approx(evaluate(build(), data.train, SHORT.view).ap)
    assert len(found.held_out_start) == len(predict_split(build(), data.train, SHORT.view))
    assert set(found.scores) == {START, *(Candidate(s, f) for s in (1, 2, 4) for f in selection.FACTORS)}


def test_a_candidate_is_scored_as_if_it_had_been_made_from_the_other_folds(build, data):
    found = cross_validate(build(), data.train, SHORT)
    candidate, predictions = Candidate(2, 0.5), []
    for fold in found.folds:
        model = build()
        rest, held = (
            replace(data.train, records=tuple(r for r in data.train.records if (r.image_id in fold) == is_held))
            for is_held in (False, True)
        )
        train_candidate(model, rest, replace(found, chosen=candidate), SHORT)
        predictions += predict_split(model, held, SHORT.view)
    assert found.scores[candidate] == pytest.approx(score(predictions, data.train).ap)


def test_the_best_candidate_is_chosen_and_made_from_all_images(build, data):
    found = cross_validate(build(), data.train, SHORT)
    assert found.scores[found.chosen] == max(found.scores.values())
    chosen, model = Candidate(2, 0.5), build()
    history = train_candidate(model, data.train, replace(found, chosen=chosen), SHORT)
    assert len(history.steps) == 2
    start, trained = build().copy_owned(), build()
    train_model(trained, data.train, None, SHORT, stop_after=2)
    half = {name: torch.lerp(start[name], tensor, 0.5) for name, tensor in trained.owned_tensors().items()}
    assert same(model.copy_owned(), half)


def test_a_training_that_only_hurts_leaves_the_start(build, data):
    model = build()
    before = model.copy_owned()
    found = cross_validate(model, data.train, replace(SHORT, learning_rate=50.0))
    assert found.chosen == START
    assert found.estimate == pytest.approx(found.start)
    history = fit(model, data.train, None, replace(SHORT, learning_rate=50.0))
    assert history.steps == []
    assert same(model.copy_owned(), before)


def test_a_class_counts_only_where_the_other_folds_show_it(build, data):
    """With one image per class nothing can be asked, and the cautious candidate is taken."""
    records = [only(record, label) for label, record in enumerate(data.train.records[:2])]
    pair = replace(data.train, records=tuple(records))
    found = cross_validate(build(), pair, SHORT)
    assert set(found.scores.values()) == {None}
    assert (found.chosen, found.estimate) == (Candidate(2, 0.5), None)


def test_a_class_that_the_other_images_show_only_as_a_crowd_does_not_count(build, data):
    first, second = (only(record, 0) for record in data.train.records[:2])
    crowd = Annotation(data.train.category_ids[1], (30.0, 30.0, 20.0, 20.0), 400.0, iscrowd=True)
    boxes = data.train.annotations_of(first)
    pair = replace(data.train, records=(replace(first, annotations=(*boxes, crowd)), second))
    found = cross_validate(build(), pair, SHORT)
    assert found.scored[second.image_id] == {data.train.category_ids[0]}


def test_a_single_fold_is_refused(build, data):
    with pytest.raises(ValueError, match="folds is 1; expected at least 2"):
        cross_validate(build(), data.train, SHORT, folds=1)


def test_a_single_image_tells_only_whether_training_hurts(build, data):
    single = replace(data.train, records=data.train.records[:1])
    found = cross_validate(build(), single, SHORT)
    assert found.estimate is None
    assert found.chosen in (START, Candidate(2, 0.5))
    hurt = cross_validate(build(), single, replace(SHORT, learning_rate=50.0))
    assert hurt.chosen == START


def test_steps_are_counted_over_all_trainings(build, data):
    seen = []
    fit(build(), data.train, None, SHORT, on_step=lambda step, total: seen.append((step.step, total)))
    assert seen[:12] == [(number, 16) for number in range(1, 13)]
    assert all(12 < number <= 16 for number, _ in seen[12:])


def test_ctrl_c_in_a_fold_ends_the_whole_training_and_leaves_the_start(build, data):
    model = build()
    before = model.copy_owned()

    def interrupt(step, total):
        if step.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, data.train, None, SHORT, on_step=interrupt)
    assert same(model.copy_owned(), before)


def test_a_recipe_without_an_end_of_its_own_gets_one():
    assert bounded(FitConfig(), 5) == FitConfig(schedule="cosine", max_steps=100)
    assert bounded(FitConfig(epochs=2, batch_size=1), 5) == FitConfig(
        epochs=2, batch_size=1, schedule="cosine", max_steps=10
    )
    assert bounded(SHORT, 5) == SHORT
    waits = FitConfig(waiting=("encoder",), stop_patience=100)  # for a fall of the rates, which the cosine has not
    assert bounded(waits, 5) == replace(bounded(FitConfig(), 5), stop_patience=100)


@pytest.mark.parametrize(("shots", "expected"), [(1, 1), (2, 2), (3, 3), ("all", 6)])
def test_without_a_recipe_that_of_trunk_method_and_shots_of_the_split_is_taken(
    build, data, monkeypatch, shots, expected
):
    asked = []
    monkeypatch.setattr(selection, "default_recipe", lambda *which: asked.append(which) or replace(SHORT, max_steps=1))
    fit(build("prompt"), data.train if shots == "all" else data.train.few_shot(shots, seed=3), data.val)
    assert asked == [("glip-nano", "prompt", expected)]


def test_a_whole_split_of_many_images_is_all_data(data):
    assert shots_of(replace(data.train, records=data.train.records * 10)) == "all"
    assert shots_of(replace(data.train, records=())) == 1


def test_a_killed_cross_validation_goes_on_where_it_was(build, data, tmp_path):
    whole, steps = cross_validate(build(), data.train, SHORT), []

    def kill(step, total):
        if step.step == 7:  # in the second fold
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cross_validate(build(), data.train, SHORT, kept=FoldFiles(tmp_path / "folds"), on_step=kill)
    assert len(list((tmp_path / "folds").iterdir())) == 1
    again = cross_validate(
        build(),
        data.train,
        SHORT,
        kept=FoldFiles(tmp_path / "folds"),
        on_step=lambda step, total: steps.append(step.step),
    )
    assert again == whole
    assert steps == list(range(5, 13))


def test_damaged_files_of_folds_are_computed_again(build, data, tmp_path):
    whole = cross_validate(build(), data.train, SHORT, kept=FoldFiles(tmp_path / "folds"))
    for file, damage in zip(sorted((tmp_path / "folds").iterdir()), (b"", b"[]x", b"[1]"), strict=True):
        file.write_bytes(damage)
    assert cross_validate(build(), data.train, SHORT, kept=FoldFiles(tmp_path / "folds")) == whole


def test_another_box_image_or_recipe_is_another_fold(build, data):
    model, train = build(), data.train
    start = model.copy_owned()
    key = fold_key(model, start, SHORT, train, data.val, GRID)
    moved = replace(train, records=(only(train.records[0], 0), *train.records[1:]))
    others = {
        fold_key(model, start, SHORT, moved, data.val, GRID),
        fold_key(model, start, SHORT, data.test, data.val, GRID),
        fold_key(model, start, replace(SHORT, seed=11), train, data.val, GRID),
        fold_key(build("prompt"), build("prompt").copy_owned(), SHORT, train, data.val, GRID),
        fold_key(model, {name: tensor + 1 for name, tensor in start.items()}, SHORT, train, data.val, GRID),
    }
    assert len(others | {key}) == 6
    assert fold_key(build(), build().copy_owned(), SHORT, train, data.val, GRID) == key


def test_with_val_its_images_are_held_out_instead(build, data):
    found = cross_validate(build(), data.train, SHORT, val=data.val)
    assert found.folds == (tuple(record.image_id for record in data.val.records),)
    assert found.start == pytest.approx(evaluate(build(), data.val, SHORT.view).ap)
    assert found.estimate == found.scores[found.chosen] == max(found.scores.values())
