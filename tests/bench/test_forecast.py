import dataclasses
import re

import pytest
from fake_runs import PLAN, outcome

from glip_adapt.bench import forecast
from glip_adapt.bench.benchmark import preview_benchmark
from glip_adapt.bench.forecast import Sizes, forecast_runs
from glip_adapt.bench.plan import ZERO_SHOT, BenchPlan, RunKey
from glip_adapt.bench.records import RunRecord
from glip_adapt.bench.runner import list_runs
from glip_adapt.engine import memory, step_memory
from glip_adapt.engine.memory import MemoryEstimate
from glip_adapt.engine.step_memory import STORED, stored_step
from glip_adapt.trunks import catalogue
from glip_adapt.trunks.glip.config import PUBLISHED_FROZEN

DAMAGES = {
    "absent": lambda text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "without a row": lambda text: re.sub(r'.*"glip-t", "method": "prompt".*\n', "", text),
    "words for numbers": lambda text: text.replace('"features": ', '"features": "many", "was": '),
    "a field too few": lambda text: re.sub(r'"weights": \d+, ', "", text),
    "one size twice": lambda text: text.replace("[384, 512]", "[256, 384]"),
    "another number of classes": lambda text: text.replace('"classes": 10', '"classes": 20'),
}


def record(method, shots, seconds, seed=3, dataset="c"):
    found = outcome()
    return RunRecord(
        key=RunKey("glip-t", dataset, method, shots, seed), config={}, status="done", metrics=found.metrics,
        cost=dataclasses.replace(found.cost, seconds=seconds), environment={}, created="",
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """What is asked of ``estimate_memory``, which measures nothing here."""
    calls = []

    def estimate(trunk, method, size_hw, recompute, settings):
        calls.append((trunk, method, size_hw, recompute, settings))
        return MemoryEstimate(weights=1, trained=2, activations=3, features=4)

    monkeypatch.setattr(catalogue, "random_trunk", lambda name: name)
    monkeypatch.setattr(memory, "estimate_memory", estimate)
    return calls


@pytest.fixture
def unstored(monkeypatch):
    """Let no memory be stored."""
    monkeypatch.setattr(forecast, "stored_step", lambda *given: None)


def test_time_is_the_mean_over_runs_alike_and_memory_that_of_the_largest_picture(asked, unstored, tmp_path):
    recipe = {"short_sides": [480, 960], "recompute": True, "flip": True}
    protocol = {"test_split": "test", "selection": "best_on_val", "views": {"sizes": [640, 800], "flip": True}}
    common = {"predict": {"short_side": 800, "max_long_side": 1333}, "fit": recipe, "protocol": protocol}
    adapters = {"prompt": {"settings": {}}, "full": {"settings": {"frozen": ["text_encoder"]}}}
    plan = dataclasses.replace(PLAN, methods=("prompt", "full"), seeds=(3,))
    runs = list_runs(plan, tmp_path, lambda key, given: common | adapters[key.method])
    failed = RunRecord(
        key=RunKey("glip-t", "c", "full", 3, 3), config={}, status="failed", error="no", environment={}, created=""
    )
    records = [record("prompt", 1, 10.0), record("prompt", 1, 20.0, seed=30), record("full", 1, 100.0), failed]
    sizes = {"a": Sizes(train=50, val=7, test=9, classes=2), "b": Sizes(train=50, val=7, test=None, classes=2)}
    forecasts = forecast_runs(runs, records, sizes)
    found = {(f.key.dataset, f.key.method, f.key.shots): f.seconds for f in forecasts}
    for dataset in ("a", "b"):
        assert found[dataset, "prompt", 1] == 15.0
        assert found[dataset, "full", 1] == 100.0
        assert found[dataset, "prompt", 3] is found[dataset, "full", 3] is None
    shown = {(f.key.dataset, f.key.shots): f.shown for f in forecasts}
    assert (shown["a", 1], shown["a", 3]) == (2 * 4 + 7 + 9 * 4, 6 * 4 + 7 + 9 * 4)  # two sizes, each mirrored
    assert shown["b", 1] is None  # the size of its test split is unknown
    assert asked == []  # not yet
    assert {f.memory.total for f in forecasts} == {6}
    assert {f.feature_bytes for f in forecasts if f.key.shots == 1} == {51 * 4, None}
    assert asked == [  # once per method
        ("glip-t", "prompt", (960, 1333), True, {}),
        ("glip-t", "full", (960, 1333), True, {"frozen": ["text_encoder"]}),
    ]


def test_memory_is_that_of_the_settings_of_each_trunk(asked, unstored, tmp_path):
    """The published recipe freezes modules of the large trunks, which nano trunks do not have."""
    plan = BenchPlan(trunks=("glip-nano", "glip-t"), datasets=("Raccoon",), methods=("full",), shots=(1,), seeds=(3,))
    runs, _ = preview_benchmark(plan, tmp_path)
    assert [run.memory.total for run in runs] == [6, 6]
    assert [(trunk, settings) for trunk, *_, settings in asked] == [
        ("glip-nano", {"frozen": [], "denoising": 0}),
        ("glip-t", {"frozen": list(PUBLISHED_FROZEN), "denoising": 0}),
    ]


@pytest.fixture
def preview(tmp_path, monkeypatch):
    """A function from fields of a plan to the memory of its runs, glip-t by default; no data are here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLIP_ADAPT_DATA", raising=False)

    def preview(**fields):
        plan = BenchPlan(**{"datasets": ("Raccoon",), "shots": (1,), "seeds": (3,), **fields})
        return [run.memory for run in preview_benchmark(plan, "out")[0]]

    return preview


def test_what_is_stored_is_not_measured(asked, preview):
    methods = (ZERO_SHOT, "prompt", "linear_probe", "lora", "full")
    found = preview(trunks=("glip-t", "glip-nano"), methods=methods)
    assert len(found) == 10
    assert asked == []
    assert found[1] == stored_step("glip-t", "prompt", {}, False).at((800, 1333))
    frozen = {"frozen": list(PUBLISHED_FROZEN), "denoising": 0}
    assert found[4] == stored_step("glip-t", "full", frozen, True).at((800, 1333))  # its recipe computes blocks again


def test_other_settings_are_measured(asked, preview):
    preview(methods=("lora", "prompt"), settings={"lora": {"rank": 4}})
    preview(methods=("full",), settings={"full": {"frozen": []}})
    assert [(method, settings.get("rank")) for _, method, *_, settings in asked] == [("lora", 4), ("full", None)]


def test_recompute_is_told_apart(asked, preview):
    (plain,), (again,) = (preview(methods=("lora",), fit={"recompute": value}) for value in (False, True))
    assert again.activations < 0.5 * plain.activations
    assert asked == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_not_believed(damage, asked, preview, tmp_path, monkeypatch):
    damaged = tmp_path / "step_memory.json"
    monkeypatch.setattr(step_memory, "STORED", damaged)
    damaged.write_text(STORED.read_text())
    preview(methods=("prompt",))
    assert asked == []
    damaged = tmp_path / "damaged.json"
    monkeypatch.setattr(step_memory, "STORED", damaged)
    if text := DAMAGES[damage](STORED.read_text()):
        damaged.write_text(text)
    assert [estimate.total for estimate in preview(methods=("prompt",))] == [6]
    assert [method for _, method, *_ in asked] == ["prompt"]
