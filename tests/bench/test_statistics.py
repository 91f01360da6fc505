import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.bench.report.statistics import interval_of, permutation_test, resample_means

numbers = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=8)


@given(numbers)
def test_the_sign_of_all_differences_and_their_order_do_not_matter(differences):
    found = permutation_test(differences)
    assert permutation_test([-value for value in reversed(differences)]) == found
    assert 2 ** (1 - len(differences)) <= found <= 1


@given(numbers)
def test_enumeration_agrees_with_the_definition(differences):
    least = abs(sum(differences)) - 1e-9 * sum(map(abs, differences))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    assert permutation_test(differences) == sum(value >= least for value in sums) / len(sums)


def test_a_paired_test_by_hand():
    # Of the eight sums ±1 ±2 ±3, those with |sum| ≥ 4 are 6, 4, −4 and −6.
    assert permutation_test([3.0, 2.0, -1.0]) == 0.5
    assert permutation_test([1.0, 2.0, 1.0]) == 0.25  # ±1 ±2 ±1: only the two extremes reach 4


def test_alike_pairs_have_a_p_of_one_and_equal_differences_the_least():
    assert permutation_test([0.0] * 5) == 1.0
    assert permutation_test([0.1] * 14) == 2 / 2**14  # 0.1 + 0.1 + … differs in its last digits by its order


def test_many_pairs_are_drawn_with_the_data_as_one_of_the_draws():
    assert permutation_test([1.0] * 40, draws=999) == 1 / 1000
    assert permutation_test([1.0, -1.0] * 20, draws=999) == 1.0  # a sum of 0 is the least extreme


def test_random_signs_approach_the_exact_answer():
    # Twenty differences of 1, twelve of them positive: |2·k − 20| ≥ 4 for k of a binomial with n = 20.
    exact = sum(math.comb(20, k) for k in range(21) if abs(2 * k - 20) >= 4) / 2**20
    found = permutation_test([1.0] * 12 + [-1.0] * 8, draws=20_000)
    assert found == pytest.approx(exact, abs=0.01)
    assert permutation_test([1.0] * 12 + [-1.0] * 8, draws=20_000) == found


@pytest.mark.parametrize("differences", [[], [0.1, math.nan], [math.inf]])
def test_a_test_without_pairs_or_with_a_missing_one_is_refused(differences):
    with pytest.raises(ValueError, match="one finite difference per pair, at least one; got"):
        permutation_test(differences)


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_a_draw_is_a_mean_of_runs_and_the_first_one_of_all(datasets, seeds, seed):
    values = np.random.default_rng(seed).random((datasets, seeds))
    means = resample_means(values, draws=50, seed=seed)
    assert means.shape == (51,)
    assert means[0] == pytest.approx(values.mean())
    assert values.min() - 1e-12 <= means.min() <= means.max() <= values.max() + 1e-12


def test_leading_axes_share_the_draws():
    values = np.arange(6.0).reshape(3, 2)
    first, second = resample_means(np.stack([values, values + 1]), draws=100)
    assert second == pytest.approx(first + 1)


def test_an_interval_by_hand():
    # 1 000 draws 1 … 1000: a fortieth lies below 25.975 and above 975.025, and the outer neighbours are 25 and 976.
    found = interval_of(np.concatenate([[500.0], np.arange(1.0, 1001.0)]))
    assert (found.value, found.low, found.high) == (500.0, 25.0, 976.0)


def test_undefined_draws_open_both_limits():
    found = interval_of(np.array([0.5, *([math.nan] * 50), *([0.4] * 50)]))
    assert (found.low, found.high) == (-math.inf, math.inf)
