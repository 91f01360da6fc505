"""The recipe, step by step, on the tiny trunk."""

import itertools
import math
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SHARED

from glip_adapt.core.settings import Compositions, FitConfig
from glip_adapt.core.structures import Target
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.images import load_rgb
from glip_adapt.data.transforms import View, collate, view_image, view_target
from glip_adapt.engine import features, samples, train
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.engine.batches import in_batches
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.engine.optimise import NonFiniteLossError, Stepper
from glip_adapt.engine.rates import Rates, parameter_groups
from glip_adapt.engine.train import train_model
from glip_adapt.trunks.catalogue import load_trunk
from glip_adapt.trunks.glip import objective
from glip_adapt.trunks.glip.objective import detection_loss
from glip_adapt.trunks.released import published_recipe

CLASSES = ("red box", "blue box")
SMALL = FitConfig(short_sides=(64,), test_short_side=64, batch_size=2, epochs=1)
ONE_BY_ONE = replace(SMALL, batch_size=1, flip=False)  # with one image: a validation after every step


@pytest.fixture
def data(coco_folder):
    return load_dataset(str(coco_folder))


@pytest.fixture
def single(data):
    """One image to learn from."""
    return replace(data.train, records=data.train.records[:1])


@pytest.fixture
def build(tiny_trunk):
    return lambda method="linear_probe", classes=CLASSES: attach(tiny_trunk, method, classes=classes)


@pytest.fixture
def score_with(monkeypatch):
    """Let validations give these APs, one after the other; returns the models and configs that were scored."""

    def use(aps):
        values, calls = iter(aps), []

        def give(model, split, config, *, cache):
            calls.append((model, split, config))
            return []

        monkeypatch.setattr(train, "predict_split", give)
        monkeypatch.setattr(train, "score_ap", lambda found, split: next(values))
        return calls

    return use


def snapshot(model):
    return {name: tensor.detach().clone() for name, tensor in model.owned_tensors().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# Determinism ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prompt", "full"])
def test_one_seed_gives_one_run_and_another_seed_another(build, data, method):
    """``full`` has dropout in it; views and order are drawn for both."""
    config = replace(SMALL, short_sides=(48, 64), learning_rate=1e-2)
    runs = []
    for seed in (3, 3, 30):
        torch.manual_seed(len(runs))  # the state of the world outside must not matter
        model = build(method)
        history = train_model(model, data.train, None, replace(config, seed=seed))
        runs.append(([step.losses for step in history.steps], snapshot(model)))
    (losses, tensors), (again, tensors_again), (other, tensors_other) = runs
    assert losses == again
    assert same(tensors, tensors_again)
    assert losses != other
    assert not same(tensors, tensors_other)


def test_fitting_leaves_every_random_state_of_the_caller_alone(build, data):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    train_model(build("full"), data.train, data.val, replace(SMALL, epochs=1))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tobytes())


def test_the_random_state_is_restored_even_after_an_error(build, single, monkeypatch):
    loss = torch.tensor(torch.nan, requires_grad=True)
    monkeypatch.setattr(objective, "detection_loss", lambda *_: {"token": torch.rand(()) * loss})
    before = torch.get_rng_state()
    with pytest.raises(NonFiniteLossError):
        train_model(build(), single, None, ONE_BY_ONE)
    assert torch.equal(before, torch.get_rng_state())


# One step ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prompt", "linear_probe"])
def test_images_one_by_one_give_the_gradient_of_the_batch(build, data, method):
    """The first image has half as many boxes as the second, so that a normalisation per image would differ."""
    first, second = data.train.records[:2]
    half = Target(first.target.boxes_xyxy[:1], first.target.labels[:1])
    records = (replace(first, learned=half), second)
    config = replace(SMALL, flip=False, clip_norm=1e9)
    model, gradients = build(method), {}

    def keep(step, total):
        gradients.update({name: tensor.grad.clone() for name, tensor in model.owned_tensors().items()})

    history = train_model(model, replace(data.train, records=records), None, config, on_step=keep)
    assert len(history.steps) == 1

    whole = build(method)
    view = View(64, flip=False)
    views = [(view_image(load_rgb(r.path), view), view_target(r.target, r.size_hw, view)) for r in records]
    (output,) = whole.outputs(collate([pixels for pixels, _ in views]))
    losses = detection_loss(output, [target for _, target in views])
    torch.stack(list(losses.values())).sum().backward()
    assert history.steps[0].losses == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-4)
    for name, tensor in whole.owned_tensors().items():
        torch.testing.assert_close(gradients[name], tensor.grad, rtol=1e-3, atol=1e-4 * tensor.grad.abs().max().item())
    norm = torch.stack([tensor.grad.norm() for tensor in whole.owned_tensors().values()]).norm()
    assert history.steps[0].gradient_norm == pytest.approx(norm.item(), rel=1e-3)


def test_the_gradient_norm_is_clipped_and_reported_as_it_was(build, single):
    model, norms = build(), []

    def keep(step, total):
        norms.append(torch.stack([t.grad.norm() for t in model.owned_tensors().values()]).norm().item())

    (step,) = train_model(model, single, None, replace(ONE_BY_ONE, clip_norm=0.5), on_step=keep).steps
    assert norms == pytest.approx([0.5], rel=1e-3)
    assert step.gradient_norm > 1


def test_a_step_reports_what_happened_in_it(build, data):
    seen = []
    history = train_model(build(), data.train, None, SMALL, on_step=lambda step, total: seen.append((step, total)))
    assert seen == [(step, 3) for step in history.steps]
    assert [step.step for step in history.steps] == [1, 2, 3]
    assert all(step.loss == sum(step.losses.values()) for step in history.steps)
    assert all(step.losses.keys() == {"token", "box", "centerness"} for step in history.steps)
    assert all(step.seconds > 0 and step.learning_rate == 1e-4 for step in history.steps)
    assert (history.total_steps, history.stopped_by, history.validations) == (3, "ceiling", [])
    assert history.best_ap is None


def test_an_epoch_shows_every_image_as_often_as_copies_say_in_one_shuffle(build, data, monkeypatch):
    """All copies are shuffled together, so an image may come twice before another one comes at all."""
    shown = []
    monkeypatch.setattr(
        Stepper, "take", lambda self, step, batch, parts: shown.extend(map(int, re.findall(r"\d+", batch)))
    )
    three, repeats = replace(data.train, records=data.train.records[:3]), 0
    for seed in range(5):
        shown.clear()
        train_model(build(), three, None, replace(ONE_BY_ONE, copies=2, batch_size=3, seed=seed))
        assert sorted(shown) == [1, 1, 2, 2, 3, 3]
        repeats += len(set(shown[:3])) < 3
    assert repeats > 0


def test_every_step_starts_without_the_gradients_of_the_last(build, single):
    config = replace(ONE_BY_ONE, epochs=2, learning_rate=1e-30, clip_norm=1e9)
    first, second = train_model(build(), single, None, config).steps
    assert first.gradient_norm == second.gradient_norm > 0


def test_views_are_drawn_from_all_sides_and_mirrored_or_not(build, single, monkeypatch):
    views = set()
    monkeypatch.setattr(features, "view_image", lambda i, view, longest: views.add(view) or view_image(i, view))
    train_model(build(), single, None, replace(ONE_BY_ONE, short_sides=(32, 48), flip=True, epochs=24))
    assert views == {View(side, flip) for side in (32, 48) for flip in (False, True)}
    views.clear()
    train_model(build(), single, None, replace(ONE_BY_ONE, short_sides=(32,), epochs=6))
    assert views == {View(32, flip=False)}


def test_a_batch_holds_one_size_and_no_image_is_left_behind(build, data, monkeypatch):
    batches, drawn = [], []
    monkeypatch.setattr(samples, "in_batches", lambda images: batches.append(list(images)) or in_batches(batches[-1]))
    train_model(build(), data.train, None, replace(SMALL, short_sides=(32, 48, 64), epochs=20))
    for batch in batches:
        assert len({shape_hw for _, shape_hw in batch}) == 1
        assert len(batch) == SMALL.batch_size
        drawn += [sample.record.image_id for sample, _ in batch]
    shown = [drawn.count(record.image_id) for record in data.train.records]
    waiting = 3 * (SMALL.batch_size - 1)
    assert max(shown) - min(shown) <= waiting + 1


# What is optimised ---------------------------------------------------------------------------------------------------


def test_biases_learn_twice_as_fast_without_decay_and_the_text_encoder_at_its_own_rate(tiny_trunk):
    model = attach(tiny_trunk, "full", classes=CLASSES)
    rate_of, decay_of = rates_and_decays(model, FitConfig(learning_rate=1e-3, text_learning_rate=1e-5))
    assert rate_of["head.box_deltas.weight"] == 1e-3
    assert rate_of["head.box_deltas.bias"] == 2e-3
    assert rate_of["head.bias0"] == rate_of["head.bias_lang"] == 2e-3
    assert rate_of["head.log_scale"] == 1e-3
    assert rate_of["tower.blocks.0.text_layer.query.weight"] == 1e-3  # a part of the head, not of the text encoder
    assert rate_of["text_encoder.bert.embeddings.word_embeddings.weight"] == 1e-5
    assert rate_of["text_encoder.bert.encoder.layer.0.attention.self.query.bias"] == 2e-5
    biases = {name for name in rate_of if "bias" in name.rpartition(".")[2]}
    assert {name for name, decay in decay_of.items() if decay == 0} == biases
    assert set(decay_of.values()) == {0.0, 0.05}
    assert rate_of.keys() == set(model.owned)


def test_a_table_of_relative_position_biases_counts_as_biases(tiny_trunk):
    names = ("image_encoder.attn.relative_position_bias_table", "image_encoder.attn.qkv.weight", "running_mean")
    tensors = {name: torch.nn.Parameter(torch.zeros(2)) for name in names[:2]} | {"running_mean": torch.zeros(2)}
    model = SimpleNamespace(network=tiny_trunk.network, owned_tensors=lambda: tensors)
    rate_of, decay_of = rates_and_decays(model, FitConfig())
    assert rate_of == {names[0]: 2e-4, names[1]: 1e-4}  # what is saved but has no gradient is in no group
    assert decay_of == {names[0]: 0.0, names[1]: 0.05}


def rates_and_decays(model, config):
    name_of = {id(tensor): name for name, tensor in model.owned_tensors().items()}
    groups = parameter_groups(model, config)
    listed = [name_of[id(p)] for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    return tuple(
        {name_of[id(p)]: group[key] for group in groups for p in group["params"]} for key in ("lr", "weight_decay")
    )


def test_weight_decay_pulls_a_prompt_towards_the_original_wording(build, single):
    """AdamW without gradient: a step multiplies by 1 - rate × decay."""
    model = build("prompt")
    offset = model.owned_tensors()["text_prompt.offset"]
    with torch.no_grad():
        offset.fill_(1.0)
    config = replace(ONE_BY_ONE, learning_rate=0.05, weight_decay=0.25, clip_norm=1e-30)
    train_model(model, single, None, config)
    torch.testing.assert_close(offset.detach(), torch.full_like(offset, 1 - 0.05 * 0.25), rtol=0, atol=1e-4)


# The published recipe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shots", "images", "total", "between"),
    [(1, 1, 400, 2), (3, 3, 600, 3), (5, 5, 500, 2), (10, 10, 500, 2), ("all", 3, 150, 1), ("all", 13, 650, 3)],
)
def test_the_ceiling_and_the_validations_are_those_of_the_public_loader(
    build, data, score_with, monkeypatch, shots, images, total, between
):
    """Reference: fewshot_protocol.md, section 4. The steps themselves are left out, and their images."""
    monkeypatch.setattr(Stepper, "take", lambda *_: None)
    monkeypatch.setattr(train, "draw_batches", lambda *_: ([] for _ in itertools.count()))
    monkeypatch.setattr(AdaptedModel, "train", lambda *_: None)
    score_with(n / 1000 for n in range(1000))
    split = replace(data.train, records=(data.train.records * 3)[:images])
    history = train_model(build(), split, data.val, published_recipe("linear_probe", shots))
    assert history.total_steps == total
    steps = [validation.step for validation in history.validations]
    assert steps == sorted({*range(between, total + 1, between), total})


def test_a_number_of_steps_and_of_steps_between_validations_replace_the_epochs(build, data, score_with, monkeypatch):
    monkeypatch.setattr(Stepper, "take", lambda *_: None)
    monkeypatch.setattr(AdaptedModel, "train", lambda *_: None)
    score_with(n / 1000 for n in range(1000))
    history = train_model(build(), data.train, data.val, replace(SMALL, max_steps=11, validate_every=4))
    assert history.total_steps == 11
    assert [validation.step for validation in history.validations] == [4, 8, 11]


def test_a_cosine_falls_from_the_rate_to_nothing_whatever_the_validations_say(build, single, data, score_with):
    history, *_ = run_aps(build, single, data, score_with, [0.5] + [0.1] * 5, schedule="cosine", plateau_patience=0)
    expected = [1e-4 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert [step.learning_rate for step in history.steps] == pytest.approx(expected)


# Plateau, early stopping, the best state -----------------------------------------------------------------------------


def run_aps(build, single, data, score_with, aps, **changes):
    """Fit with one step per validation; returns the history, the model, and its state after each validation."""
    model, states = build(), []
    score_with(aps)
    config = replace(ONE_BY_ONE, epochs=len(aps), short_sides=(32,), **changes)
    history = train_model(model, single, data.val, config, on_validation=lambda v: states.append(snapshot(model)))
    return history, model, states


def rates(history):
    return [round(step.learning_rate, 12) for step in history.steps]


@pytest.mark.parametrize(("aps", "kept"), [([0.5, 0.4, 0.3], 0), ([0.3, 0.4, 0.2], 1)])
def test_the_state_before_training_is_kept_where_none_scores_higher(build, single, data, score_with, aps, kept):
    model, states = build(), []
    score_with(aps)
    config = replace(ONE_BY_ONE, epochs=2, short_sides=(32,), keep_start=True)
    history = train_model(model, single, data.val, config, on_validation=lambda v: states.append(snapshot(model)))
    assert [validation.step for validation in history.validations] == [0, 1, 2]
    assert history.best_ap == aps[kept]
    assert same(states[0], snapshot(build()))
    assert not same(states[0], states[1])
    assert same(snapshot(model), states[kept])


def test_rates_fall_after_one_evaluation_more_than_the_plateau_patience(build, single, data, score_with):
    aps = [0.5, 0.4, 0.5, 0.3, 0.4]
    history, *_ = run_aps(build, single, data, score_with, aps, plateau_patience=2)
    assert rates(history) == [1e-4, 1e-4, 1e-4, 1e-4, 1e-5]


def test_a_new_best_starts_the_plateau_afresh(build, single, data, score_with):
    aps = [0.5, 0.4, 0.6, 0.5, 0.5, 0.5]
    history, *_ = run_aps(build, single, data, score_with, aps, plateau_patience=1)
    assert rates(history) == [1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-5]


def test_the_state_before_training_counts_neither_for_the_plateau_nor_for_the_patience(build, single, data, score_with):
    aps = [0.5, 0.1, 0.2, 0.3, 0.6]  # training loses what the start knew, and then surpasses it
    changes = {"keep_start": True, "plateau_patience": 0, "stop_patience": 1, "max_steps": 4}
    history, *_ = run_aps(build, single, data, score_with, aps, **changes)
    assert rates(history) == [1e-4] * 4
    assert (history.stopped_by, history.best_step) == ("ceiling", 4)


def test_a_training_that_is_cut_short_ends_with_a_validation(build, single, data, score_with):
    score_with([0.5])
    config = replace(ONE_BY_ONE, max_steps=4, validate_every=3)
    history = train_model(build(), single, data.val, config, stop_after=2)
    assert [validation.step for validation in history.validations] == [2]
    assert history.total_steps == 4


def test_validation_images_without_anything_to_find_are_refused(build, data):
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    blank = replace(data.val, records=tuple(replace(r, annotations=(), learned=nothing) for r in data.val.records))
    with pytest.raises(ValueError, match="val has no labelled object that could be found"):
        train_model(build(), data.train, blank, SMALL)


def test_all_rates_fall_together_down_to_the_floor(build, single, data, score_with):
    history, *_ = run_aps(build, single, data, score_with, [0.5] + [0.4] * 5, plateau_patience=0)
    assert rates(history) == [1e-4, 1e-4, 1e-5, 1e-6, 1e-6, 1e-6]


def test_evaluations_within_the_cooldown_do_not_count(build, single, data, score_with):
    changes = {"plateau_patience": 0, "plateau_cooldown": 1}
    history, *_ = run_aps(build, single, data, score_with, [0.5] + [0.4] * 4, **changes)
    assert rates(history) == [1e-4, 1e-4, 1e-5, 1e-5, 1e-6]


def test_what_has_waited_gets_its_rate_as_far_as_rates_have_fallen_and_then_another_patience():
    learning, waiting = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [learning], "lr": 1e-3}, {"params": [waiting], "lr": 0.0, "later": 4e-3}]
    optimiser = torch.optim.AdamW(groups)
    config = FitConfig(plateau_factor=0.5, plateau_patience=0, later_patience=2)
    told, schedule = [], Rates(optimiser, config, total_steps=9)
    for ap in (0.5, 0.4, 0.4, 0.4, 0.4):
        schedule.after_validation(ap)
        told.append(tuple(group["lr"] for group in optimiser.param_groups))
    assert told == [(1e-3, 0.0), *[(5e-4, 2e-3)] * 3, (2.5e-4, 1e-3)]


def test_a_waiting_module_learns_once_rates_have_fallen(tiny_trunk, single, data, score_with):
    score_with([0.5, 0.4, 0.4, 0.4, 0.4, 0.4])
    model, seen = attach(tiny_trunk, "full", classes=CLASSES), []
    config = replace(
        ONE_BY_ONE, max_steps=5, plateau_patience=1, plateau_factor=0.5, later_patience=9, waiting=("head",), epochs=9
    )
    train_model(model, single, data.val, config, on_step=lambda *_: seen.append(model.copy_owned()))
    moved = [
        {name.startswith("head.") for name in one if not torch.equal(one[name], other[name])}
        for one, other in itertools.pairwise(seen)
    ]
    assert moved[:2] == [{False}, {False}]  # AP falls short at steps 2 and 3, and then rates fall
    assert moved[2:] == [{True, False}] * 2


def test_rates_of_modules_are_their_factor_of_the_others(tiny_trunk):
    model, alike = attach(tiny_trunk, "full", classes=CLASSES), {"bias_rate_factor": 1.0, "text_learning_rate": 1e-4}
    factors = {"head": 0.5, "text_encoder": 0.2}
    rate_of, _ = rates_and_decays(model, FitConfig(**alike, rate_factors=factors))
    for name, rate in rate_of.items():
        assert rate == pytest.approx(1e-4 * factors.get(name.partition(".")[0], 1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"waiting": ("neck",)}, "names the module 'neck'"),
        ({"rate_factors": {"hed": 0.5}}, "names the module 'hed'"),
        ({"waiting": ("head",)}, "All that is trained would wait"),
    ],
)
def test_modules_that_do_not_learn_are_no_part_of_a_recipe(build, changes, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(build("linear_probe"), FitConfig(**changes))


def test_an_ap_of_zero_never_advances_the_plateau(build, single, data, score_with):
    aps = [0.0] * 4 + [0.2, 0.1, 0.0, 0.0, 0.1, 0.1]
    history, *_ = run_aps(build, single, data, score_with, aps, plateau_patience=1, stop_patience=99)
    assert rates(history) == [1e-4] * 9 + [1e-5]


def test_zero_ties_with_the_best_at_the_start_so_it_neither_stops_nor_is_lost(build, single, data, score_with):
    history, model, states = run_aps(build, single, data, score_with, [0.0] * 4, stop_patience=1)
    assert [v.is_best for v in history.validations] == [True] * 4
    assert (history.stopped_by, history.best_ap) == ("ceiling", 0.0)
    assert same(snapshot(model), states[3])


def test_an_undefined_ap_counts_as_zero(build, single, data, score_with):
    history, *_ = run_aps(build, single, data, score_with, [None, 0.1])
    assert [(v.ap, v.is_best) for v in history.validations] == [(0.0, True), (0.1, True)]


def test_training_stops_after_as_many_evaluations_below_the_best_as_patience_allows(build, single, data, score_with):
    history, model, states = run_aps(build, single, data, score_with, [0.2, 0.5, 0.4, 0.3, 0.4, 0.9], stop_patience=3)
    assert [v.step for v in history.validations] == [1, 2, 3, 4, 5]
    assert len(history.steps) == 5
    assert (history.stopped_by, history.best_ap, history.total_steps) == ("patience", 0.5, 6)
    assert same(snapshot(model), states[1])
    assert not same(snapshot(model), states[4])


def test_a_tie_resets_the_patience_and_moves_the_best_to_the_later_state(build, single, data, score_with):
    aps = [0.5, 0.4, 0.5, 0.4, 0.4]
    history, model, states = run_aps(build, single, data, score_with, aps, stop_patience=2)
    assert [v.is_best for v in history.validations] == [True, False, True, False, False]
    assert history.stopped_by == "patience"
    assert same(snapshot(model), states[2])
    assert not same(states[0], states[2])


def test_training_up_to_the_ceiling_keeps_the_best_state_too(build, single, data, score_with):
    history, model, states = run_aps(build, single, data, score_with, [0.1, 0.3, 0.2])
    assert history.stopped_by == "ceiling"
    assert same(snapshot(model), states[1])


def test_validation_scores_the_model_on_val_as_it_is_shown_in_tests(build, single, data, score_with):
    calls, model = score_with([0.5]), build()
    train_model(model, single, data.val, replace(ONE_BY_ONE, test_short_side=96, max_long_side=200))
    ((scored, split, config),) = calls
    assert scored is model
    assert split is data.val
    assert (config.short_side, config.max_long_side) == (96, 200)


def test_real_validations_agree_with_evaluating_afterwards(build, data):
    model = build()
    history = train_model(model, data.train, data.val, SMALL)
    assert [v.step for v in history.validations] == [3]
    assert history.best_ap == (evaluate(model, data.val, SMALL.view).ap or 0.0)


@pytest.mark.parametrize("method", ["text_encoder", "full", "context"])
def test_each_validation_reads_the_text_of_its_own_step(method, build, data):
    """AdamW's fused kernel does not count that it changes weights."""
    model = build(method)
    seen = []

    def compare(validation):
        with torch.no_grad():
            seen.append(model.texts()[0].features)
            assert torch.equal(seen[-1], model.network.encode_text(model.captions[0]).features)

    config = replace(SMALL, max_steps=2, validate_every=1, text_learning_rate=1e-2)
    train_model(model, data.train, data.val, config, on_validation=compare)
    assert not torch.equal(*seen)


# Ways back -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aps", "factor", "kept_ap"),
    [
        ([0.0, 0.0, 0.0], 1.0, 0.0),
        ([0.4, 0.3, 0.3], 1.0, 0.4),
        ([0.4, 0.5, 0.3], 0.8, 0.5),
        ([0.4, 0.45, 0.5], 0.3, 0.5),
        ([0.4, 0.4, 0.2], 0.8, 0.4),
    ],
)
def test_the_best_part_of_the_way_is_kept(build, single, data, score_with, aps, factor, kept_ap):
    model, whole = build("prompt"), []
    start = model.copy_owned()
    score_with(aps)
    config = replace(ONE_BY_ONE, max_steps=1, factors=(0.3, 0.8))
    history = train_model(model, single, data.val, config, on_step=lambda *_: whole.append(model.copy_owned()))
    torch.testing.assert_close(model.copy_owned(), model.adapter.between(start, whole[0], factor))
    assert [v.factor for v in history.validations] == [1.0, 0.8, 0.3]
    assert (history.best_factor, history.best_step, history.best_ap) == (factor, 1, kept_ap)


@pytest.mark.parametrize(("last", "best", "step"), [(0.1, 0.6, 2), (0.6, 0.1, 3)])
def test_ways_back_lead_from_the_last_and_the_best_trained_state_even_if_both_are_worse_than_the_start(
    build, single, data, score_with, last, best, step
):
    model, after = build("prompt"), []
    start = model.copy_owned()
    score_with([0.5, 0.3, 0.4, 0.2, last, best])
    config = replace(ONE_BY_ONE, max_steps=3, validate_every=1, factors=(0.5,), keep_start=True)
    history = train_model(model, single, data.val, config, on_step=lambda *_: after.append(model.copy_owned()))
    looks = [(0, 1), (1, 1), (2, 1), (3, 1), (3, 0.5), (2, 0.5)]
    assert [(v.step, v.factor) for v in history.validations] == looks
    torch.testing.assert_close(model.copy_owned(), model.adapter.between(start, after[step - 1], 0.5))
    assert (history.best_step, history.best_factor) == (step, 0.5)


def test_modules_move_one_after_the_other_from_the_best_part_of_the_way(build, single, data, score_with):
    model, after = build("full"), []
    start = model.copy_owned()
    modules = list(dict.fromkeys(name.partition(".")[0] for name in start))
    best = {modules[0]: 0.0, modules[2]: 0.6}  # of the way; the others stay at 0.5
    looks = [("", 1.0, 0.3), ("", 0.5, 0.4)]
    for module in modules:
        looks += [(module, factor, 0.39 if factor != best.get(module) else 0.5) for factor in (0.6, 0.0)]
    score_with([ap for *_, ap in looks])
    config = replace(ONE_BY_ONE, max_steps=1, factors=(0.5,), module_factors=(0.0, 1.2))
    history = train_model(model, single, data.val, config, on_step=lambda *_: after.append(model.copy_owned()))
    assert [(v.module, v.factor, v.ap) for v in history.validations] == looks
    assert (history.best_step, history.best_factor, history.best_ap) == (1, 0.5, 0.5)
    for name, tensor in model.copy_owned().items():
        factor = best.get(name.partition(".")[0], 0.5)
        torch.testing.assert_close(tensor, model.adapter.between(start, after[0], factor)[name])


@pytest.mark.parametrize(("aps", "looks"), [([0.5, 0.4, 0.3], 3), ([0.5, 0.4, 0.6], 3 + 1), ([0.5, 0.6, 0.3], 3)])
def test_modules_move_up_to_the_trained_state_and_only_if_some_of_the_way_is_best(
    build, single, data, score_with, aps, looks
):
    model = build("prompt")  # of a single module
    score_with([*aps, 0.1])
    config = replace(ONE_BY_ONE, max_steps=1, factors=(0.5,), module_factors=(4.0,), keep_start=True)
    history = train_model(model, single, data.val, config)
    assert len(history.validations) == looks
    assert {v.factor for v in history.validations} == {1.0, 0.5}


def test_modules_move_from_the_trained_state_where_no_part_of_the_whole_way_is_tried(build, single, data, score_with):
    model, whole = build("prompt"), []
    start = model.copy_owned()
    score_with([0.5, 0.6])
    config = replace(ONE_BY_ONE, max_steps=1, module_factors=(0.5,))
    history = train_model(model, single, data.val, config, on_step=lambda *_: whole.append(model.copy_owned()))
    assert [(v.factor, v.module) for v in history.validations] == [(1.0, ""), (0.5, "text_prompt")]
    torch.testing.assert_close(model.copy_owned(), model.adapter.between(start, whole[0], 0.5))


def test_the_start_is_kept_where_no_way_back_is_better(build, single, data, score_with):
    model = build("prompt")
    start = model.copy_owned()
    score_with([0.5, 0.4, 0.3])
    history = train_model(model, single, data.val, replace(ONE_BY_ONE, max_steps=1, factors=(0.5,), keep_start=True))
    torch.testing.assert_close(model.copy_owned(), start)
    assert history.best_step == 0


# Interruption and errors ---------------------------------------------------------------------------------------------


def test_an_interrupt_on_the_way_back_keeps_the_best_state(build, single, data, score_with):
    model, whole = build("prompt"), []
    score_with([0.5])
    config = replace(ONE_BY_ONE, max_steps=1, factors=(0.5,))

    def look(step, total):
        whole.append(model.copy_owned())

    def stop(done):
        raise KeyboardInterrupt

    history = train_model(model, single, data.val, config, on_step=look, on_validation=stop)
    assert history.stopped_by == "interrupt"
    torch.testing.assert_close(model.copy_owned(), whole[0])


def test_compositions_are_learned_from_and_the_steps_are_those_of_the_images(build, data, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "draw_batches", spy_on_splits(train.draw_batches, seen))
    config = replace(SMALL, compositions=Compositions(per_image=2, crop=1.0))
    history = train_model(build(), data.train, None, config)
    assert history.total_steps == max(1, len(data.train) // 2)
    (shown,) = seen
    assert len(shown) == 3 * len(data.train)
    assert all(math.isfinite(step.loss) for step in history.steps)


def spy_on_splits(draw, seen):
    def spy(model, split, *arguments):
        seen.append(split)
        return draw(model, split, *arguments)

    return spy


def test_features_of_compositions_are_kept_like_those_of_images(build, data):
    config = replace(SMALL, flip=False, compositions=Compositions(per_image=3, colour=1.0), epochs=4)
    kept, cache = build("prompt"), FeatureCache()
    train_model(kept, data.train, None, config, cache=cache)
    fresh = build("prompt")
    train_model(fresh, data.train, None, config, cache=FeatureCache(memory_bytes=0))
    assert same(kept.copy_owned(), fresh.copy_owned())
    assert cache.statistics.misses <= 4 * len(data.train)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("factors", {"factors": (0.5, 1.0)}),
        ("factors", {"factors": (0.0,)}),
        ("module_factors", {"factors": (0.5,), "module_factors": (-0.5, 1.5)}),
        ("module_factors", {"module_factors": (float("nan"),)}),
    ],
)
def test_ways_outside_of_their_range_are_refused(name, changes):
    with pytest.raises(ValueError, match=f"^{name}"):
        FitConfig(**changes)


def interrupt_at(number):
    def on_step(step, total):
        if step.step == number:
            raise KeyboardInterrupt

    return on_step


def test_an_interrupt_keeps_the_best_state_so_far_and_says_so(build, single, data, score_with, caplog):
    model, states = build(), []
    score_with([0.5, 0.3, 0.9])
    history = train_model(
        model, single, data.val, replace(ONE_BY_ONE, epochs=3),
        on_step=interrupt_at(3), on_validation=lambda v: states.append(snapshot(model)),
    )  # fmt: skip
    assert (history.stopped_by, len(history.steps), len(history.validations)) == ("interrupt", 3, 2)
    assert same(snapshot(model), states[0])
    assert "Interrupted after 3 steps" in caplog.text
    assert not any(module.training for module in model.network.modules())


def test_an_interrupt_while_the_best_state_is_copied_leaves_the_one_that_the_history_names(
    build, single, data, score_with, monkeypatch
):
    model, states, copies = build(), [], []
    copy = type(model).copy_owned

    def stop_at_the_second(self):
        copies.append(1)
        if len(copies) == 2:
            raise KeyboardInterrupt
        return copy(self)

    monkeypatch.setattr(type(model), "copy_owned", stop_at_the_second)
    score_with([0.3, 0.5])
    history = train_model(
        model, single, data.val, replace(ONE_BY_ONE, epochs=3), on_step=lambda *_: states.append(snapshot(model))
    )
    assert (history.stopped_by, history.best_step, history.best_ap) == ("interrupt", 1, 0.3)
    assert same(snapshot(model), states[0])


def test_an_interrupt_before_any_validation_keeps_the_last_state(build, data):
    model, fresh = build(), snapshot(build())
    history = train_model(model, data.train, None, SMALL, on_step=interrupt_at(2))
    assert (history.stopped_by, len(history.steps)) == ("interrupt", 2)
    assert not same(snapshot(model), fresh)


def break_loss(monkeypatch, step, value):
    """Make the box loss of this step ``value``; images of a step go through together."""
    calls = []

    def loss(*arguments):
        calls.append(1)
        parts = detection_loss(*arguments)
        return parts | {"box": parts["box"] * value} if len(calls) == step else parts

    monkeypatch.setattr(objective, "detection_loss", loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_step_and_images_and_keeps_the_best(
    build, single, data, score_with, monkeypatch, value
):
    model, states = build(), []
    score_with([0.5, 0.3])
    break_loss(monkeypatch, 3, value)
    config = replace(ONE_BY_ONE, epochs=4)
    with pytest.raises(NonFiniteLossError, match=rf"image 1 \(0\.png\).*in step 3:.*box {value}.*images \[1\]"):
        train_model(model, single, data.val, config, on_validation=lambda v: states.append(snapshot(model)))
    assert same(snapshot(model), states[0])
    assert not any(module.training for module in model.network.modules())


def test_the_error_lists_the_whole_batch_and_the_bad_step_changes_nothing(build, data, monkeypatch):
    model = build()
    fresh = snapshot(model)
    break_loss(monkeypatch, 1, float("nan"))
    split = replace(data.train, records=data.train.records[3:5])
    with pytest.raises(NonFiniteLossError, match=r"in step 1:.*images \[(4, 5|5, 4)\]"):
        train_model(model, split, None, SMALL)
    assert same(snapshot(model), fresh)


def test_a_gradient_that_is_not_finite_never_reaches_the_model(build, single, monkeypatch):
    """The root of zero: a finite loss with an infinite slope."""
    model = build()
    monkeypatch.setattr(
        objective, "detection_loss", lambda output, *_: {"token": (output.token_logits.sum() * 0).abs().sqrt()}
    )
    with pytest.raises(NonFiniteLossError, match=r"step 1"):
        train_model(model, single, None, ONE_BY_ONE)
    assert all(torch.isfinite(tensor).all() for tensor in model.owned_tensors().values())


def test_nothing_to_learn_from_is_refused(build, data):
    with pytest.raises(ValueError, match=rf"{data.train.name} has no images"):
        train_model(build(), replace(data.train, records=()), None, SMALL)


def test_another_number_of_classes_is_refused_and_both_are_named(build, data):
    with pytest.raises(ValueError, match=rf"detects the 1 classes .*{data.train.name} has the 2"):
        train_model(build(classes=("box",)), data.train, None, SMALL)


@pytest.mark.parametrize("change", [{"records": ()}, {"classes": ("a", "b", "c"), "category_ids": (1, 2, 3)}])
def test_a_val_split_that_cannot_be_scored_is_refused_before_the_first_step(build, data, change):
    val = replace(data.val, **change)
    with pytest.raises(ValueError, match=val.name):
        train_model(build(), data.train, val, SMALL, on_step=lambda step, total: pytest.fail("a step was made"))


def test_zero_shot_cannot_be_trained(build, data):
    with pytest.raises(ValueError, match="zero_shot owns nothing that could be trained"):
        train_model(build("zero_shot"), data.train, None, SMALL)


def test_an_image_without_boxes_can_be_learnt_from(build, single):
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    empty = replace(single, records=(replace(single.records[0], learned=nothing, annotations=()),))
    (step,) = train_model(build(), empty, None, ONE_BY_ONE).steps
    assert step.losses["box"] == step.losses["centerness"] == 0
    assert step.losses["token"] > 0


# Learning ------------------------------------------------------------------------------------------------------------


def test_prompt_tuning_lowers_its_loss_while_every_frozen_tensor_stays(build, single):
    model = build("prompt")
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    config = replace(ONE_BY_ONE, epochs=20, learning_rate=0.05, weight_decay=0.25)
    losses = [step.loss for step in train_model(model, single, None, config).steps]
    assert losses[-1] < 0.8 * losses[0]
    after = model.network.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"text_prompt.offset"}


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the development data is not beside this checkout")
def test_full_fine_tuning_learns_four_real_images_by_heart():
    data = load_dataset(str(SHARED / "data" / "odinw" / "Raccoon"))
    four = replace(data.train, records=data.train.records[:4])
    model = attach(load_trunk("glip-nano"), "full", classes=data.classes)
    config = FitConfig(
        epochs=100, learning_rate=1e-3, text_learning_rate=1e-3, weight_decay=0.0,
        short_sides=(224,), test_short_side=224, max_long_side=400, flip=False,
    )  # fmt: skip
    train_model(model, four, None, config)
    assert evaluate(model, four, config.view).values["ap50"] >= 0.9
