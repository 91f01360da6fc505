"""The command line under torchrun: one process speaks and writes, errors are told once."""

import json
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import write_split

from glip_adapt.engine import ranks as ranks_module
from glip_adapt.engine.ranks import Ranks


@pytest.fixture
def as_rank(monkeypatch):
    """Let the command line be one of two processes; errors are marked as told by rank 0 or not."""

    def use(rank, is_told=True):
        ranks = Ranks()
        ranks.rank, ranks.count = rank, 2

        @contextmanager
        def joined():
            yield ranks

        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(ranks_module, "joined", joined)
        monkeypatch.setattr(ranks_module, "is_told", lambda error: is_told)

    return use


def test_a_verb_that_does_not_divide_its_work_is_refused_in_one_sentence(glip, as_rank, tmp_path):
    as_rank(0)
    code, out, err = glip("bench", "plan.toml", "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.startswith("error: torchrun is for adapt and eval")
    assert "`glip-adapt bench` without it" in err


def test_an_error_of_all_is_told_by_the_first_process_alone(glip, as_rank, tmp_path):
    as_rank(0)
    code, _, err = glip("adapt", tmp_path / "none")
    assert (code, err.count("error:")) == (1, 1)
    as_rank(1)
    assert glip("adapt", tmp_path / "none") == (1, "", "")
    assert glip("adapt", "--nonsense") == (2, "", "")


def test_an_error_of_its_own_is_told_by_any_process(glip, as_rank, tmp_path):
    as_rank(1, is_told=False)
    code, out, err = glip("adapt", tmp_path / "none")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")


@pytest.mark.slow
def test_adapt_by_torchrun_writes_one_adapter_and_one_page(tmp_path):
    write_split(tmp_path / "photos" / "train", 6, np.random.default_rng(0))
    written = tmp_path / "photos" / "train" / "annotations_without_background.json"
    written.rename(written.with_name("_annotations.coco.json"))
    (tmp_path / "recipe.toml").write_text("max_steps = 4")
    options = ["--method", "prompt", "--trunk", "glip-nano", "--config", "recipe.toml", "--json"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    found = {}
    for out, start in (("two", launch), ("one", [sys.executable, "-m"])):
        command = [*start, "glip_adapt", "adapt", "photos", *options, "--out", out]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        found[out] = json.loads(done.stdout)  # one JSON value
        assert done.stderr.count("trying prompt") == 1
    files = {path.name for path in (tmp_path / "two").iterdir()}
    assert files == {"adapter.json", "adapter.safetensors", "index.html", "training.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "recipe.toml", "one", "two"}
    for name in ("steps", "zero_shot_ap", "trained_parameters"):
        assert found["two"][name] == pytest.approx(found["one"][name])
    assert found["two"]["expected_ap"] == pytest.approx(found["one"]["expected_ap"], abs=0.02)
