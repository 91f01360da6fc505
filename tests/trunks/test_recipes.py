"""Training recipes: the published numbers of each family, those of the nano trunks, and which table wins."""

from dataclasses import replace

import pytest
from small_dino import SMALL_DINO

from glip_adapt.adapters import ADAPTERS
from glip_adapt.adapters.full import Full
from glip_adapt.core.errors import UnknownNameError
from glip_adapt.core.settings import FitConfig, ViewConfig
from glip_adapt.engine.adapted import attach
from glip_adapt.trunks import recipes
from glip_adapt.trunks.catalogue import load_trunk
from glip_adapt.trunks.dino.family import DinoFamily
from glip_adapt.trunks.recipes import NANO, Recipes
from glip_adapt.trunks.released import TRUNKS, default_recipe, method_settings, published_recipe

PUBLISHED = {  # copies, plateau patience, stop patience; README.md of the public code
    1: (8, 3, 8),
    3: (4, 3, 8),
    5: (2, 3, 8),
    10: (1, 3, 8),
    "all": (1, 2, 4),
}


@pytest.mark.parametrize("shots", PUBLISHED)
@pytest.mark.parametrize("method", ["full", "linear_probe", "prompt", "text_encoder"])
def test_the_recipe_is_the_published_one(method, shots):
    recipe = published_recipe(method, shots)
    assert (recipe.copies, recipe.plateau_patience, recipe.stop_patience) == PUBLISHED[shots]
    expected = (0.05, 0.25) if method == "prompt" else (1e-4, 0.05)
    assert (recipe.learning_rate, recipe.weight_decay) == expected
    assert (recipe.text_learning_rate, recipe.bias_rate_factor, recipe.clip_norm) == (1e-5, 2.0, 1.0)
    assert (recipe.batch_size, recipe.epochs, recipe.seed) == (4, 200, 10)
    assert (recipe.plateau_factor, recipe.min_learning_rate) == (0.1, 1e-6)
    assert (recipe.short_sides, recipe.max_long_side, recipe.flip) == ((480, 560, 640, 720, 800), 1333, True)
    assert (recipe.view.short_side, recipe.view.max_long_side) == (800, 1333)


@pytest.mark.parametrize("method", ["full", "linear_probe", "prompt", "text_encoder"])
@pytest.mark.parametrize("shots", PUBLISHED)
def test_only_the_nano_trunks_have_a_recipe_of_their_own(method, shots):
    assert default_recipe("glip-t", method, shots) == published_recipe(method, shots)
    recipe = default_recipe("glip-nano-a", method, shots)
    assert recipe == default_recipe("glip-nano", method, shots)
    assert (recipe.test_short_side, recipe.flip, recipe.schedule) == (160, False, "cosine")
    others = default_recipe("glip-nano", method, 5)
    ratio = 1 / 3 if shots == 1 else 1
    assert recipe.learning_rate == pytest.approx(ratio * others.learning_rate)
    assert recipe.text_learning_rate == pytest.approx(ratio * others.text_learning_rate)
    assert recipe.max_steps == (others.max_steps // 2 if shots == 1 else others.max_steps)


DINO = [name for name, spec in TRUNKS.items() if isinstance(spec.family, DinoFamily) and spec.public_file]


@pytest.mark.parametrize("shots", PUBLISHED)
@pytest.mark.parametrize("method", ["full", "linear_probe", "prompt", "text_encoder", "lora", "context"])
def test_the_grounding_dino_family_has_the_recipe_of_its_own_public_code(method, shots):
    recipe, glip = default_recipe(DINO[0], method, shots), published_recipe(method, shots)
    assert [name for name in DINO if default_recipe(name, method, shots) != recipe] == []
    assert recipe == replace(
        glip,
        weight_decay=glip.weight_decay if method == "prompt" else 1e-4,
        text_learning_rate=1e-4 if method == "full" else glip.text_learning_rate,
        clip_norm=0.1,
        bias_rate_factor=1.0,
        short_sides=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    )


def test_full_trains_all_but_backbone_and_bert_of_the_grounding_dino_family():
    network = DinoFamily().build(SMALL_DINO)
    for name in DINO:
        owned = Full(**TRUNKS[name].settings["full"]).owned(network)
        left = {key for key in network.state_dict() if key not in owned}
        assert left == {key for key in network.state_dict() if ".backbone." in key or ".bert." in key}
        assert {"text_encoder.projection.weight", "image_encoder.projections.0.0.weight"} <= set(owned)


def test_lora_from_three_shots_may_keep_the_start_and_learns_slower():
    three, five = (default_recipe("glip-nano", "lora", shots) for shots in (3, 5))
    assert (three.keep_start, five.keep_start) == (True, False)
    assert three.learning_rate == pytest.approx(five.learning_rate / 3)
    assert three.max_steps == five.max_steps


def test_what_is_said_of_a_case_wins_over_shots_and_these_over_the_method_and_the_base():
    recipes = Recipes(
        base={"copies": 2, "epochs": 3, "batch_size": 5, "seed": 7},
        methods={"prompt": {"copies": 20, "epochs": 30, "batch_size": 50}},
        shots={1: {"copies": 200, "epochs": 300}},
        cases={("prompt", 1): {"copies": 2000}},
    )
    found = [recipes.of(*case, ViewConfig()) for case in (("prompt", 1), ("prompt", 3), ("full", 1), ("full", 3))]
    assert [(r.copies, r.epochs, r.batch_size, r.seed) for r in found] == [
        (2000, 300, 50, 7),
        (20, 30, 50, 7),
        (200, 300, 5, 7),
        (2, 3, 5, 7),
    ]


def test_a_recipe_without_tables_is_the_default_as_the_trunk_is_tested():
    view = ViewConfig(short_side=96, max_long_side=800)
    assert Recipes().of("prompt", 5, view) == FitConfig(test_short_side=96, max_long_side=800)


def test_factors_scale_both_rates_and_the_steps_and_leave_an_open_number_of_steps_open():
    rates = {"learning_rate": 0.4, "text_learning_rate": 0.2}
    recipes = Recipes(base=rates, methods={"prompt": {"max_steps": 81}}, factors={1: (0.5, 1 / 3)})
    one, five = (recipes.of("prompt", shots, ViewConfig()) for shots in (1, 5))
    assert (one.learning_rate, one.text_learning_rate, one.max_steps) == (0.2, 0.1, 27)
    assert (five.learning_rate, five.text_learning_rate, five.max_steps) == (0.4, 0.2, 81)
    assert recipes.of("full", 1, ViewConfig()).max_steps is None


def test_every_recipe_of_the_nano_trunks_is_one_that_training_takes():
    """``FitConfig`` refuses unknown names and impossible values."""
    view = ViewConfig(short_side=160, max_long_side=320)
    for method in NANO.methods:
        for shots in (1, 3, 5, 10, "all"):
            recipe = NANO.of(method, shots, view)
            assert recipe.max_steps is None or recipe.max_steps >= recipe.validate_every, (method, shots)


def test_every_table_of_recipes_is_that_of_a_trunk():
    tables = [value for value in vars(recipes).values() if isinstance(value, Recipes)]
    of_trunks = [table for spec in TRUNKS.values() for table in (spec.recipes, spec.strong, spec.ft_fsod)]
    assert [table for table in tables if all(table is not other for other in of_trunks)] == []
    assert default_recipe("dino-nano", "lora", 5).learning_rate == 4e-4
    assert default_recipe("glip-nano", "lora", 5).learning_rate == 6e-3


@pytest.mark.parametrize("shots", [1, 3, 5, 10, "all"])
@pytest.mark.parametrize("method", [name for name in ADAPTERS if name != "zero_shot"])
@pytest.mark.parametrize("trunk", ["glip-nano", "dino-nano", "glip-t", "mm-grounding-dino-t"])
def test_the_strong_recipe_has_ways_back_and_compositions_and_keeps_the_rates(trunk, method, shots):
    published, strong = (default_recipe(trunk, method, shots, name) for name in ("published", "strong"))
    assert strong.keep_start
    assert strong.factors == (0.3, 0.5, 0.7, 0.85)
    if method == "exemplars":
        assert strong.compositions is None
    else:
        more = trunk.endswith("nano") and (method, shots) == ("full", 1)
        assert strong.compositions.per_image == (32 if more else 8 if trunk.endswith("nano") else 3)
        assert strong.compositions.colour == (1 if more else 0)
        assert strong.module_factors == ((0.0, 0.5, 1.5) if more else ())
    assert published.factors == (strong.factors if method == "exemplars" else ())
    assert published.compositions is None
    if (method, shots) != ("lora", 3):  # where the published one holds LoRA back
        assert (strong.learning_rate, strong.text_learning_rate) == (
            published.learning_rate,
            published.text_learning_rate,
        )


def test_the_strong_recipe_puts_lora_everywhere_for_less_than_a_twentieth_of_the_numbers():
    settings = method_settings("glip-nano", "lora", "strong")
    assert method_settings("glip-nano", "lora") == {}
    model = attach(load_trunk("glip-nano"), "lora", classes=["cat"], settings=settings)
    assert 0 < model.trained_parameters < 0.05 * TRUNKS["glip-nano"].parameters
    assert method_settings("glip-t", "full", "strong") == method_settings("glip-t", "full")


@pytest.mark.parametrize(("shots", "published"), [(2, 1), (4, 3), (9, 5), (25, 10)])
@pytest.mark.parametrize("trunk", ["glip-t", "glip-nano"])
def test_a_number_of_shots_between_published_ones_takes_the_recipe_of_the_smaller_one(trunk, shots, published):
    for method in ("full", "prompt", "lora"):
        assert default_recipe(trunk, method, shots) == default_recipe(trunk, method, published)


def test_a_recipe_of_one_method_is_refused_for_others():
    assert default_recipe("mm-grounding-dino-t", "full", 5, "ft-fsod").waiting == ("encoder",)
    with pytest.raises(ValueError, match="This recipe is for full, zero_shot, not for prompt"):
        default_recipe("mm-grounding-dino-t", "prompt", 5, "ft-fsod")


def test_a_method_may_be_given_with_its_settings():
    assert default_recipe("glip-nano", Full(), 5) == default_recipe("glip-nano", "full", 5)
    assert default_recipe("glip-nano", Full(), 5) != default_recipe("glip-nano", "prompt", 5)


def test_a_recipe_of_another_name_is_refused():
    with pytest.raises(UnknownNameError, match="recipe 'strng' \\(did you mean 'strong'"):
        default_recipe("glip-nano", "full", 5, "strng")


def test_ft_fsod_is_a_recipe_of_its_family_alone():
    recipe = default_recipe("mm-grounding-dino-t", "full", 5, "ft-fsod")
    assert (recipe.learning_rate, recipe.weight_decay, recipe.clip_norm, recipe.batch_size) == (1e-4, 0.05, 0.1, 2)
    assert (recipe.plateau_factor, recipe.plateau_patience, recipe.later_patience) == (0.5, 3, 8)
    assert method_settings("mm-grounding-dino-t", "full", "ft-fsod") == {"frozen": ()}
    with pytest.raises(UnknownNameError, match="'ft-fsod'; valid are 'published', 'strong'"):
        default_recipe("glip-t", "full", 5, "ft-fsod")


def test_ft_fsod_names_modules_of_its_family():
    network = DinoFamily().build(SMALL_DINO)
    modules = {name for name, _ in network.named_modules()}
    recipe = default_recipe("mm-grounding-dino-t", "full", 5, "ft-fsod")
    assert {*recipe.waiting, *recipe.rate_factors} <= modules
