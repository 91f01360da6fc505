"""The verb ``bench`` as a user types it, in process; what it runs is tested in tests/bench."""

import json
import resource

import pytest

from glip_adapt.bench import forecast
from glip_adapt.engine import memory
from glip_adapt.engine.memory import MemoryEstimate


@pytest.fixture
def bench(glip, monkeypatch, coco_folder, tmp_path):
    """Return a function that runs the verb on a plan of three runs; it returns exit code, output and errors."""
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'trunks = ["glip-nano"]\ndatasets = ["{coco_folder}", "Packages"]\nmethods = ["prompt"]\nshots = [0, 1]\n'
        "seeds = [3]\n[fit]\nmax_steps = 1\nshort_sides = [64]\ntest_short_side = 64\n"
    )
    gigabytes = MemoryEstimate(weights=10**9, trained=0, activations=5 * 10**8, features=10**7)
    monkeypatch.setattr(memory, "estimate_memory", lambda *given: gigabytes)
    monkeypatch.setattr(forecast, "stored_step", lambda *given: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLIP_ADAPT_DATA", raising=False)

    def run(*arguments, text=None):
        if text:
            plan.write_text(plan.read_text().replace(*text))
        return glip("bench", plan, "--out", "out", *arguments)

    return run


def test_a_dry_run_lists_runs_memory_and_the_command_for_missing_data(bench, tmp_path):
    code, out, err = bench("--dry-run", "--workers", "2")
    assert code == 0, err
    assert "glip-nano--shapes--prompt--1--3" in out
    assert "4 runs, 0 done, 4 to do: time unknown for 4, up to 1.5 GB in each of 2 workers." in out
    assert "Features of all images of a run take" in out
    assert "`glip-adapt data fetch Packages` gets it" in out
    rows = json.loads(bench("--dry-run", "--json")[1])
    assert rows["runs"][0]["memory, GB"] == 1.5
    assert rows["runs"][0]["features, GB"] > 0
    assert [row["state"] for row in rows["runs"]] == ["missing", "missing", "no data", "no data"]
    assert list(rows["missing"]) == ["Packages"]
    assert not (tmp_path / "out").exists()


def test_without_a_dry_run_missing_data_are_an_error_that_names_the_plan(bench, tmp_path):
    code, _, err = bench()
    assert code == 1
    assert f"{tmp_path / 'plan.toml'}, datasets, Packages: Dataset 'Packages' is known but not on this machine" in err


def test_the_estimate_of_time_comes_from_what_is_done(bench, tmp_path):
    code, out, err = bench("--json", text=(', "Packages"', ""))
    assert code == 0, err
    assert json.loads(out) == {"done": 2, "skipped": 0, "failed": 0}
    for file in tmp_path.glob("out/*/record.json"):
        record = json.loads(file.read_text())
        record["cost"]["seconds"] = 1800.0
        file.write_text(json.dumps(record))
    _, out, _ = bench("--dry-run", "--workers", "2", text=("seeds = [3]", "seeds = [3, 30, 300]"))
    assert "4 runs, 2 done, 2 to do: about 0:30:00 (h:mm:ss) for 2 of them, up to 1.5 GB" in out


def test_brackets_in_a_folder_are_no_markup(bench, glip, tmp_path):
    code, out, err = bench("--out", "run[/old]", text=(', "Packages"', ""))
    assert code == 0, err
    assert "→ run[/old]" in out
    code, out, err = glip("report", "run[/old]", "--note", "[red]\x1b[31m")
    assert code == 0, err
    assert "run[/old]/report/index.html" in out
    assert "\x1b" not in out
    (tmp_path / "run[/old]" / "glip-nano--shapes--prompt--1--3" / "record.json").write_text("[" * 200_000)
    for call in (("report", "run[/old]"), ("bench", tmp_path / "plan.toml", "--out", "run[/old]", "--dry-run")):
        code, _, err = glip(*call)
        assert code == 1
        assert "run[/old]/glip-nano--shapes--prompt--1--3/record.json: not a readable record" in err


def test_a_full_disk_leaves_the_files_of_the_last_report(bench, glip, tmp_path):
    code, _, err = bench(text=(', "Packages"', ""))
    assert code == 0, err
    assert glip("report", "out")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "report").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # bytes of a file
    try:
        code, _, err = glip("report", "out", "--note", "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "out/report/data_efficiency.png could not be written" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "report").iterdir()} == before
