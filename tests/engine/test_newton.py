"""Evidence of classes in closed form: its sums and its solution, alone and as a method."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import write_shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from second_family import SPEC

from glip_adapt import Exemplars, FitConfig, attach, evaluate, fit, load_dataset, load_trunk
from glip_adapt.data.transforms import View, collate, view_image
from glip_adapt.engine.newton import BIAS_PRIOR, Newton, Sums
from glip_adapt.engine.optimise import NonFiniteLossError
from glip_adapt.engine.ranks import Ranks
from glip_adapt.engine.train import train_model
from glip_adapt.trunks import catalogue, released
from glip_adapt.trunks.protocol import Examples

few = settings(max_examples=20, deadline=None)
CONFIG = FitConfig(short_sides=(64,), test_short_side=64, flip=False, batch_size=1, epochs=1, schedule="cosine")


def random_examples(seed, images=2, candidates=40, classes=3, width=4):
    generator = torch.Generator().manual_seed(seed)
    shape = (images, candidates)
    return Examples(
        2 + 3 * torch.randn(*shape, width, generator=generator, dtype=torch.float64),
        0.02 + 0.9 * torch.rand(*shape, classes, generator=generator, dtype=torch.float64),
        F.one_hot(torch.randint(0, classes, shape, generator=generator), classes).bool(),
        0.1 + torch.rand(*shape, generator=generator, dtype=torch.float64),
    )


def sums_of(*parts):
    sums = Sums(parts[0].scores.shape[2], parts[0].features.shape[2])
    for part in parts:
        sums.add(part)
    return sums


@few
@given(st.integers(0, 1000), st.floats(0.1, 1e3))
def test_the_solution_is_the_newton_step_that_autograd_takes(seed, ridge):
    examples = random_examples(seed)
    x, answers = examples.features.flatten(0, 1), examples.answers.flatten(0, 1).double()
    deviation = (x - x.mean(0)).square().mean().sqrt()
    x = (x - x.mean(0)) / deviation

    def energy(whole):
        w, b = whole.view(3, 5)[:, :4], whole.view(3, 5)[:, 4]
        logits = examples.scores.flatten(0, 1).logit() + x @ w.T + b
        losses = F.binary_cross_entropy_with_logits(logits, answers, reduction="none")
        prior = ridge / 2 * (w.square().sum() + BIAS_PRIOR * b.square().sum())
        return (examples.weights.flatten()[:, None] * losses).sum() + prior

    zero = torch.zeros(15, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(energy, zero)
    step = -torch.linalg.solve(torch.autograd.functional.hessian(energy, zero), slope).view(3, 5)
    weight, bias = sums_of(examples).solve(ridge)
    torch.testing.assert_close(weight, step[:, :4] / deviation, rtol=1e-7, atol=1e-9)
    raw = examples.features.flatten(0, 1)
    torch.testing.assert_close(raw @ weight.T + bias, x @ step[:, :4].T + step[:, 4], rtol=1e-6, atol=1e-8)


@few
@given(st.integers(0, 1000))
def test_images_may_come_one_by_one_and_in_any_order(seed):
    first, second = random_examples(seed), random_examples(seed + 1)
    together = Examples(*map(torch.cat, zip(vars(first).values(), vars(second).values(), strict=True)))
    for sums in (sums_of(first, second), sums_of(second, first)):
        for mine, whole in zip(sums.solve(5.0), sums_of(together).solve(5.0), strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-12)


def test_two_kinds_of_candidates_by_hand():
    """Ten at +1 are of the class, ten at -1 are not, all score a half: slope 10, curvature 20 · ¼."""
    features = torch.tensor([1.0] * 10 + [-1.0] * 10, dtype=torch.float64).view(1, 20, 1)
    examples = Examples(features, torch.full((1, 20, 1), 0.5), features > 0, torch.ones(1, 20))
    weight, bias = sums_of(examples).solve(5.0)
    assert weight.item() == pytest.approx(10 / (5 + 5))
    assert bias.item() == pytest.approx(0)


def test_a_class_that_no_image_shows_has_no_evidence():
    examples = random_examples(0)
    answers = examples.answers.clone()
    answers[..., 1] = False
    weight, bias = sums_of(replace(examples, answers=answers)).solve(5.0)
    assert not weight[1].any()
    assert bias[1] == 0
    assert weight[0].any()
    assert weight[2].any()


def test_it_starts_from_where_the_tensors_are_and_each_part_sees_them_so():
    weight, bias = torch.ones(3, 4, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    newton, seen = Newton(weight, bias, 5.0, Ranks()), []

    def part(seed):
        seen.append(weight.clone())
        yield f"image {seed}", random_examples(seed)

    for step in (1, 2):
        newton.take(step, "images", part(step))
    assert all(torch.equal(one, torch.ones(3, 4, dtype=torch.float64)) for one in seen)
    solved, rise = sums_of(random_examples(1), random_examples(2)).solve(5.0)
    torch.testing.assert_close(weight, 1 + solved)
    torch.testing.assert_close(bias, 1 + rise)


@pytest.mark.parametrize("what", ["features", "scores"])
def test_what_is_not_finite_is_named_and_changes_nothing(what):
    weight, bias = torch.zeros(3, 4), torch.zeros(3)
    newton = Newton(weight, bias, 5.0, Ranks())
    newton.take(1, "images [1]", [("image 1", random_examples(1))])
    before, spoiled = weight.clone(), random_examples(2)
    getattr(spoiled, what)[0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"image 2 .*not finite in step 2.*images \[2\]"):
        newton.take(2, "images [2]", [("image 2", spoiled)])
    assert torch.equal(weight, before)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_the_precision_of_a_prior_is_above_zero(ridge):
    with pytest.raises(ValueError, match="ridge must be above 0"):
        Exemplars(ridge=ridge)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_dataset(write_shapes(tmp_path_factory.mktemp("newton") / "shapes"))


@pytest.mark.parametrize("family", ["tiny_trunk", "dino_trunk"])
class TestMethod:
    def test_each_image_is_looked_at_once_and_the_order_does_not_matter(self, family, request, data):
        trunk, found = request.getfixturevalue(family), []
        for seed in (1, 2):
            model = attach(trunk, "exemplars", classes=data.classes)
            history = train_model(model, data.train, None, replace(CONFIG, seed=seed))
            assert len(history.steps) == len(data.train)
            found.append(model.copy_owned())
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)

    def test_a_strong_prior_changes_little(self, family, request, data):
        trunk, norms = request.getfixturevalue(family), []
        for ridge in (1.0, 1e6):
            model = attach(trunk, Exemplars(ridge=ridge), classes=data.classes)
            train_model(model, data.train, None, CONFIG)
            norms.append(model.copy_owned()[model.owned[0]].norm())
        assert 0 < norms[1] < 1e-3 * norms[0]

    def test_boxes_stay_where_they_are_and_their_scores_move(self, family, request, data):
        trunk = request.getfixturevalue(family)
        images = data.train.records[0].load()
        model = attach(trunk, "exemplars", classes=data.classes)
        batch = collate([view_image(images, View(64, flip=False), 64)])
        with torch.no_grad():
            (before,) = model.outputs(batch)
            train_model(model, data.train, None, CONFIG)
            (after,) = model.outputs(batch)
        boxes = [o.box_deltas if family == "tiny_trunk" else o.layers[-1].boxes for o in (before, after)]
        assert torch.equal(*boxes)
        prepared = [model.network.objective.prepare(data.train.records[0].target, (64, 64))]
        scores = [model.network.examples(output, prepared).scores for output in (before, after)]
        assert not torch.equal(*scores)


def test_a_family_without_a_seam_refuses_it(monkeypatch, data):
    monkeypatch.setitem(released.TRUNKS, "queries", SPEC)
    trunk = catalogue.random_trunk("queries")
    with pytest.raises(ValueError, match="QueryDetector has no seam for evidence"):
        attach(trunk, "exemplars", classes=data.classes)
    with pytest.raises(NotImplementedError, match="does not tell its candidates"):
        trunk.network.examples(None, [])


def test_a_few_pictures_make_a_better_detector_in_seconds():
    """Test AP on Tools with seed 3, from 5 images per class: 60.1 by names alone."""
    data = load_dataset("glyphs13/Tools")
    model = attach(load_trunk("glip-nano"), "exemplars", classes=data.classes)
    fit(model, data.train.few_shot(5, seed=3))
    assert evaluate(model, data.test).ap > 0.63
