"""benchmarks/speed.py: both sides of the comparison compute the same, and the report holds what people ask for."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import load_benchmark

from glip_adapt.trunks.catalogue import random_trunk
from glip_adapt.trunks.cross_attention import CrossAttention
from glip_adapt.trunks.glip import deform, dyhead

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "speed.py"


@pytest.fixture(scope="module")
def speed():
    yield from load_benchmark("speed")


@pytest.fixture(scope="module")
def nano():
    """In float64: what random weights do to a gradient drowns the last digits of float32."""
    trunk = random_trunk("glip-nano")
    trunk.network.double()
    return trunk


def workload(speed, nano, task, batch=1):
    settings = argparse.Namespace(batch=batch, precision="float32")
    return speed.build_workload(nano, task, settings, (90, 120), classes=3)


@pytest.mark.parametrize("batch", [1, 2])
def test_both_sides_predict_the_same(speed, nano, batch):
    work = workload(speed, nano, "inference", batch)
    assert speed.largest_difference(work.ours(), work.reference(), work.tokens) < 1e-9


@pytest.mark.parametrize("task", ["prompt", "linear_probe", "lora", "full"])
def test_both_sides_find_the_same_gradient(speed, nano, task):
    found = {}
    for side in speed.SIDES:
        work = workload(speed, nano, task)
        for group in work.stepper.optimiser.param_groups:
            group["lr"] = 0.0
        work.model.train(False)  # dropout would draw other numbers for 256 tokens
        getattr(work, side)()
        found[side] = {name: t.grad for name, t in work.model.owned_tensors().items() if t.grad is not None}
    assert found["ours"].keys() == found["reference"].keys()
    largest = max(gradient.norm() for gradient in found["reference"].values())
    for name, expected in found["reference"].items():
        rounding = 1e-6 * largest  # the losses are float32 all the same
        assert (found["ours"][name] - expected).norm() <= 1e-5 * expected.norm() + rounding, name


def test_the_reference_arithmetic_ends_with_its_context(speed, nano):
    work = workload(speed, nano, "inference")
    forward = CrossAttention.forward
    work.reference()
    assert dyhead.deformable_conv is deform.deformable_conv
    assert CrossAttention.forward is forward


@pytest.mark.slow
def test_the_script_prints_one_object_with_all_ratios():
    command = [sys.executable, SCRIPT, "--trunk", "glip-nano", "--size", "64", "96", "--repeats", "1", "--json"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    tasks = {"inference", "prompt", "linear_probe", "lora", "full"}
    assert found["ratios"].keys() == found["memory_ratios"].keys() == found["seconds"].keys() == tasks
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert found["largest_relative_difference"] < 1e-3
