"""A plan with trunks of two families: it runs, goes on after a loss, and its report keeps the trunks apart."""

import shutil

import pytest
import torch
from public_files import VOCABULARY
from small_dino import SMALL_DINO, shrink

from glip_adapt.bench.benchmark import run_benchmark
from glip_adapt.bench.plan import BenchPlan
from glip_adapt.bench.records import read_records
from glip_adapt.bench.report.write import write_report
from glip_adapt.trunks.dino.family import DinoFamily
from glip_adapt.trunks.weights import save_tensors

TRUNKS = ("glip-nano", "mm-grounding-dino-t")
SMALL = {"short_sides": [64], "test_short_side": 64, "max_long_side": 80, "max_steps": 2, "validate_every": 1}


@pytest.fixture
def plan(coco_folder, tmp_path, monkeypatch):
    """The weights of the second trunk lie in a folder, with their vocabulary."""
    shrink(monkeypatch, TRUNKS[1])
    weights = tmp_path / "weights"
    weights.mkdir()
    torch.manual_seed(0)
    save_tensors(DinoFamily().build(SMALL_DINO).state_dict(), weights / "model.safetensors", {})
    shutil.copy(VOCABULARY, weights / "vocab.txt")
    return BenchPlan(
        trunks=TRUNKS,
        datasets=(str(coco_folder),),
        methods=("full",),
        shots=(0, 1),
        seeds=(3,),
        checkpoints={TRUNKS[1]: str(weights)},
        fit=SMALL,
    )


def test_a_plan_with_two_families_runs_goes_on_and_reports(plan, tmp_path):
    out = tmp_path / "out"
    summary = run_benchmark(plan, out)
    assert (summary.done, summary.failed) == (4, 0)
    first = {record.key.name: record for record in read_records(out)}
    lost = [name for name in first if "--full--1--3" in name]
    assert len(lost) == 2  # one of each trunk
    adapters = [out / name / "adapter" / "adapter.safetensors" for name in lost]
    learned = [path.read_bytes() for path in adapters]
    for name in lost:
        shutil.rmtree(out / name)
    assert run_benchmark(plan, out).done == 2
    assert [path.read_bytes() for path in adapters] == learned
    again = {record.key.name: record for record in read_records(out)}
    for name, record in first.items():
        assert again[name].metrics == record.metrics, name
    nano, dino = (again[name].config for name in sorted(lost))
    assert nano["settings"] == {"frozen": [], "denoising": 0}
    assert dino["settings"] == {"frozen": ["image_encoder.backbone", "text_encoder.bert"], "denoising": 0}
    assert (nano["fit"]["clip_norm"], dino["fit"]["clip_norm"]) == (1.0, 0.1)

    files = write_report(out)
    kinds = ("data_efficiency", "comparison", "cost", "stages")
    expected = {f"{kind}--{trunk}" for kind in kinds for trunk in TRUNKS} | {"trunks"}
    assert {path.stem for path in files.figures} == expected
    page = files.page.read_text()
    assert "What trunk and method give" in page
    for trunk in TRUNKS:
        assert f"Mean over 1 dataset, {trunk}" in page
        for title in ("Data efficiency of", "Methods on", "Cost of the methods on", "Seconds per run on"):
            assert f"{title} {trunk}" in page
    assert "| trunk | dataset | method |" in files.markdown.read_text()
