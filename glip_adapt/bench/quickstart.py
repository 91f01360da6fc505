"""The first run: the whole protocol over thirteen synthetic sets, for a machine with neither weights nor data."""

from __future__ import annotations

from typing import Any

from glip_adapt.bench.plan import BenchPlan, ProtocolConfig

NOTE = (
    "The thirteen datasets are synthetic pictograms and glip-nano is a trunk of 3 million parameters, pre-trained on "
    "such pictograms: this shows how the methods compare, not what GLIP does on photographs."
)
SHOTS = 5
# The first run should take minutes: a sixth to a half of the steps of the trunk's recipe, images of one size, and no
# validation, which would have few states to choose from.
SHORTER: dict[str, Any] = {
    "prompt": {"max_steps": 25},
    "linear_probe": {"max_steps": 40},
    "full": {"max_steps": 25, "short_sides": (160,)},
}


def quickstart_plan(full: bool) -> BenchPlan:
    """Return zero-shot and 5 shots with one seed, or all shots with three."""
    return BenchPlan(
        trunks=("glip-nano",),
        datasets=("glyphs13",),
        methods=("prompt", "linear_probe", "full"),
        shots=(0, 1, 3, SHOTS, 10, "all") if full else (0, SHOTS),
        seeds=(3, 30, 300) if full else (3,),
        fit={} if full else SHORTER,
        protocol=ProtocolConfig() if full else ProtocolConfig(selection="last"),
    )
