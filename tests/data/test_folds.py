"""Folds of a few labelled images."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from glip_adapt.data.folds import draw_folds

IMAGES = st.lists(st.frozensets(st.integers(0, 5), max_size=3), min_size=1, max_size=20)


@given(IMAGES, st.integers(1, 5), st.integers(0, 3))
def test_every_image_is_in_one_fold_and_no_fold_is_empty(present, count, seed):
    folds = draw_folds(present, count, seed)
    assert sorted(position for fold in folds for position in fold) == list(range(len(present)))
    assert len(folds) == min(count, len(present))
    assert all(folds)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(2, 4), st.integers(0, 3))
def test_images_of_one_class_each_are_spread_as_evenly_as_can_be(labels, count, seed):
    folds = draw_folds([{label} for label in labels], count, seed)
    for label in set(labels):
        held = [sum(labels[position] == label for position in fold) for fold in folds]
        assert max(held) - min(held) <= 1


def test_the_rarest_class_is_placed_first():
    """Two images have the rare class 1, one of them beside the common class 0: each fold gets one of them."""
    present = [{0}, {0}, {0, 1}, {1}]
    for seed in range(10):
        folds = draw_folds(present, 2, seed)
        assert [Counter(label for position in fold for label in present[position])[1] for fold in folds] == [1, 1]


def test_the_seed_moves_equal_images():
    assert len({str(draw_folds([{0}] * 8, 2, seed)) for seed in range(10)}) > 1
    assert draw_folds([{0}] * 8, 2, 5) == draw_folds([{0}] * 8, 2, 5)
