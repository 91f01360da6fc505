"""The first run: the whole protocol over thirteen synthetic sets, for a machine with neither weights nor data."""

from __future__ import annotations

from typing import Any

from glip_adapt.bench.plan import BenchPlan

NOTE = (
    "The thirteen datasets are synthetic pictograms and glip-nano is a trunk of 3 million parameters, pre-trained on "
    "such pictograms: this shows how the methods compare, not what GLIP does on photographs."
)
SHOTS = 5
# A third to half of the steps of the trunk's recipe, and one validation: the first run should take minutes.
SHORTER: dict[str, Any] = {"max_steps": 30, "validate_every": 30}


def quickstart_plan(full: bool) -> BenchPlan:
    """Return zero-shot and 5 shots with one seed, or all shots with three."""
    return BenchPlan(
        trunks=("glip-nano",),
        datasets=("glyphs13",),
        methods=("prompt", "linear_probe", "full"),
        shots=(0, 1, 3, SHOTS, 10, "all") if full else (0, SHOTS),
        seeds=(3, 30, 300) if full else (3,),
        fit={} if full else SHORTER,
    )
