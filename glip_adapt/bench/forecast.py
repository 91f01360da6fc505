"""Forecast time and memory of a plan: seconds from finished runs of the same kind, memory from small steps.

What the steps of released trunks take is stored. Other memory is measured when it is first asked for, which takes
seconds for each method: states and times come at once.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from glip_adapt.adapters import build_adapter
from glip_adapt.bench.events import PlannedRun
from glip_adapt.bench.plan import ZERO_SHOT, RunKey
from glip_adapt.bench.records import RunRecord
from glip_adapt.core.config import to_mapping
from glip_adapt.engine.step_memory import MemoryEstimate, stored_step

if TYPE_CHECKING:
    from glip_adapt.trunks.catalogue import Trunk


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Images per split of a dataset, None if unknown, and its number of classes; ``val`` selects."""

    train: int | None
    val: int | None
    test: int | None
    classes: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Expected time and memory of one run of a plan.

    Attributes:
        key: which run.
        state: of the run in the results folder; a failed run is done again.
        seconds: mean over the finished runs of the same trunk, method and shots; None without one.
        shown: images that the run looks at, once per view; None if the size of a split is unknown.
        measure: returns the memory of its largest image.
    """

    key: RunKey
    state: Literal["done", "failed", "missing"]
    seconds: float | None
    shown: int | None
    measure: Callable[[], MemoryEstimate] = field(repr=False)

    @functools.cached_property
    def memory(self) -> MemoryEstimate:
        """Memory of one training step on the largest image that the settings allow, libraries not counted."""
        return self.measure()

    @property
    def feature_bytes(self) -> int | None:
        """Most room for the features of the frozen stages, if all are to be kept; None if ``shown`` is unknown."""
        return None if self.shown is None else self.shown * self.memory.features


def forecast_runs(
    runs: Sequence[PlannedRun], records: Iterable[RunRecord], sizes: Mapping[str, Sizes]
) -> list[Forecast]:
    """Return the forecast of each run of a plan.

    Args:
        runs: of the plan.
        records: of the same results folder; their times count.
        sizes: dataset → its sizes.
    """
    seconds = defaultdict(list)  # runs take about as long that share these coordinates
    for record in records:
        if record.cost is not None:
            seconds[record.key.trunk, record.key.method, record.key.shots].append(record.cost.seconds)
    # A plan has one table per method; the published recipe of a trunk may add to it.
    settings = {(run.key.trunk, run.key.method): run.config["settings"] for run in runs}
    # Captions are read one by one, so that their number takes no memory.
    of_zero_shot = to_mapping(build_adapter(ZERO_SHOT, {}))
    settings |= {(trunk, method): of_zero_shot for trunk, method in settings if method == ZERO_SHOT}

    @functools.lru_cache(maxsize=1)
    def trunk(name: str) -> Trunk:
        from glip_adapt.trunks.catalogue import random_trunk

        return random_trunk(name)  # memory does not depend on the weights

    @functools.cache
    def memory(name: str, method: str, short_side: int, long_side: int, recompute: bool) -> MemoryEstimate:
        stored = stored_step(name, method, settings[name, method], recompute)
        if stored is not None:
            return stored.at((short_side, long_side))
        from glip_adapt.engine.memory import estimate_memory

        return estimate_memory(trunk(name), method, (short_side, long_side), recompute, settings[name, method])

    def forecast(run: PlannedRun) -> Forecast:
        key, view, recipe = run.key, run.config["predict"], run.config["fit"] or {}
        sides = max([view["short_side"], *recipe.get("short_sides", ())]), view["max_long_side"]
        measure = functools.partial(memory, key.trunk, key.method, *sides, recipe.get("recompute", False))
        known, shown = seconds[key.trunk, key.method, key.shots], _count_shown(run, sizes[key.dataset])
        return Forecast(key=key, state=run.state, seconds=fmean(known) if known else None, shown=shown, measure=measure)

    return list(map(forecast, runs))


def _count_shown(run: PlannedRun, sizes: Sizes) -> int | None:
    """Return how many images a run looks at, once per view; of few shots it is at most so many. Tiles do not count."""
    shots, recipe, protocol = run.key.shots, run.config["fit"], run.config["protocol"]
    scored, views = sizes.test if protocol["test_split"] == "test" else sizes.val, protocol.get("views") or {}
    if scored is not None:
        scored *= max(1, len(views.get("sizes", ()))) * (1 + views.get("flip", False))
    if recipe is None:
        return scored
    drawn = shots * sizes.classes if shots != "all" else sizes.train
    few_val = sizes.val if drawn is None or sizes.val is None else min(drawn, sizes.val)
    counts = {"best_on_val": sizes.val, "best_on_few_val": few_val, "cross_validation": drawn, "last": 0}
    held_out = counts[protocol["selection"]]
    if drawn is None or held_out is None or scored is None:
        return None
    return drawn * len(recipe["short_sides"]) * (1 + recipe["flip"]) + held_out + scored
