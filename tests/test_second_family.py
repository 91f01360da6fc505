"""Adapters, cache, training, evaluation, baking and the benchmark know nothing of GLIP: they run on other families."""

from dataclasses import replace

import pytest
import torch
from conftest import DINO
from public_files import VOCABULARY
from second_family import SPEC

from glip_adapt import (
    Lora,
    adapt,
    attach,
    default_recipe,
    evaluate,
    fit,
    load_adapter,
    load_baked,
    load_dataset,
    load_trunk,
)
from glip_adapt.bench.benchmark import run_benchmark
from glip_adapt.bench.plan import BenchPlan
from glip_adapt.bench.records import read_records
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.memory import estimate_memory
from glip_adapt.engine.train import train_model
from glip_adapt.share.baked import bake
from glip_adapt.trunks.released import TRUNKS
from glip_adapt.trunks.weights import save_tensors

METHODS = ("prompt", "context", "linear_probe", "lora", "full", "text_encoder")
MM_DINO = replace(DINO, shared_boxes=False, scaled_scores=True)  # the contract of methods runs on ``DINO``
SPECS = {"queries": SPEC, "tiny-dino": replace(SPEC, family=TRUNKS["grounding-dino-t"].family, config=MM_DINO)}
DETECTIONS = {"queries": 12, "tiny-dino": 30}  # queries; pairs of 15 queries and 2 classes


@pytest.fixture(params=SPECS)
def name(request):
    return request.param


@pytest.fixture
def checkpoint(name, tmp_path, monkeypatch):
    """A trunk of the family in the catalogue, and its weights in a file."""
    spec = SPECS[name]
    monkeypatch.setitem(TRUNKS, name, spec)
    torch.manual_seed(0)
    save_tensors(spec.family.build(spec.config).state_dict(), tmp_path / "trunk.safetensors", {})
    return tmp_path / "trunk.safetensors"


@pytest.fixture
def trunk(name, checkpoint):
    return load_trunk(name, checkpoint=checkpoint, vocabulary=VOCABULARY)


@pytest.fixture
def data(coco_folder):
    return load_dataset(coco_folder)


def same(one, two):
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("boxes_xyxy", "scores", "labels"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_evaluates_is_saved_and_baked(trunk, data, method, tmp_path):
    model, image = attach(trunk, method, classes=data.classes), data.test.records[0].load()
    start = {name: tensor.detach().clone() for name, tensor in model.network.state_dict().items()}
    uncached = attach(trunk, method, classes=data.classes)
    recipe = default_recipe(trunk.name, method, "all")
    history = train_model(model, data.train, None, recipe)
    again = train_model(uncached, data.train, None, recipe, cache=FeatureCache(memory_bytes=0))
    assert [step.losses for step in history.steps] == [step.losses for step in again.steps]
    assert len(history.steps) == 3
    moved = {name for name, tensor in model.network.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved
    assert moved <= set(model.owned)
    assert fit(attach(trunk, method, classes=data.classes), data.train).total_steps == 3
    found = model.predict(image)
    assert len(found) == DETECTIONS[trunk.name]
    assert evaluate(model, data.test).ap is not None
    model.save(tmp_path / "adapter")
    assert same(load_adapter(tmp_path / "adapter", trunk=trunk).predict(image), found)
    bake(model).save(tmp_path / "baked")
    torch.testing.assert_close(load_baked(tmp_path / "baked").predict(image).scores, found.scores)


def test_one_lora_serves_several_class_lists(trunk, data):
    adapted = adapt(trunk, Lora(rank=1))
    model, other = adapted.for_classes(data.classes), adapted.for_classes(["a", "b", "c"])
    before = other.predict(data.test.records[0].load())
    train_model(model, data.train, None, default_recipe(trunk.name, "lora", "all"))
    after = other.predict(data.test.records[0].load())
    assert not torch.equal(before.scores, after.scores)
    assert model.for_classes(["a", "b", "c"]).owned_tensors().keys() == model.owned_tensors().keys()
    with pytest.raises(ValueError, match=r"belong to the caption of these classes"):
        attach(trunk, "prompt", classes=data.classes).for_classes(["a"])


def test_the_benchmark_and_the_memory_estimate_run(checkpoint, trunk, coco_folder, tmp_path):
    plan = BenchPlan(
        trunks=(trunk.name,), datasets=(str(coco_folder),), methods=("prompt", "lora"), shots=(0, 1), seeds=(3,),
        checkpoints={trunk.name: str(checkpoint)},
    )  # fmt: skip
    assert run_benchmark(plan, tmp_path / "out", vocabulary=VOCABULARY).failed == 0
    assert {record.key.method for record in read_records(tmp_path / "out")} == {"zero_shot", "prompt", "lora"}
    assert estimate_memory(trunk, "full", (128, 128), classes=2).total > 0
