"""The supervised baseline in a plan: beside glip-nano, and with a method that it refuses."""

import shutil

import pytest

from glip_adapt.bench.benchmark import run_benchmark
from glip_adapt.bench.plan import BenchPlan
from glip_adapt.bench.records import read_records
from glip_adapt.bench.report.write import write_report

SMALL = {"short_sides": [64], "test_short_side": 64, "max_long_side": 80, "max_steps": 2, "validate_every": 1}


@pytest.fixture
def plan(coco_folder):
    return BenchPlan(
        trunks=("glip-nano", "dyhead-nano"),
        datasets=(str(coco_folder),),
        methods=("full", "linear_probe"),
        shots=(1,),
        seeds=(3,),
        fit=SMALL,
    )


def test_it_stands_beside_a_grounded_detector_and_goes_on(plan, tmp_path):
    out = tmp_path / "out"
    run_benchmark(plan, out)
    first = read_records(out)
    assert {(r.key.trunk, r.key.method) for r in first} == {(t, m) for t in plan.trunks for m in plan.methods}
    lost = next(path for path in out.iterdir() if "dyhead-nano" in path.name)
    shutil.rmtree(lost)
    run_benchmark(plan, out)
    assert [record.metrics for record in read_records(out)] == [record.metrics for record in first]
    assert "dyhead-nano" in write_report(out).markdown.read_text()
