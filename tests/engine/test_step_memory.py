"""Memory of any size from two small images, and when stored figures are taken."""

import dataclasses
import json
from collections import Counter

import pytest

from glip_adapt.adapters import ADAPTERS, build_adapter
from glip_adapt.core.config import to_mapping
from glip_adapt.engine import step_memory
from glip_adapt.engine.step_memory import STORED, MemoryEstimate, Probe, StepMemory, read_steps, stored_step
from glip_adapt.trunks.released import TRUNKS

SMALL = Probe(size_hw=(10, 10), activations=1000, features=30)
LARGE = Probe(size_hw=(20, 10), activations=1500, features=60)
STEP = StepMemory(weights=7, trained=5, small=SMALL, large=LARGE)


def test_memory_grows_linearly_with_the_pixels():
    """Computed by hand: 5 bytes and 0.3 bytes a pixel."""
    found = [STEP.at(size_hw) for size_hw in ((10, 10), (10, 20), (20, 20), (5, 5))]
    assert [estimate.activations for estimate in found] == [1000, 1500, 2500, 625]
    assert [estimate.features for estimate in found] == [30, 60, 120, 8]
    assert found[0] == MemoryEstimate(weights=7, trained=4 * 5, activations=1000, features=30)
    assert found[0].total == 7 + 20 + 1000


def test_one_size_tells_nothing_about_another():
    with pytest.raises(ValueError, match="different size"):
        dataclasses.replace(STEP, large=dataclasses.replace(LARGE, size_hw=(5, 20)))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A function that lets rows be stored: fields that differ from a row of glip-t with lora."""

    def store(*rows):
        common = {"trunk": "glip-t", "method": "lora", "settings": {"rank": 8}, "recompute": None}
        content = {"classes": 10, "rows": [{**common, "step": to_mapping(STEP), **row} for row in rows]}
        (tmp_path / "rows.json").write_text(json.dumps(content))
        monkeypatch.setattr(step_memory, "STORED", tmp_path / "rows.json")

    return store


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({}, True),
        ({"recompute": True}, True),
        ({"recompute": False}, False),
        ({"trunk": "glip-l"}, False),
        ({"method": "prompt"}, False),
        ({"settings": {"rank": 4}}, False),
        ({"settings": {"rank": 8, "seed": 0}}, False),
    ],
)
def test_figures_are_taken_for_these_very_settings_only(store, row, found):
    store({"method": "full"}, row)
    assert stored_step("glip-t", "lora", {"rank": 8}, True) == (STEP if found else None)


def test_the_rows_are_those_that_plans_without_settings_ask_for():
    """Else the dry run takes seconds again: python benchmarks/memory.py --write."""
    rows = read_steps(STORED)
    for row in rows:
        changed = TRUNKS[row.trunk].settings.get(row.method, {})
        assert row.settings == to_mapping(build_adapter(row.method, changed)), (row.trunk, row.method)
    kinds = Counter((row.trunk, row.method, row.recompute) for row in rows)
    assert set(kinds.values()) == {1}
    modes = {
        (row.trunk, row.method): {again for *place, again in kinds if place == [row.trunk, row.method]} for row in rows
    }
    assert all(found in ({None}, {False, True}) for found in modes.values())
    assert {method for trunk, method in modes if trunk == "glip-t"} == set(ADAPTERS)
