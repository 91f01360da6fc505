"""benchmarks/memory.py: what is stored is what a measurement finds, of any family."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import load_benchmark
from second_family import SPEC

from glip_adapt.adapters import ADAPTERS
from glip_adapt.engine.memory import measure_step
from glip_adapt.engine.step_memory import STORED, read_steps
from glip_adapt.trunks.catalogue import random_trunk
from glip_adapt.trunks.released import TRUNKS

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "memory.py"
NANO = ("glip-nano", "glip-nano-a", "dino-nano")


@pytest.fixture
def script():
    yield from load_benchmark("memory")


@pytest.fixture
def stored(script, tmp_path, monkeypatch):
    """A copy of the file, which the script reads and writes."""
    copy = tmp_path / "step_memory.json"
    shutil.copy(STORED, copy)
    monkeypatch.setattr(script, "STORED", copy)
    return copy


@pytest.mark.parametrize("name", NANO)
def test_a_measurement_finds_what_is_stored(name):
    """If the network has changed: python benchmarks/memory.py --write."""
    trunk = random_trunk(name)
    measure_step(trunk, "zero_shot")  # makes the anchors and other tables, which are kept
    rows = [row for row in read_steps(STORED) if row.trunk == name and row.method in ("context", "prompt")]
    assert len(rows) >= 2
    for row in rows:
        assert measure_step(trunk, row.method, bool(row.recompute), row.settings) == row.step


@pytest.mark.slow
def test_a_measurement_finds_all_that_is_stored_of_the_nano_trunks():
    names = (*NANO, "dyhead-nano")
    done = subprocess.run([sys.executable, SCRIPT, *names], capture_output=True, text=True, check=False)
    rows = sum(row.trunk in names for row in read_steps(STORED))
    assert (done.stdout.splitlines()[-1], done.returncode) == (f"{rows} rows, 0 differ", 0), done.stdout + done.stderr


def test_a_trunk_of_another_family_gets_rows_for_the_methods_that_it_takes(script, monkeypatch, capsys):
    monkeypatch.setitem(TRUNKS, "queries", dataclasses.replace(SPEC, settings={"full": {"frozen": ("absent",)}}))
    rows = script.measure_trunk("queries")
    assert {row.method for row in rows} == {*ADAPTERS} - {"full", "exemplars"}
    assert {row.trunk for row in rows} == {"queries"}
    told = capsys.readouterr().out
    assert "queries, full: no row. Cannot freeze ['absent']" in told
    assert "queries, exemplars: no row. QueryDetector has no seam" in told
    trunk = random_trunk("queries")
    for row in rows:
        assert row.recompute is None  # this network has no blocks
        assert row.step == measure_step(trunk, row.method, False, row.settings)


def test_rows_of_some_trunks_are_written_beside_those_of_others(script, stored, monkeypatch):
    before = read_steps(STORED)
    changed = [dataclasses.replace(row, recompute=None) for row in before if row.trunk == "glip-l"][-1:]
    monkeypatch.setattr(script, "measure_trunks", lambda names: [changed] if names == ["glip-l"] else [before])
    assert script.main(["glip-l", "--write"]) == 0
    others = [row for row in before if row.trunk != "glip-l"]
    first = sum(row.trunk < "glip-l" for row in others)
    assert [*read_steps(stored)] == [*others[:first], *changed, *others[first:]]
    stored.write_text("damaged")
    assert script.main(["--write"]) == 0  # all are measured, so that no old row is needed
    assert read_steps(stored) == before


def test_what_is_written_is_as_it_was(script, stored, monkeypatch):
    monkeypatch.setattr(script, "measure_trunks", lambda names: [reversed(read_steps(STORED))])
    assert script.main(["--write"]) == 0
    assert stored.read_bytes() == STORED.read_bytes()


def test_rows_that_differ_are_printed(script, stored, monkeypatch, capsys):
    rows = [row for row in read_steps(STORED) if row.trunk == "glip-t"]
    monkeypatch.setattr(script, "measure_trunks", lambda names: [rows])
    assert script.main(["glip-t"]) == 0
    assert f"{len(rows)} rows, 0 differ" in capsys.readouterr().out
    other = dataclasses.replace(rows[0], step=dataclasses.replace(rows[0].step, weights=1))
    monkeypatch.setattr(script, "measure_trunks", lambda names: [[other, *rows[1:-1]]])
    assert script.main(["glip-t"]) == 1
    out = capsys.readouterr().out
    assert f"{len(rows)} rows, 2 differ" in out
    assert "weights=1," in out
    assert "  measured  None" in out
