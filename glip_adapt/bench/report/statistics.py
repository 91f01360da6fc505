"""Bootstrap intervals of means over datasets and seeds, and a paired permutation test.

Letters: D datasets, S seeds, R bootstrap draws, P pairs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000

_TAIL = 0.025  # on either side, so that intervals are 95 %
_MOST_ENUMERATED = 14  # pairs; 2¹⁴ ways to choose their signs are about as much work as DRAWS random ones


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its 95 % bootstrap limits; a limit without a value is infinite."""

    value: float
    low: float
    high: float


def resample_means(values: NDArray[np.float64], draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """Return means over datasets and seeds, (…, D, S) → (…, 1 + R): of the values themselves, then of bootstrap draws.

    A draw takes datasets with replacement and, within each drawn dataset, seeds; the same for all leading axes.
    """
    drawn_datasets, drawn_seeds = _draw_runs(*values.shape[-2:], draws, seed)
    drawn = values[..., drawn_datasets, drawn_seeds]  # (…, R, D, S)
    return np.concatenate([values[..., None, :, :], drawn], axis=-3).mean(axis=(-2, -1))


def interval_of(means: NDArray[np.float64]) -> Interval:
    """Return the 95 % percentile interval of an estimate followed by its draws, (1 + R,).

    A NaN draw has no value; it counts against both limits, as −∞ for the lower and +∞ for the upper one.
    """
    value, drawn = means[0], means[1:]
    undefined = np.isnan(drawn)
    # The outer of two neighbouring draws, since one cannot interpolate towards infinity.
    low = np.quantile(np.where(undefined, -math.inf, drawn), _TAIL, method="lower")
    high = np.quantile(np.where(undefined, math.inf, drawn), 1 - _TAIL, method="higher")
    return Interval(value=float(value), low=float(low), high=float(high))


def permutation_test(differences: Sequence[float] | NDArray[np.float64], draws: int = DRAWS) -> float:
    """Return the two-sided p of a paired permutation test, in which the sign of every difference is a coin toss.

    Up to 14 pairs, all 2^P choices of signs are counted. With more, ``draws`` random ones are, and the data count as
    one of them, so that p is never 0. (SciPy doubles a one-sided p instead, which is another number.) The P pairs must
    be independent of each other.

    Raises:
        ValueError: if there is no pair, or a difference is not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"Expected one finite difference per pair, at least one; got {values.tolist()}.")
    exact = len(values) <= _MOST_ENUMERATED
    flipped = _every_choice(len(values)) if exact else _random_choices(len(values), draws)
    sums = values.sum() - 2 * np.einsum("rp,p->r", flipped, values)  # one thread: BLAS spins on a busy machine
    slack = 1e-9 * np.abs(values).sum()  # equal sums may differ in their last digits
    extreme = int((np.abs(sums) >= abs(values.sum()) - slack).sum())
    return extreme / len(sums) if exact else (1 + extreme) / (1 + draws)


@functools.lru_cache(maxsize=4)
def _draw_runs(datasets: int, seeds: int, draws: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of drawn datasets, (R, D, 1), and of seeds drawn in each, (R, D, S)."""
    random = np.random.default_rng(seed)
    return random.integers(datasets, size=(draws, datasets, 1)), random.integers(seeds, size=(draws, datasets, seeds))


@functools.cache
def _every_choice(pairs: int) -> NDArray[np.float64]:
    """Return every subset of the pairs, (2^P, P), as zeros and ones."""
    return (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1).astype(np.float64)


@functools.lru_cache(maxsize=2)  # the methods of a plan mostly have the same pairs
def _random_choices(pairs: int, draws: int) -> NDArray[np.float64]:
    """Return random subsets of the pairs, (R, P), as zeros and ones; the same every time: a report is repeatable."""
    bits = np.frombuffer(np.random.default_rng(0).bytes(draws * pairs // 8 + 1), dtype=np.uint8)
    return np.unpackbits(bits)[: draws * pairs].reshape(draws, pairs).astype(np.float64)
