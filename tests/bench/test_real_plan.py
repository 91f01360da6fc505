"""A short plan over real pictures through the command line: whoever does the runs, the numbers are the same."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import SHARED
from fake_runs import visible

from glip_adapt.bench.records import read_records

DATASETS = ("Raccoon", "Packages")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "data" / "odinw").is_dir(), reason="the real pictures are not here"),
]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Ten runs of three steps."""
    file = tmp_path_factory.mktemp("plan") / "plan.toml"
    folders = [str(SHARED / "data" / "odinw" / name) for name in DATASETS]
    file.write_text(
        f'trunks = ["glip-nano"]\ndatasets = {folders}\nmethods = ["prompt", "linear_probe"]\nshots = [0, 1, 3]\n'
        "seeds = [3]\n[fit]\nmax_steps = 3\nvalidate_every = 3\n"
    )
    return file


@pytest.fixture(scope="module")
def serial(plan, tmp_path_factory):
    """The metrics of an undisturbed run in one process."""
    out = tmp_path_factory.mktemp("serial") / "out"
    assert start(plan, out).wait() == 0
    return results(out)


def start(plan, out, *arguments):
    command = [sys.executable, "-m", "glip_adapt", "bench", str(plan), "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def results(out):
    """Return name → settings, metrics and predictions of every run."""
    return {
        record.key.name: (record.config, record.metrics, (out / record.key.name / "predictions.json").read_bytes())
        for record in read_records(out)
    }


def test_two_workers_find_what_one_process_finds(plan, serial, tmp_path):
    assert start(plan, tmp_path / "out", "--workers", "2").wait() == 0
    assert len(serial) == 10
    assert results(tmp_path / "out") == serial


def test_kill_9_ten_times_then_resume_finds_what_an_undisturbed_run_finds(plan, serial, tmp_path):
    times, out = random.Random(0), tmp_path / "out"
    for _ in range(10):
        child, began = start(plan, out, "--workers", "2"), time.time()
        while child.poll() is None and not any(path.stat().st_mtime > began for path in out.glob(".partial-*")):
            time.sleep(0.05)
        time.sleep(times.uniform(0.0, 3.0))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert results(out).items() <= serial.items()  # nothing half-written under a final name
    assert start(plan, out, "--workers", "2").wait() == 0
    assert results(out) == serial
    assert visible(out) == sorted(serial)


def test_two_ray_workers_find_what_one_process_finds(plan, serial, tmp_path):
    pytest.importorskip("ray")
    assert start(plan, tmp_path / "out", "--workers", "2", "--ray", "local").wait() == 0
    assert results(tmp_path / "out") == serial
