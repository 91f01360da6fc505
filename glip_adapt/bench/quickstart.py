"""The first run: a plan over a small rendered dataset, for a machine with neither weights nor data."""

from __future__ import annotations

from pathlib import Path

from glip_adapt.bench.plan import BenchPlan
from glip_adapt.data.shapes import write_shapes

NOTE = (
    "The dataset is synthetic and the trunk glip-nano is untrained: this shows that the pipeline works, not what GLIP "
    "can do."
)


def quickstart_plan(folder: Path) -> BenchPlan:
    """Return the plan, and write its dataset into ``folder`` unless it is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return BenchPlan(
        trunks=("glip-nano",),
        datasets=(str(write_shapes(folder)),),
        methods=("prompt", "linear_probe", "full"),
        shots=(0, 1, 5),
        seeds=(3,),
        fit={
            "short_sides": [120],
            "test_short_side": 120,
            "max_long_side": 320,
            "epochs": 5,
            "weight_decay": 0.0,
            "learning_rate": 2e-3,
            "text_learning_rate": 2e-3,
            "full": {"epochs": 12},
        },
    )
