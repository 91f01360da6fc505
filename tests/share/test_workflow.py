"""Adapting to a dataset in one call: what it returns, and where the adapter goes."""

import json
import tempfile
from dataclasses import replace

import pytest
import torch

from glip_adapt import FitConfig, load_adapter, load_dataset
from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.structures import Target
from glip_adapt.engine import selection, self_training
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.history import History, Validation
from glip_adapt.engine.selection import START, Candidate
from glip_adapt.share import trials, workflow
from glip_adapt.share.card import read_facts
from glip_adapt.share.outcome import Observer
from glip_adapt.share.workflow import adapt_dataset

NOTHING = Target(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
FILES = {"adapter.json", "adapter.safetensors", "training.json", "index.html"}
SHORT = FitConfig(max_steps=1, short_sides=(64,), test_short_side=64)


@pytest.fixture
def adapt(tiny_trunk, coco_folder, tmp_path):
    """Adapt to the generated dataset from one shot, into a folder."""

    def run(**options):
        data = options.pop("data", None) or load_dataset(coco_folder)
        given = {"method": "prompt", "shots": 1, "out": tmp_path / "adapter", "recipe": SHORT} | options
        return adapt_dataset(tiny_trunk, data, **given)

    return run


def without_val(data):
    return replace(data, splits={name: split for name, split in data.splits.items() if name != "val"})


def test_the_result_holds_the_saved_model_and_the_scores_of_before_and_after(adapt, tiny_trunk, tmp_path):
    steps = []
    done = adapt(observer=Observer(on_step=lambda step, total: steps.append((step.step, total))))
    assert steps == [(1, 1)]
    assert len(done.history.steps) == 1
    assert done.folder == tmp_path / "adapter"
    loaded = load_adapter(done.folder, trunk=tiny_trunk)
    for name, tensor in done.model.owned_tensors().items():
        assert tensor.equal(loaded.owned_tensors()[name])
    facts = read_facts(done.folder)
    assert (facts.shots, facts.seed) == (1, 3)
    assert facts.metrics == {
        "AP to expect": done.expected,
        "zero-shot AP on the same images": done.zero_shot,
        "test AP, zero-shot": done.before.ap,
        "test AP": done.after.ap,
    }


def test_a_named_recipe_decides_about_training_and_about_the_method(adapt):
    changes = {"max_steps": 1, "short_sides": (64,), "test_short_side": 64, "max_long_side": 96}
    strong, published = (
        adapt(method="lora", recipe=name, changes=changes, overwrite=True) for name in ("strong", "published")
    )
    assert (strong.model.adapter.part, published.model.adapter.part) == ("all+image", "all")
    assert [done.tried[0].recipe.factors for done in (strong, published)] == [(0.3, 0.5, 0.7, 0.85), ()]
    assert {v.factor for v in published.history.validations} == {1.0}
    own = adapt(method="lora", recipe="strong", settings={"rank": 2}, changes=changes, overwrite=True)
    assert (own.model.adapter.part, own.model.adapter.rank) == ("all+image", 2)


def test_the_start_was_kept_if_no_later_state_was_better(adapt):
    done = adapt()
    for best, expected in (((0,), True), ((0, 2), False), ((), False)):
        validations = [Validation(step, 0.5, step in best) for step in (0, 2)]
        history = History(2, steps=done.history.steps, validations=validations)
        assert replace(done, history=history).kept_start == expected
    assert not replace(done, history=History(2)).kept_start  # nothing was tried


def test_all_shots_are_all_images_with_boxes(adapt):
    read = read_facts(adapt(shots="all").folder)
    assert (read.shots, read.data) == ("all", "shapes/train")


def test_an_adapter_is_replaced_only_when_asked_for_and_before_training(adapt, monkeypatch):
    adapt()
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "fit", lambda *a, **k: pytest.fail("trained"))
        with pytest.raises(FileExistsError, match="holds an adapter already"):
            adapt(method="linear_probe")
    done = adapt(method="linear_probe", overwrite=True)
    assert {file.name for file in done.folder.iterdir()} == FILES


def test_the_folder_is_tried_before_training(adapt, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "fit", lambda *a, **k: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot take"):
        adapt(out=tmp_path / "file" / "x")
    (tmp_path / "baked").mkdir()
    (tmp_path / "baked" / "baked.json").touch()
    with pytest.raises(FileExistsError, match=r"holds a baked model\. Name another folder"):
        adapt(out=tmp_path / "baked", overwrite=True)


def test_an_adapter_whose_folder_was_taken_meanwhile_goes_beside_it(adapt, tmp_path, monkeypatch, caplog):
    save = AdaptedModel.save

    def taken_first(model, folder, **options):
        if folder == tmp_path / "adapter":
            save(model, folder)
        save(model, folder, **options)

    monkeypatch.setattr(AdaptedModel, "save", taken_first)
    assert adapt().folder == tmp_path / "adapter-2"
    assert str(tmp_path / "adapter-2") in caplog.text
    assert read_facts(tmp_path / "adapter-2") is not None


def test_an_adapter_that_has_no_room_is_rescued_and_the_error_says_where(adapt, tiny_trunk, tmp_path, monkeypatch):
    save = AdaptedModel.save

    def no_room(model, folder, **options):
        if folder == tmp_path / "adapter":
            raise OSError("No room.")
        save(model, folder, **options)

    monkeypatch.setattr(AdaptedModel, "save", no_room)
    (tmp_path / "rescued").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "rescued"))
    with pytest.raises(OSError, match="No room") as raised:
        adapt()
    (other,) = (tmp_path / "rescued").iterdir()
    assert str(other) in str(raised.value)
    assert load_adapter(other, trunk=tiny_trunk).adapter.name == "prompt"


# Without validation images -------------------------------------------------------------------------------------------


@pytest.fixture
def alone(coco_folder):
    """Six labelled images and nothing else."""
    data = load_dataset(coco_folder)
    return replace(data, splits={"train": data.train})


@pytest.fixture
def run(tiny_trunk, alone, tmp_path):
    def call(**options):
        given = {"out": tmp_path / "adapter", "recipe": replace(SHORT, max_steps=4), "minutes": 60} | options
        return adapt_dataset(tiny_trunk, given.pop("data", alone), **given)

    return call


def test_auto_tries_the_methods_on_held_out_images_and_takes_the_best(run, tiny_trunk):
    seen = []
    done = run(observer=Observer(on_trial=lambda method, seconds: seen.append(method)))
    assert seen == [trial.method for trial in done.tried] == ["exemplars", "prompt", "lora", "full"]
    best = trials.best_trial(done.tried, images=6)
    assert (done.model.adapter.name, done.expected) == (best.method, best.expected)
    assert len(done.history.steps) == best.found.chosen.steps
    assert (done.before, done.after) == (None, None)
    assert load_adapter(done.folder, trunk=tiny_trunk).thresholds == done.model.thresholds
    assert set(done.model.thresholds) == set(done.model.class_names)
    assert {file.name for file in done.folder.iterdir()} == FILES
    assert json.loads(json.dumps(done.to_json()))["method"] == best.method


@pytest.mark.parametrize(
    ("promises", "images", "expected"),
    [
        ([(0.3, True), (0.5, True), (0.2, True)], 100, 1),  # far apart
        ([(0.3, True), (0.5, True), (0.48, True)], 100, 2),  # within 0.025 of the best
        ([(0.3, True), (0.5, True), (0.47, True)], 100, 1),
        ([(0.3, True), (0.5, True), (0.48, False)], 100, 1),  # full keeps the start
        ([(0.3, False), (0.3, False), (0.3, False)], 9, 0),  # nothing helps
        ([(None, True), (None, True), (None, True)], 2, 2),  # nothing could be held out
    ],
)
def test_the_strongest_method_is_taken_unless_another_promises_more_than_noise(promises, images, expected):
    assert trials.choose(promises, images) == expected


def test_a_killed_call_goes_on_with_the_folds_that_it_has(run, tmp_path):
    def kill(step, total):
        if step.step == 6:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(method="prompt", observer=Observer(on_step=kill))
    assert len(list((tmp_path / "adapter" / ".folds").iterdir())) == 1
    steps = []
    run(method="prompt", observer=Observer(on_step=lambda step, total: steps.append(step.step)))
    assert steps[0] == 5
    assert not (tmp_path / "adapter" / ".folds").exists()


def test_what_does_not_fit_the_time_is_left_out_and_said(run):
    done = run(minutes=1e-4)
    assert [trial.found for trial in done.tried] == [None] * 4
    assert all("not tried" in trial.remark for trial in done.tried)
    assert done.model.adapter.name == "zero_shot"
    assert not done.kept_start
    assert "zero-shot detection" in (done.folder / "index.html").read_text()


def test_the_first_method_that_trains_gets_fewer_steps_where_time_is_short(run, monkeypatch):
    monkeypatch.setattr(trials._Cost, "seconds", lambda cost, steps: 250.0 * steps)
    solved, trained, _, _ = run(recipe=replace(SHORT, max_steps=40), minutes=100).tried
    for first in (solved, trained):
        assert (first.recipe.max_steps, first.remark) == (20, "20 steps instead of 40, to stay within 100 minutes")
        assert first.found is not None


def test_where_there_is_no_time_to_train_the_labels_are_looked_at(run, monkeypatch):
    monkeypatch.setattr(trials._Cost, "seconds", lambda cost, steps: 0.0 if cost.trial.method == "exemplars" else 1e9)
    done = run()
    assert [trial.found is not None for trial in done.tried] == [True, False, False, False]
    assert "not tried: it takes about" in done.tried[1].remark
    assert done.model.adapter.name == "exemplars"


def test_what_trains_nothing_says_nothing_about_the_pace_of_training(run, monkeypatch):
    def forecast(cost, steps):
        return 1e-9 if cost.trial.method == "exemplars" else cost.seconds_per_image

    monkeypatch.setattr(trials._Cost, "seconds", forecast)
    assert run().tried[1].found is not None


def test_what_does_not_fit_the_memory_is_left_out_and_said(run, monkeypatch):
    monkeypatch.setattr(trials, "_lack_of_memory", lambda model, *others: "too big" if model.owned else "")
    done = run()
    assert [(trial.found, trial.remark) for trial in done.tried] == [(None, "not tried: too big")] * 4


def test_a_single_image_gets_the_cheapest_method(run, alone):
    single = replace(alone.train, records=alone.train.records[:1])
    done = run(data=replace(alone, splits={"train": single}))
    assert [trial.found is not None for trial in done.tried] == [True, False, False, False]
    assert (done.expected, done.interval) == (None, None)
    assert "One image cannot tell what to expect of others." in (done.folder / "index.html").read_text()


def test_training_goes_on_from_another_adapter(run, tiny_trunk, tmp_path, monkeypatch):
    """What to expect is found from the beginning, as the adapter has seen the images."""
    start = load_adapter(run(method="prompt").folder, trunk=tiny_trunk)
    before = start.copy_owned()
    monkeypatch.setattr(selection, "_best", lambda scores, cautious: START)
    later = run(start=start, out=tmp_path / "later")
    fresh = run(method="prompt", out=tmp_path / "fresh")
    assert (later.expected, later.zero_shot) == (fresh.expected, fresh.zero_shot)
    assert later.kept_start
    assert all(tensor.equal(before[name]) for name, tensor in later.model.owned_tensors().items())
    assert "It went on from another adapter" in later.page.read_text()
    with pytest.raises(ValueError, match="go on from is one of prompt, not lora"):
        run(start=start, method="lora", out=tmp_path / "other")
    with pytest.raises(ValueError, match="go on from detects red box, blue box, but the classes here, negatives"):
        run(start=start, negatives=["cat"], out=tmp_path / "other")


def test_from_zero_shot_detection_it_starts_anew(run, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "METHODS", ("prompt", "full"))
    start = run(minutes=1e-4).model
    assert start.adapter.name == "zero_shot"
    later = run(start=start, out=tmp_path / "later")
    assert [trial.method for trial in later.tried] == list(trials.METHODS)
    assert "It went on from another adapter" not in later.page.read_text()


def test_classes_may_be_worded_by_other_names(run, alone, tiny_trunk):
    """As the official prompts of two public sets do."""
    names = ("crimson box", "azure box")
    data = replace(alone, splits={"train": replace(alone.train, aliases=names)})
    done = run(method="prompt", data=data, classes=[ClassPrompt(name=name) for name in names])
    assert set(load_adapter(done.folder, trunk=tiny_trunk).thresholds) == set(names)


def test_ctrl_c_in_the_last_training_saves_nothing_and_keeps_the_folds(run, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "_best", lambda scores, cautious: Candidate(4, 1.0))

    def interrupt(step, total):
        if step.step == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(method="prompt", observer=Observer(on_step=interrupt))
    assert not (tmp_path / "adapter" / "adapter.json").exists()
    assert len(list((tmp_path / "adapter" / ".folds").iterdir())) == 3


def test_zero_shot_and_estimate_count_the_same_classes(run, alone):
    """A class on one image only cannot be held out, so it counts in neither of them."""
    first, *others = (
        replace(record, learned=Target(record.target.boxes_xyxy[:1], torch.tensor([int(i == 0)])), annotations=())
        for i, record in enumerate(alone.train.records)
    )
    done = run(data=replace(alone, splits={"train": replace(alone.train, records=(first, *others))}), method="prompt")
    assert done.zero_shot == done.tried[0].found.start
    assert done.interval[0] <= done.expected <= done.interval[1]
    assert "where other images show it too" in done.page.read_text()


def test_a_folder_without_labelled_boxes_is_refused(run, alone):
    empty = replace(
        alone.train, records=tuple(replace(r, learned=NOTHING, annotations=()) for r in alone.train.records)
    )
    with pytest.raises(ValueError, match=r"has a box to learn from\. Label some first"):
        run(data=replace(alone, splits={"train": empty}))


def test_images_without_boxes_are_learned_from_when_asked_for(run, alone, monkeypatch):
    seen = []
    records = (*alone.train.records, replace(alone.train.records[0], image_id=99, learned=NOTHING, annotations=()))
    data = replace(alone, splits={"train": replace(alone.train, records=records)})

    def note(model, train, *arguments, **options):
        seen.append(len(train))
        raise KeyboardInterrupt  # what it would find is not asked here

    monkeypatch.setattr(trials, "cross_validate", note)
    for backgrounds in (0, 3):
        with pytest.raises(KeyboardInterrupt):
            run(data=data, method="prompt", backgrounds=backgrounds)
    assert seen == [6, 7]


def test_negatives_stand_in_the_caption_and_are_never_shown(run, alone, tiny_trunk):
    done = run(method="prompt", negatives=["green box"])
    loaded = load_adapter(done.folder, trunk=tiny_trunk)
    assert loaded.class_names == ("red box", "blue box", "green box")
    assert loaded.thresholds["green box"] == 1.0
    with pytest.raises(ValueError, match="'red box' is a class of shapes"):
        run(negatives=["red box"], overwrite=True)


def test_a_named_method_takes_the_time_that_it_needs(tiny_trunk, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(trials._Cost, "seconds", lambda cost, steps: 1e9)
    recipe = replace(SHORT, max_steps=2)
    done = adapt_dataset(tiny_trunk, alone, "prompt", out=tmp_path / "a", recipe=recipe)
    assert [(trial.found is not None, trial.remark) for trial in done.tried] == [(True, "")]


@pytest.mark.parametrize(("scores", "note"), [((0.1, 0.4), "AP 10.0 → 40.0"), ((0.4, 0.1), "did not help")])
def test_unlabelled_images_are_learned_from_if_that_helps(adapt, coco_folder, tmp_path, monkeypatch, scores, note):
    answers = iter(scores)
    monkeypatch.setattr(self_training, "pooled_ap", lambda folds, found: next(answers))
    monkeypatch.setattr(self_training, "balanced_thresholds", lambda matches: dict.fromkeys(matches.class_names, 0.0))
    more = sorted((coco_folder / "test").glob("*.png"))
    done = adapt(shots=2, unlabelled=more, data=without_val(load_dataset(coco_folder)))
    assert note in done.page.read_text()
    assert load_adapter(done.folder, trunk=done.model.trunk).trained_parameters


def test_an_adapter_to_go_on_from_and_unlabelled_images_do_not_go_together(adapt, tmp_path):
    first = adapt()
    with pytest.raises(ValueError, match="has seen some of the images"):
        adapt(start=first.model, unlabelled=[tmp_path / "a.png"], out=tmp_path / "other")
