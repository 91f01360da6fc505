"""Plans over two generated datasets on the tiny trunk, and what is said of a plan before it runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_split

from glip_adapt.adapters.lora import Lora
from glip_adapt.bench import benchmark, executor, forecast
from glip_adapt.bench.benchmark import preview_benchmark, read_plan, run_benchmark
from glip_adapt.bench.plan import BenchPlan, ProtocolConfig, RunKey
from glip_adapt.bench.records import RECORD_FILE, read_records
from glip_adapt.bench.runner import list_runs
from glip_adapt.core.config import to_mapping
from glip_adapt.core.settings import ViewConfig
from glip_adapt.data.dataset import load_dataset
from glip_adapt.engine import memory, train
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import evaluate, predict_split
from glip_adapt.engine.load import load_adapter
from glip_adapt.engine.memory import MemoryEstimate, estimate_memory
from glip_adapt.trunks import catalogue
from glip_adapt.trunks.catalogue import random_trunk
from glip_adapt.trunks.glip.config import PUBLISHED_FROZEN

SMALL = {"short_sides": [64], "test_short_side": 64, "max_long_side": 80, "max_steps": 2, "validate_every": 1}


@pytest.fixture
def folders(coco_folder, tmp_path, generator):
    """Two datasets of other pictures; the second calls one class otherwise, so that its caption is longer."""
    other = tmp_path / "others"
    for split in ("train", "valid", "test"):
        write_split(other / split, 3, generator)
        file = other / split / "annotations_without_background.json"
        file.write_text(file.read_text().replace("red box", "big red box"))
    return str(coco_folder), str(other)


@pytest.fixture
def generator():
    import numpy as np

    return np.random.default_rng(1)


@pytest.fixture
def plan(folders, tiny_trunk, monkeypatch):
    for module in (catalogue, executor):
        monkeypatch.setattr(module, "load_trunk", lambda name, **settings: tiny_trunk)
    monkeypatch.setattr(benchmark, "packaged_checksum", lambda name: tiny_trunk.checksum)
    return BenchPlan(
        trunks=("glip-nano",), datasets=folders, methods=("prompt", "full"), shots=(0, 1), seeds=(3,), fit=SMALL
    )


def by_run(out):
    return {(r.key.dataset_name, r.key.method): r for r in read_records(out)}


def test_retention_is_the_ap_of_what_was_learned_elsewhere(plan, tiny_trunk, tmp_path):
    plan = replace(plan, protocol=ProtocolConfig(retention=plan.datasets))
    assert run_benchmark(plan, tmp_path / "out").failed == 0
    runs = by_run(tmp_path / "out")
    assert runs["shapes", "zero_shot"].metrics.retention == {}
    assert list(runs["shapes", "full"].metrics.retention) == ["others"]
    # An offset per token means nothing under another caption, so that the trunk is what is left.
    zero_shot = runs["others", "zero_shot"].metrics.ap
    assert runs["shapes", "prompt"].metrics.retention == {"others": zero_shot}
    # What full tuning owns goes along; here by hand.
    others, shapes = load_dataset(plan.datasets[1]), load_dataset(plan.datasets[0])
    key = runs["shapes", "full"].key
    learned = load_adapter(tmp_path / "out" / key.name / "adapter", trunk=tiny_trunk, classes=shapes.classes)
    moved = attach(tiny_trunk, "full", classes=others.classes)
    moved.load_owned(learned.owned_tensors())
    shown = ViewConfig(short_side=64, max_long_side=80)
    assert runs["shapes", "full"].metrics.retention == {"others": evaluate(moved, others.test, shown).ap}


def test_settings_of_a_method_reach_its_adapter_also_on_other_datasets(plan, tiny_trunk, tmp_path):
    plan = replace(plan, methods=("lora", "prompt"), settings={"lora": {"part": "head", "rank": 2}})
    plan = replace(plan, protocol=ProtocolConfig(retention=plan.datasets))
    assert run_benchmark(plan, tmp_path / "out").failed == 0
    lora, prompt = (by_run(tmp_path / "out")["shapes", method] for method in ("lora", "prompt"))
    assert lora.config["settings"] == to_mapping(Lora(part="head", rank=2))
    assert prompt.config["settings"] == {}
    saved = json.loads((tmp_path / "out" / lora.key.name / "adapter" / "adapter.json").read_text())["config"]
    assert saved == lora.config["settings"]
    assert list(lora.metrics.retention) == ["others"]
    with pytest.raises(ValueError, match=r"settings\.rank \(2 recorded, 4 planned\)"):
        run_benchmark(replace(plan, settings={"lora": {"part": "head", "rank": 4}}), tmp_path / "out")


def test_a_record_from_before_settings_were_recorded_had_the_defaults(plan, tmp_path):
    plan = replace(plan, methods=("lora",))
    run_benchmark(plan, tmp_path / "out")
    for path in (tmp_path / "out").glob("*--lora--*/record.json"):
        record = json.loads(path.read_text())
        del record["config"]["settings"]
        path.write_text(json.dumps(record))
    assert run_benchmark(plan, tmp_path / "out").done == 0
    with pytest.raises(ValueError, match=r"settings\.rank \(8 recorded, 4 planned\)"):
        run_benchmark(replace(plan, settings={"lora": {"rank": 4}}), tmp_path / "out")


@pytest.mark.parametrize("name", ["glyphs13", "fusion_matters"])
def test_published_records_are_the_runs_of_their_plan(tmp_path, name):
    """Though settings came after them: each had its default then."""
    benchmarks, checksums = Path(__file__).parents[2] / "benchmarks", {}
    for line in (benchmarks / "results" / f"{name}.jsonl").read_text().splitlines():
        content = json.loads(line)
        key = RunKey(**content["key"])
        checksums[key.trunk] = content["config"]["trunk_checksum"]
        (tmp_path / key.name).mkdir()
        (tmp_path / key.name / RECORD_FILE).write_text(line)

    def resolve(key, given):
        return benchmark._resolve(key, given, "plan", checksums[key.trunk])

    plan = read_plan(benchmarks / "plans" / f"{name}.toml")
    assert {run.state for run in list_runs(plan, tmp_path, resolve, benchmark.update_config)} == {"done"}
    with pytest.raises(ValueError, match=r"protocol\.annotation_ids \('absent' recorded, 'renumbered' planned\)"):
        list_runs(plan, tmp_path, resolve)


def test_the_record_says_where_the_training_pictures_come_from(plan, tmp_path):
    """The first dataset gets an official file for one shot of seed 3."""
    annotations = Path(plan.datasets[0]) / "train" / "annotations_without_background.json"
    official = annotations.with_name("fewshot_train_shot1_seed3.json")
    shutil.copy(annotations, official)
    run_benchmark(replace(plan, methods=("prompt",), shots=(0, 1, "all")), tmp_path / "out")
    sources = {(r.key.dataset_name, r.key.shots): r.train_source for r in read_records(tmp_path / "out")}
    assert sources == {
        ("shapes", 0): None, ("shapes", 1): f"official {official.name}", ("shapes", "all"): "full",
        ("others", 0): None, ("others", 1): "sampled", ("others", "all"): "full",
    }  # fmt: skip


def test_loading_trunk_and_dataset_is_not_on_the_clock(plan, tiny_trunk, tmp_path, monkeypatch):
    now = [0.0]

    def slowly(load):
        def wait(*given, **settings):
            now[0] += 100
            return load(*given, **settings)

        return wait

    monkeypatch.setattr(executor, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for name in ("load_trunk", "load_dataset"):
        monkeypatch.setattr(executor, name, slowly(getattr(executor, name)))
    run_benchmark(replace(plan, shots=(0,)), tmp_path / "out")
    assert now == [300.0]  # one trunk, two datasets
    assert {record.cost.seconds for record in read_records(tmp_path / "out")} == {0.0}


def test_the_last_state_is_scored_without_a_look_at_the_validation_split(plan, tmp_path):
    shutil.rmtree(Path(plan.datasets[0]) / "valid")
    plan = replace(plan, datasets=plan.datasets[:1], shots=(1,), methods=("prompt",))
    with pytest.raises(FileNotFoundError, match=r"my\.toml, datasets, .*shapes: .* has no val split"):
        run_benchmark(plan, tmp_path / "out", where="my.toml")
    last = replace(plan, protocol=ProtocolConfig(selection="last"))
    assert run_benchmark(last, tmp_path / "out").done == 1
    (record,) = read_records(tmp_path / "out")
    assert record.metrics.val_ap is None
    assert record.config["protocol"]["selection"] == "last"
    history = json.loads((tmp_path / "out" / record.key.name / "history.json").read_text())
    assert (len(history["steps"]), history["validations"]) == (2, [])


def test_threads_are_those_of_the_run_and_the_caller_keeps_its_own(plan, tmp_path):
    torch.set_num_threads(2)
    run_benchmark(replace(plan, shots=(0,)), tmp_path / "out")
    assert torch.get_num_threads() == 2
    assert {record.environment["threads"] for record in read_records(tmp_path / "out")} == {1}


def test_a_cache_of_one_process_is_none_for_workers(plan, tmp_path):
    with pytest.raises(ValueError, match="workers share no memory; give a folder"):
        run_benchmark(plan, tmp_path / "out", cache=FeatureCache(), workers=2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'datasets = ["Racoon"]',
            "datasets, Racoon: Unknown dataset 'Racoon', and no folder of that name. Did you mean",
        ),
        ('datasets = ["absent/set"]', "datasets, absent/set: No folder absent/set"),
        ('datasets = ["PascalVOC"]', "datasets, PascalVOC: Dataset 'PascalVOC' is known but not on this machine"),
        ("[fit]\nrate = 1", "fit, for glip-nano--shapes--zero_shot--0--3: unknown key 'rate'"),
        ("[fit]\nlearning_rate = -1", "learning_rate is -1"),
        ("[settings.lora]\nrnk = 1", "settings of lora: unknown key 'rnk' (did you mean 'rank'?)"),
        ("[settings.lora]\nrank = 0", "settings of lora: rank and alpha must be whole numbers above 0"),
        ("[settings]\nlora = 1", "settings of lora: expected a table of settings, got 1"),
        ('methods = ["promt"]', "methods: unknown 'promt' (did you mean 'prompt'?)"),
        ('trunks = ["glip-nan"]', "trunks: unknown 'glip-nan'"),
        ("shots = [-1]", "shots: -1 is negative"),
        ('[checkpoints]\n"glip-nano" = "x.pth"', "checkpoints, glip-nano: there is no file or folder 'x.pth'"),
        ('[protocol]\nretention = ["Pets"]', "protocol, retention: unknown 'Pets'"),
    ],
)
def test_a_wrong_line_fails_before_the_first_run_and_is_named(line, message, coco_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLIP_ADAPT_DATA", raising=False)
    defaults = {"trunks": '["glip-nano"]', "datasets": f'["{coco_folder}"]', "seeds": "[3]"}
    defaults.pop(line.split(" ")[0], None)
    text = "".join(f"{name} = {value}\n" for name, value in defaults.items()) + line
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        run_benchmark(read_plan("my.toml"), "out", where="my.toml")
    assert str(caught.value).startswith("my.toml, ") or str(caught.value).startswith("my.toml: ")
    assert message in str(caught.value)
    assert not list(Path("out").glob("*/record.json"))


def test_a_plan_can_score_by_the_ids_of_the_file_in_validation_too(plan, tmp_path, monkeypatch):
    seen = []

    def watch(module, name, look):
        monkeypatch.setattr(
            module, name, lambda model, split, *a, **k: seen.append(split) or look(model, split, *a, **k)
        )

    watch(executor, "evaluate", evaluate)
    watch(train, "predict_split", predict_split)
    plan = replace(plan, datasets=plan.datasets[:1], protocol=ProtocolConfig(annotation_ids="as_in_file"))
    assert run_benchmark(plan, tmp_path / "out").done == 3
    assert {split.name for split in seen} == {"shapes/val", "shapes/test"}
    assert {split.annotation_ids for split in seen} == {"as_in_file"}
    records = read_records(tmp_path / "out")
    assert {r.config["protocol"]["annotation_ids"] for r in records} == {"as_in_file"}
    assert {(r.key.method, r.selected_on) for r in records} == {
        ("zero_shot", None), ("prompt", "shapes/val"), ("full", "shapes/val"),
    }  # fmt: skip


def test_full_is_planned_with_what_the_published_recipe_freezes():
    plan = BenchPlan(trunks=("glip-t",), datasets=("Raccoon",), methods=("full",), shots=(1,), seeds=(3,))
    (key,) = plan.keys()
    resolved = benchmark._resolve(key, plan.config_of(key), "plan", None)
    assert resolved["settings"]["frozen"] == list(PUBLISHED_FROZEN)
    everything = replace(plan, settings={"full": {"frozen": []}})
    assert benchmark._resolve(key, everything.config_of(key), "plan", None)["settings"]["frozen"] == []


def test_the_full_protocol_is_planned_without_its_data(tmp_path, monkeypatch):
    """585 adapted runs and 13 of zero-shot, and of each dataset the command that fetches it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLIP_ADAPT_DATA", raising=False)
    estimate = MemoryEstimate(weights=1, trained=2, activations=3, features=4)
    monkeypatch.setattr(memory, "estimate_memory", lambda *given: estimate)
    monkeypatch.setattr(forecast, "stored_step", lambda *given: None)
    runs, missing = preview_benchmark(BenchPlan(trunks=("glip-nano",)), "out")
    assert len(runs) == 598
    assert {run.state for run in runs} == {"missing"}
    assert {(run.seconds, run.memory.total) for run in runs} == {(None, 6)}
    shown = {(run.key.dataset, run.key.shots): run.shown for run in runs if run.key.method in ("zero_shot", "full")}
    assert (shown["Raccoon", 0], shown["Raccoon", 1]) == (17, 7 + 29 + 17)  # full sees seven sizes
    assert shown["Raccoon", "all"] == 150 * 7 + 29 + 17
    assert {run.feature_bytes for run in runs if run.key.dataset == "Raccoon" and run.key.shots == 0} == {4 * 17}
    assert len(missing) == 13
    assert "glip-adapt data fetch PascalVOC" in missing["PascalVOC"]
    assert not Path("out").exists()


def test_a_preview_knows_times_from_runs_alike_and_memory_from_the_method(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "stored_step", lambda *given: None)
    out, plan = tmp_path / "out", replace(plan, methods=("prompt",))
    run_benchmark(replace(plan, datasets=plan.datasets[:1]), out)
    runs, missing = preview_benchmark(plan, out)
    assert missing == {}
    assert [run.state for run in runs] == ["done"] * 2 + ["missing"] * 2
    cost = {record.key.method: record.cost for record in read_records(out)}
    assert [run.seconds for run in runs[2:]] == [cost[run.key.method].seconds for run in runs[2:]]
    peaks = [run.memory.total for run in runs]  # the first of all also makes the anchors, which are kept
    expected = estimate_memory(random_trunk("glip-nano"), "prompt", (64, 80)).total
    assert [peak for run, peak in zip(runs, peaks, strict=True) if run.key.method == "prompt"] == [expected] * 2
    with pytest.raises(ValueError, match=r"finished with other settings: fit\.max_steps"):
        preview_benchmark(replace(plan, fit={**SMALL, "max_steps": 1}), out)


def test_the_recipe_of_a_plan_stands_behind_training_and_methods():
    plan = BenchPlan(
        trunks=("glip-nano",), datasets=("glyphs13/Dice",), methods=("lora",), shots=(5,), seeds=(3,), recipe="strong"
    )
    (key,) = plan.keys()
    resolved = benchmark._resolve(key, plan.config_of(key), "plan", None)
    assert resolved["fit"]["factors"] == [0.3, 0.5, 0.7, 0.85]
    assert resolved["settings"]["part"] == "all+image"
    assert "recipe" not in resolved  # settings tell two runs apart, whatever gave them their values
