"""Settings that could not be used are refused where they are made."""

import pytest

from glip_adapt.core.settings import FitConfig


@pytest.mark.parametrize(
    "name",
    [
        "batch_size",
        "learning_rate",
        "clip_norm",
        "epochs",
        "copies",
        "stop_patience",
        "test_short_side",
        "max_steps",
        "validate_every",
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_a_recipe_of_nothing_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}"):
        FitConfig(**{name: value})


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule is 'cosin'; expected 'plateau' or 'cosine'"):
        FitConfig(schedule="cosin")


@pytest.mark.parametrize("change", [{"test_short_side": 31}, {"max_long_side": 700}])
def test_a_recipe_that_no_validation_could_use_is_refused_at_once(change):
    with pytest.raises(ValueError, match=r"short_side .* and at most max_long_side"):
        FitConfig(**change)


def test_modules_wait_for_a_fall_that_a_cosine_does_not_have():
    with pytest.raises(ValueError, match="schedule = 'cosine' has none"):
        FitConfig(schedule="cosine", waiting=("head",))
