"""What a history says of the states that were scored."""

import pytest

from glip_adapt.engine.history import History, Validation


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        (Validation(0, 0.1, True), "step 0"),
        (Validation(80, 0.1, True), "step 80"),
        (Validation(80, 0.1, True, 0.85), "step 80, moved back to 0.85"),
        (Validation(80, 0.1, True, 0.0, "head"), "step 80, head moved to 0"),
        (Validation(80, 0.1, True, 1.0, "image_encoder"), "step 80, image_encoder moved to 1"),
    ],
)
def test_a_validation_says_which_state_it_scored(validation, said):
    assert validation.state == said


def test_the_state_that_is_kept_is_the_last_that_was_best_and_its_factor_that_of_the_whole_network():
    history = History(10, validations=[
        Validation(0, 0.1, True),
        Validation(10, 0.2, True),
        Validation(10, 0.3, True, 0.5),
        Validation(10, 0.2, False, 0.3),
        Validation(10, 0.4, True, 0.75, "head"),
        Validation(10, 0.3, False, 0.0, "head"),
    ])  # fmt: skip
    assert (history.best_step, history.best_factor, history.best_ap) == (10, 0.5, 0.4)
    assert (history.best, history.best_trained) == (history.validations[4], history.validations[4])
    assert History(10).best is None
    assert (History(10).best_step, History(10).best_factor, History(10).best_ap) == (None, None, None)


def test_the_predictions_are_those_of_the_best_state():
    history, better, worse = History(2), [{"score": 0.9}], [{"score": 0.1}]
    history.note(Validation(1, 0.5, is_best=True), better)
    history.note(Validation(2, 0.3, is_best=False), worse)
    assert history.best_found == better
    assert [validation.step for validation in history.validations] == [1, 2]
