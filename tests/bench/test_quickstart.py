"""The plan of the first run, and the strip of pictures at its end, on two generated datasets."""

import json
import shutil

import pytest
import torch
from conftest import write_shapes

from glip_adapt.bench.benchmark import run_benchmark
from glip_adapt.bench.plan import BenchPlan
from glip_adapt.bench.quickstart import CELL, HEADING, SHOTS, _best, draw_strip, quickstart_plan
from glip_adapt.bench.records import read_records
from glip_adapt.data.dataset import load_dataset


def test_the_first_plan_has_thirteen_sets_and_three_methods():
    plan = quickstart_plan(full=False)
    assert len(plan.keys()) == 1 + 3  # for the suite as a whole
    assert plan.shots == (0, SHOTS)


def test_a_plan_made_by_hand_may_name_a_suite(monkeypatch, tmp_path):
    """The thirteen sets are spelled out before anything is loaded."""
    asked = []
    monkeypatch.setattr("glip_adapt.bench.benchmark._check_datasets", lambda *given: None)  # would render them
    monkeypatch.setattr("glip_adapt.bench.benchmark.run_plan", lambda plan, *rest, **more: asked.append(plan))
    run_benchmark(quickstart_plan(full=False), tmp_path)
    assert len(asked[0].keys()) == 13 * (1 + 3)


def test_the_full_plan_has_all_shots_and_three_seeds():
    plan = quickstart_plan(full=True)
    assert len(plan.keys()) == 1 + 3 * 5 * 3
    assert not plan.fit


@pytest.fixture(scope="module")
def finished(tiny_trunk, tmp_path_factory):
    """A folder with a dataset and the results of a plan over it."""
    folder = tmp_path_factory.mktemp("quickstart")
    plan = BenchPlan(
        trunks=("glip-nano",), datasets=(str(write_shapes(folder / "shapes")),), methods=("prompt", "linear_probe"),
        shots=(0, 1, 5), seeds=(3, 30), fit={"short_sides": [64], "test_short_side": 64, "max_steps": 1},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glip_adapt.bench.executor.load_trunk", lambda name, **settings: tiny_trunk)
        run_benchmark(plan, folder / "results")
    return folder


@pytest.fixture
def results(finished, tmp_path):
    return shutil.copytree(finished / "results", tmp_path / "results")


def test_the_strip_has_a_row_per_dataset_and_a_picture_per_method(results):
    strip = draw_strip(results, 5, "title")
    assert strip.size == (4 * CELL[1], 40 + CELL[0] + HEADING)  # truth, zero-shot, two methods
    colours = strip.getcolors(strip.width * strip.height)
    assert len(colours) > 20


def test_as_many_boxes_are_shown_as_there_are_objects_and_those_the_best(results, finished):
    split = load_dataset(str(finished / "shapes")).test
    record = split.records[0]
    key = next(run.key for run in read_records(results) if (run.key.method, run.key.shots) == ("prompt", 5))
    entries = [
        {"image_id": record.image_id, "category_id": 0, "bbox": [1, 2, 10, 20], "score": 0.2},
        {"image_id": record.image_id, "category_id": 7, "bbox": [3, 4, 10, 20], "score": 0.9},
        {"image_id": record.image_id, "category_id": 7, "bbox": [5, 6, 10, 20], "score": 0.5},
        {"image_id": split.records[1].image_id, "category_id": 7, "bbox": [7, 8, 10, 20], "score": 1.0},
    ]
    (results / key.name / "predictions.json").write_text(json.dumps(entries))
    found = _best(results, key, record, split)
    assert len(record.target) == 2
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert torch.equal(found.boxes_xyxy, torch.tensor([[3.0, 4, 13, 24], [5, 6, 15, 26]]))
    assert [split.classes[label] for label in found.labels] == ["blue box", "blue box"]


def test_a_folder_without_runs_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished run at 0 or 5 shots"):
        draw_strip(tmp_path, 5)


@pytest.mark.parametrize("content", ["[", "3", "[1]", '[{"image_id": 1}]', "[" * 200_000])
def test_broken_predictions_are_one_error_naming_the_file(results, content):
    (file,) = results.glob("*--zero_shot--*/predictions.json")
    file.write_text(content)
    with pytest.raises(ValueError, match=r"predictions\.json: no predictions .* Remove the folder"):
        draw_strip(results, 5)
