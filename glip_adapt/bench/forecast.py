"""Forecast time and memory of a plan: seconds from finished runs of the same kind, memory from small steps.

Memory is measured when it is first asked for, which takes seconds for each method: states and times come at once.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from glip_adapt.bench.events import PlannedRun
from glip_adapt.bench.plan import RunKey
from glip_adapt.bench.records import RunRecord

if TYPE_CHECKING:
    from glip_adapt.trunks.catalogue import Trunk


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Expected time and memory of one run of a plan.

    Attributes:
        key: which run.
        state: of the run in the results folder; a failed run is done again.
        seconds: mean over the finished runs of the same trunk, method and shots; None without one.
        measure: returns ``peak_bytes``.
    """

    key: RunKey
    state: Literal["done", "failed", "missing"]
    seconds: float | None
    measure: Callable[[], int] = field(repr=False)

    @functools.cached_property
    def peak_bytes(self) -> int:
        """Memory of one training step on the largest image that the settings allow, libraries not counted."""
        return self.measure()


def forecast_runs(runs: Sequence[PlannedRun], records: Iterable[RunRecord]) -> list[Forecast]:
    """Return the forecast of each run of a plan, with the times of the records of the same results folder."""
    seconds = defaultdict(list)  # runs take about as long that share these coordinates
    for record in records:
        if record.cost is not None:
            seconds[record.key.trunk, record.key.method, record.key.shots].append(record.cost.seconds)
    settings = {run.key.method: run.config["settings"] for run in runs}  # a plan has one table per method

    @functools.lru_cache(maxsize=1)
    def trunk(name: str) -> Trunk:
        from glip_adapt.trunks.catalogue import random_trunk

        return random_trunk(name)  # memory does not depend on the weights

    @functools.cache
    def peak_bytes(name: str, method: str, short_side: int, long_side: int, recompute: bool) -> int:
        from glip_adapt.engine.memory import estimate_memory

        return estimate_memory(trunk(name), method, (short_side, long_side), recompute, settings[method]).total

    def forecast(run: PlannedRun) -> Forecast:
        key, view, recipe = run.key, run.config["predict"], run.config["fit"] or {}
        sides = max([view["short_side"], *recipe.get("short_sides", ())]), view["max_long_side"]
        measure = functools.partial(peak_bytes, key.trunk, key.method, *sides, recipe.get("recompute", False))
        known = seconds[key.trunk, key.method, key.shots]
        return Forecast(key=key, state=run.state, seconds=fmean(known) if known else None, measure=measure)

    return list(map(forecast, runs))
