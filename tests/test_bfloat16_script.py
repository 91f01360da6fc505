"""benchmarks/precision.py: what bfloat16 changes is measured on the same anchors."""

import dataclasses

import pytest
from conftest import load_benchmark

from glip_adapt import attach, load_trunk
from glip_adapt.core.settings import ViewConfig


@pytest.fixture(scope="module")
def script():
    yield from load_benchmark("precision")


@pytest.fixture(scope="module")
def model():
    model = attach(load_trunk("glip-nano"), "zero_shot", classes=["red box", "blue box"])
    model.view = ViewConfig(short_side=64)
    return model


def test_bfloat16_changes_a_little_and_float32_nothing(script, model, coco_folder, monkeypatch):
    paths = script.spread(sorted((coco_folder / "test").glob("*.png")), 2)
    change = dataclasses.astuple(script.measure_change(model, paths))
    assert all(0 < median <= most <= largest for median, most, largest in change)
    assert change[0][-1] < 2
    assert change[1][-1] < 0.05
    monkeypatch.setattr(script, "PRECISIONS", ("float32", "float32"))
    assert dataclasses.astuple(script.measure_change(model, paths)) == ((0, 0, 0), (0, 0, 0))


def test_images_are_taken_evenly(script):
    assert script.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert script.spread(list(range(3)), 4) == [0, 1, 2]
