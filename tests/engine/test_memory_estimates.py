"""Memory estimates against what torch itself counts."""

import functools

import pytest
import torch

from glip_adapt.adapters import ADAPTERS
from glip_adapt.engine import memory
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.memory import LiveBytes, estimate_memory
from glip_adapt.trunks.catalogue import random_trunk

SIZE_HW = (320, 512)


def test_live_bytes_follow_what_is_alive_and_not_what_was():
    with LiveBytes() as live:
        for _ in range(5):
            torch.zeros(1000)  # 4 kB, gone at once
        kept = [torch.zeros(1000) for _ in range(3)]
        kept[0].view(10, 100).t()  # no memory of its own
    assert 12_000 <= live.peak <= 16_000


def test_live_bytes_count_what_autograd_keeps():
    x = torch.ones(1000, requires_grad=True)
    with LiveBytes() as live:
        x.exp().sin().exp().sum()
    assert live.peak >= 3 * 4000  # the input of sin and the results of both exp


@pytest.fixture(scope="module")
def nano():
    return random_trunk("glip-nano")


@pytest.fixture(scope="module")
def estimate(nano):
    """A function from a method to the estimate for images of 320 × 512 pixels."""
    return functools.cache(lambda method: estimate_memory(nano, method, SIZE_HW))


@pytest.fixture
def small_probes(monkeypatch):
    monkeypatch.setattr(memory, "PROBES_HW", ((128, 128), (128, 160)))


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_estimate_for_a_size_that_was_not_probed_is_what_a_step_takes(method, nano, estimate, monkeypatch):
    estimate = estimate(method)
    monkeypatch.setattr(memory, "PROBES_HW", (SIZE_HW, (128, 128)))
    measured = estimate_memory(nano, method, SIZE_HW)
    assert estimate.activations == pytest.approx(measured.activations, rel=0.1)
    model = attach(nano, method, classes=[f"class {i}" for i in range(10)])
    trained = sum(t.numel() for t in model.owned_tensors().values())
    assert estimate.trained == 16 * trained
    weights = sum(p.nbytes for p in nano.network.parameters())
    assert weights <= estimate.weights <= 2 * weights
    assert estimate.total == estimate.weights + estimate.trained + estimate.activations


def test_training_more_takes_more(estimate):
    totals = [estimate(method).total for method in ("linear_probe", "prompt", "full")]
    assert totals == sorted(totals)


def test_the_settings_of_a_method_count(nano, small_probes):
    small, large = (estimate_memory(nano, "lora", (96, 96), settings={"rank": rank}).trained for rank in (1, 4))
    assert large == 4 * small


def test_computing_blocks_again_takes_less_where_they_are_trained(nano, estimate):
    plain, again = estimate("full"), estimate_memory(nano, "full", SIZE_HW, recompute=True)
    assert again.activations < 0.7 * plain.activations
    assert (again.weights, again.trained) == (plain.weights, plain.trained)


def test_estimating_leaves_the_trunk_as_it_was(nano, small_probes):
    before = {name: value.clone() for name, value in nano.network.state_dict().items()}
    estimate_memory(nano, "full", (96, 96))
    assert all(torch.equal(value, before[name]) for name, value in nano.network.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in nano.network.parameters())
