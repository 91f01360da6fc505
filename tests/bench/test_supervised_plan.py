"""The supervised baseline beside glip-nano: in a plan, and in the report of plans that share a results folder."""

import shutil
from dataclasses import replace

import pytest

from glip_adapt.bench.benchmark import preview_benchmark, run_benchmark
from glip_adapt.bench.plan import BenchPlan
from glip_adapt.bench.records import read_records
from glip_adapt.bench.report.write import write_report
from glip_adapt.data import glyphs13

SMALL = {"short_sides": [64], "test_short_side": 64, "max_long_side": 80, "max_steps": 2, "validate_every": 1}
TRUNKS = ("glip-nano", "dyhead-nano")


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """One set of glyphs13, of few scenes."""
    small = replace(glyphs13.glyph_sets()[1], images=(8, 2, 2))
    monkeypatch.setattr(glyphs13, "glyph_sets", lambda: (small,))
    monkeypatch.setenv("GLIP_ADAPT_DATA", str(tmp_path / "data"))
    return BenchPlan(
        trunks=TRUNKS,
        datasets=(f"glyphs13/{small.name}",),
        methods=("full", "linear_probe"),
        shots=(1,),
        seeds=(3,),
        fit=SMALL,
    )


def of_glip_nano(plan):
    return replace(plan, trunks=TRUNKS[:1], methods=("prompt",))


def test_it_stands_beside_a_grounded_detector_and_goes_on(plan, tmp_path):
    out = tmp_path / "out"
    assert run_benchmark(plan, out).done == 4
    assert run_benchmark(of_glip_nano(plan), out).done == 1
    first = {record.key.name: record for record in read_records(out)}
    rows = {(record.key.trunk, record.key.method) for record in first.values()}
    assert rows == {("glip-nano", "prompt"), *((trunk, method) for trunk in TRUNKS for method in plan.methods)}
    lost = next(name for name in first if name.startswith("dyhead-nano--") and "--full--" in name)
    shutil.rmtree(out / lost)
    summary = run_benchmark(plan, out)
    assert (summary.done, summary.skipped, summary.failed) == (1, 3, 0)
    assert {record.key.name: record.metrics for record in read_records(out)} == {
        name: record.metrics for name, record in first.items()
    }

    files = write_report(out)
    lines = files.markdown.read_text().splitlines()
    for trunk, method in rows:
        assert any(trunk in line and method in line for line in lines), (trunk, method)
    assert not any("dyhead-nano" in line and "prompt" in line for line in lines)
    assert "What trunk and method give" in files.page.read_text()


@pytest.mark.parametrize("start", [run_benchmark, preview_benchmark])
def test_a_method_that_it_does_not_take_is_one_error_before_the_first_run(start, plan, tmp_path):
    both = replace(plan, methods=("prompt", "full"))
    refused = (
        r"^my\.toml, methods: dyhead-nano reads no text.* so prompt has nothing.* Use linear_probe or full.* Give "
    )
    with pytest.raises(ValueError, match=refused + "dyhead-nano a plan of its own; two plans may share one"):
        start(both, tmp_path / "out", where="my.toml")
    assert not (tmp_path / "out").exists()


def test_a_method_of_which_no_run_comes_is_no_error(plan, tmp_path):
    plan = replace(plan, methods=("prompt",), shots=(0,))
    forecasts, _ = preview_benchmark(plan, tmp_path / "out")
    assert [f.key.method for f in forecasts] == ["zero_shot", "zero_shot"]
