"""Memory of any size from two small images."""

import dataclasses

import pytest

from glip_adapt.engine.step_memory import MemoryEstimate, Probe, StepMemory

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
