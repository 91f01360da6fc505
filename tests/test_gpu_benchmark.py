"""benchmarks/gpu.py: operations are all counted, measurements are kept, and the table shows them."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.ops import deform_conv2d

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[1]


def test_the_operations_of_a_deformable_convolution_are_those_of_its_product_and_twice_as_many_backwards():
    given = [torch.randn(2, 4, 6, 8), torch.randn(2, 18, 6, 8), torch.randn(3, 4, 3, 3)]
    x, offset, weight = (tensor.requires_grad_() for tensor in given)
    forward = 2 * 2 * 6 * 8 * 3 * 4 * 9
    assert gpu.count_operations(lambda: deform_conv2d(x, offset, weight, padding=1)) == forward
    assert gpu.count_operations(lambda: deform_conv2d(x, offset, weight, padding=1).sum().backward()) == 3 * forward


def test_the_peak_of_a_card_is_found_by_its_name():
    assert gpu.card_peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989.5e12
    assert gpu.card_peak("a card of tomorrow", "float32") is None


def test_the_table_shows_figures_and_what_did_not_fit():
    row = {"device": "card", "trunk": "glip-t", "task": "full", "batch": 4, "precision": "float32", "size_hw": [8, 9]}
    good = {
        **{"compiled": True, "seconds": 0.5, "images_per_second": 8.0, "peak_bytes": 2e9, "operations": 3e12},
        **{"share_of_peak": 0.25, "waits": {"cudaStreamSynchronize": 1, "Memcpy DtoH": 1}},
    }
    lines = gpu.table([row | good, row | {"batch": 16, "compiled": True, "error": "out of memory"}]).splitlines()
    assert "| float32, compiled | full | 4 | 500.0 | 8 | 2.00 | 3 | 25 % | 1 |" in lines[2]
    assert "| 16 | out of memory | – | – | – | – | – |" in lines[3]


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "measure", lambda *_: {"seconds": 1.0})
    arguments = argparse.Namespace(
        **{"trunk": "glip-nano", "device": "cpu", "compile": False, "batch": [1, 2], "tasks": ["prompt"]},
        **{"precision": ["float32"], "size": [64, 96], "out": tmp_path / "found.jsonl"},
    )
    gpu.measure_all(arguments)
    gpu.measure_all(arguments)
    assert [json.loads(line)["batch"] for line in arguments.out.read_text().splitlines()] == [1, 2]


@pytest.mark.slow
def test_the_script_runs_its_parts_on_a_cpu(tmp_path):
    script = ROOT / "benchmarks" / "gpu.sh"
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OUT": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([script, "--dry-run", "inference", "training"], check=True, env=environment)
    assert {path.name for path in (tmp_path / "dry-run").iterdir()} >= {"measurements.jsonl", "table.md"}
    assert subprocess.run([script, "nothing"], env=environment).returncode == 2
