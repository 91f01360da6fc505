"""Evaluation suites and ODinW-35 in plans."""

from dataclasses import replace

import pytest
from suites_on_disk import write_lvis

from glip_adapt.bench import benchmark, executor
from glip_adapt.bench.benchmark import preview_benchmark, read_plan, run_benchmark
from glip_adapt.bench.plan import BenchPlan, RunKey
from glip_adapt.bench.records import read_records
from glip_adapt.engine import memory
from glip_adapt.trunks import catalogue


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLIP_ADAPT_DATA", raising=False)
    return tmp_path


def test_groups_and_suites_are_spelled_out_by_names_that_runs_can_have(root, monkeypatch):
    (root / "plan.toml").write_text('datasets = ["odinw35", "coco/val2017", "lvis/minival", "lvis/val"]\nshots = [0]')
    plan = read_plan(root / "plan.toml")
    assert len(plan.datasets) == 35 + 3
    assert plan.datasets[0] == "PascalVOC"
    assert plan.datasets[35:] == ("coco", "lvis_minival", "lvis_val")
    forecasts, missing = preview_benchmark(plan, root / "out")
    assert len(forecasts) == len(missing) == 38
    assert "Put coco/annotations/lvis_od_val.json" in missing["lvis_val"]
    monkeypatch.setattr(memory, "estimate_memory", lambda *_: pytest.fail("measured, and not read"))
    assert forecasts[-1].memory.activations > 0


def test_a_run_on_lvis_has_its_metric_and_its_captions_and_the_record_says_so(root, tiny_trunk, monkeypatch):
    for module in (catalogue, executor):
        monkeypatch.setattr(module, "load_trunk", lambda name, **settings: tiny_trunk)
    monkeypatch.setattr(benchmark, "packaged_checksum", lambda name: tiny_trunk.checksum)
    write_lvis(root)
    limits = []
    real = executor.evaluate
    monkeypatch.setattr(executor, "evaluate", lambda *a, **k: (limits.append(k["boxes_per_caption"]), real(*a, **k))[1])
    fit = {"short_sides": [64], "test_short_side": 64, "max_long_side": 80}
    plan = BenchPlan(trunks=("glip-nano",), datasets=("lvis/minival",), shots=(0,), methods=("prompt",), fit=fit)
    run_benchmark(plan, root / "out")
    (record,) = read_records(root / "out")
    assert record.key.name == "glip-nano--lvis_minival--zero_shot--0--3"
    assert record.config["settings"] == {"names_per_caption": 40}
    assert set(record.metrics.values) > {"ap", "ap_rare", "ap_common", "ap_frequent"}
    assert limits == [300]


def test_a_plan_may_ask_for_other_captions_than_published():
    key, given = RunKey("glip-nano", "lvis_val", "zero_shot", 0, 3), {"recipe": "published", "fit": {}}
    for settings, most in (({}, 40), ({"names_per_caption": 1}, 1)):
        resolved = benchmark._resolve(key, {**given, "settings": settings}, "plan", None)
        assert resolved["settings"] == {"names_per_caption": most}
    others = benchmark._resolve(replace(key, dataset="coco"), {**given, "settings": {}}, "plan", None)
    assert others["settings"] == {"names_per_caption": None}
