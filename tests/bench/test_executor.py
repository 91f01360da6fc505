"""One run at a time: what it leaves, what it reports, and what the executor keeps between runs."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import write_shapes

from glip_adapt.bench import executor
from glip_adapt.bench.executor import BuildFitExecutor, threads_of, training_split
from glip_adapt.bench.plan import BenchPlan, ProtocolConfig, RunKey
from glip_adapt.core.config import to_mapping
from glip_adapt.core.settings import FitConfig, ViewConfig, Views
from glip_adapt.core.structures import ImageBatch, Target
from glip_adapt.data.dataset import load_dataset
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.cache_files import CacheKey
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.engine.load import load_adapter

NOTHING = Target(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
VIEW = ViewConfig(short_side=64, max_long_side=80)
FIT = FitConfig(short_sides=(64,), test_short_side=64, max_long_side=80, max_steps=2, validate_every=1)
PLAN = BenchPlan(trunks=("glip-nano",), datasets=("shapes",), methods=("prompt",), shots=(1,), seeds=(3,))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("executor") / "shapes")


@pytest.fixture
def loaded(tiny_trunk, monkeypatch):
    """Names of the trunks that were loaded, in order."""
    names = []

    def load(name, **settings):
        names.append(name)
        return replace(tiny_trunk, name=name)

    monkeypatch.setattr(executor, "load_trunk", load)
    return names


@pytest.fixture
def run(loaded, shapes, tmp_path):
    """Does a run in ``tmp_path``; returns its outcome."""

    def execute(method, shots, fit=FIT, on_step=lambda step, total: None, **protocol):
        key = RunKey("glip-nano", str(shapes), method, shots, 3)
        config = {
            "fit": None if fit is None else to_mapping(fit),
            "protocol": to_mapping(ProtocolConfig(**protocol)),
            "predict": to_mapping(VIEW),
            "settings": {},
        }
        return BuildFitExecutor(plan=PLAN)(0).execute(key, config, tmp_path, on_step)

    return execute


def test_a_run_leaves_its_files_and_reports_what_they_hold(run, shapes, tiny_trunk, tmp_path):
    steps = []
    outcome = run("prompt", 1, on_step=lambda step, total: steps.append((step.step, total)))
    assert {path.name for path in tmp_path.iterdir()} == {"history.json", "predictions.json", "adapter"}
    assert steps == [(1, 2), (2, 2)]
    history = json.loads((tmp_path / "history.json").read_text())
    assert [step["step"] for step in history["steps"]] == [1, 2]
    assert outcome.metrics.val_ap == max(validation["ap"] for validation in history["validations"])
    model, data = load_adapter(tmp_path / "adapter", trunk=tiny_trunk), load_dataset(str(shapes))
    found = evaluate(model, data.test, VIEW)
    assert json.loads((tmp_path / "predictions.json").read_text()) == list(found.predictions)
    assert (outcome.metrics.values, outcome.metrics.per_class) == (found.values, found.per_class)
    assert outcome.cost.trained_parameters == model.trained_parameters
    assert outcome.cost.adapter_bytes == sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir())
    assert (outcome.train_source, outcome.selected_on) == ("sampled", "shapes/val")
    stages = outcome.cost.stages
    assert stages.keys() == {"training", "validation", "test", "frozen features", "scoring", "decoding"}
    assert 0 < sum(stages.values()) <= outcome.cost.seconds


def test_features_are_kept_in_the_precision_of_the_plan():
    narrow = replace(PLAN, protocol=ProtocolConfig(kept_features="bfloat16"))
    assert BuildFitExecutor(plan=narrow)(0).cache.precision == "bfloat16"
    assert BuildFitExecutor(plan=PLAN)(0).cache.precision == "float32"
    with pytest.raises(ValueError, match="keeps float32, but the plan asks for kept_features = 'bfloat16'"):
        BuildFitExecutor(plan=narrow, cache=FeatureCache())(0)


def test_zero_shot_leaves_predictions_alone(run, shapes, tiny_trunk, tmp_path):
    outcome = run("zero_shot", 0, fit=None, test_split="val")
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    data = load_dataset(str(shapes))
    expected = evaluate(attach(tiny_trunk, "zero_shot", classes=data.classes), data.val, VIEW)
    assert outcome.metrics.values == expected.values
    assert (outcome.cost.trained_parameters, outcome.cost.adapter_bytes) == (0, 0)
    assert (outcome.train_source, outcome.selected_on, outcome.metrics.val_ap) == (None, None, None)


def test_the_views_of_a_plan_are_those_of_its_test_images(run, shapes, tiny_trunk, tmp_path):
    views = Views(sizes=(64, 96), flip=True, tile=40)
    outcome = run("prompt", 1, views=views)
    model, data = load_adapter(tmp_path / "adapter", trunk=tiny_trunk), load_dataset(str(shapes))
    found = evaluate(model, data.test, VIEW, views=views)
    assert json.loads((tmp_path / "predictions.json").read_text()) == list(found.predictions)
    assert outcome.metrics.values == found.values != evaluate(model, data.test, VIEW).values


def test_the_last_state_is_selected_on_nothing(run):
    outcome = run("prompt", 1, selection="last")
    assert (outcome.selected_on, outcome.metrics.val_ap) == (None, None)


@pytest.mark.parametrize(("shots", "named"), [(1, "shapes/val-1-shot-seed-3"), ("all", "shapes/val")])
def test_few_validation_images_select_where_few_are_learned_from(run, shots, named):
    assert run("prompt", shots, selection="best_on_few_val").selected_on == named


def test_cross_validation_uses_no_validation_image(run, shapes, monkeypatch):
    data = load_dataset(str(shapes))
    splits = {name: split for name, split in data.splits.items() if name != "val"}
    monkeypatch.setattr(executor, "load_dataset", lambda entry: replace(data, splits=splits))
    outcome = run("prompt", 5, selection="cross_validation", folds=2)
    assert (outcome.selected_on, outcome.metrics.val_ap) == ("shapes/train-5-shot-seed-3", None)
    choice = outcome.cross_validated
    assert (choice.folds, choice.steps <= 2, 0 <= choice.factor <= 1) == (2, True, True)


def test_backgrounds_and_negatives_of_a_plan_are_learned_from(run, shapes, monkeypatch, tmp_path):
    data = load_dataset(str(shapes))
    empty = replace(data.train.records[0], image_id=99, learned=NOTHING, annotations=())
    train = replace(data.train, records=(*data.train.records, empty))
    monkeypatch.setattr(executor, "load_dataset", lambda entry: replace(data, splits={**data.splits, "train": train}))
    outcome = run("prompt", "all", backgrounds=5, negatives=("green box",))
    history = json.loads((tmp_path / "history.json").read_text())
    assert len(history["steps"]) == 2
    assert [entry["name"] for entry in json.loads((tmp_path / "adapter" / "adapter.json").read_text())["classes"]] == [
        "red box", "blue box", "green box",
    ]  # fmt: skip
    assert outcome.metrics.per_class["green box"] is None
    assert (
        len(training_split(executor.load_dataset(""), RunKey("a", "b", "c", "all", 3), ProtocolConfig(backgrounds=5)))
        == 7
    )


def test_an_interrupted_run_leaves_nothing_that_looks_finished(run, tmp_path):
    def interrupt(step, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("prompt", 1, on_step=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_torch_has_its_threads_back_after_an_error(run):
    torch.set_num_threads(2)
    seen = []

    def fail(step, total):
        seen.append(torch.get_num_threads())
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run("prompt", 1, on_step=fail)
    assert seen == [1]  # of a nano trunk
    assert torch.get_num_threads() == 2


def test_a_trunk_is_loaded_again_only_after_another_one(loaded):
    made = BuildFitExecutor(plan=PLAN)(0)
    first = made.trunk("glip-nano")
    assert made.trunk("glip-nano") is first
    made.trunk("glip-nano-a")
    assert made.trunk("glip-nano") is not first
    assert loaded == ["glip-nano", "glip-nano-a", "glip-nano"]


def test_all_data_are_the_images_with_boxes_and_shots_are_drawn_by_the_seed_of_the_run(shapes):
    data = load_dataset(str(shapes))
    first, *others = data.train.records
    empty = replace(first, learned=Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), annotations=())
    data = replace(data, splits={**data.splits, "train": replace(data.train, records=(empty, *others))})
    key, protocol = RunKey("glip-nano", "shapes", "prompt", "all", 3), ProtocolConfig()
    assert training_split(data, key, protocol).records == tuple(others)
    drawn = [training_split(data, replace(key, shots=1, seed=seed), protocol) for seed in (3, 30)]
    assert [split.records for split in drawn] == [data.train.few_shot(1, seed).records for seed in (3, 30)]


def test_workers_share_the_memory_for_features_or_have_a_folder_in_common(tmp_path, monkeypatch):
    state = ImageBatch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ((32, 32),))
    monkeypatch.setattr(executor, "CACHE_BYTES", 4 * state.pixels.nbytes)

    def used(cache):
        for image in "ab":
            cache.get(CacheKey("trunk", image, "view", "IMAGES", "", "cpu"), lambda: state)
        return cache.statistics

    build = BuildFitExecutor(plan=PLAN, workers=4)
    assert used(build(0).cache).memory_bytes == used(build(1).cache).memory_bytes == state.pixels.nbytes
    assert used(BuildFitExecutor(plan=PLAN, cache=tmp_path)(0).cache).memory_bytes == 0
    assert used(BuildFitExecutor(plan=PLAN, cache=tmp_path)(1).cache).disk_hits == 2
    own = FeatureCache()
    assert BuildFitExecutor(plan=PLAN, cache=own)(0).cache is own


def test_a_nano_trunk_has_one_thread_and_others_share_the_cores(monkeypatch):
    monkeypatch.setattr(executor.os, "cpu_count", lambda: 16)
    assert [threads_of(PLAN, "glip-nano", n) for n in (1, 4)] == [1, 1]
    assert [threads_of(PLAN, "glip-t", n) for n in (1, 4, 64)] == [16, 4, 1]
    assert threads_of(replace(PLAN, threads=3), "glip-t", 4) == 3


def test_workers_on_cuda_are_dealt_the_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    build = BuildFitExecutor(plan=PLAN, device="cuda", workers=3)
    assert [build(worker).device for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert replace(build, device="cuda:1")(0).device == "cuda:1"
