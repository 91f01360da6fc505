import errno
import time

import pytest
from processes import FORK, start

from glip_adapt.bench.claims import claim_run, clear_leftovers, is_claimed, partial_run
from glip_adapt.bench.plan import RunKey
from glip_adapt.bench.records import PARTIAL, RECORD_FILE, REPLACED

KEY = RunKey("glip-t", "odinw/Raccoon", "prompt", 5, 3)


def test_a_run_is_held_by_one_at_a_time(tmp_path):
    out = tmp_path / "new" / "results"
    with claim_run(out, "a") as mine:
        with claim_run(out, "a") as theirs, claim_run(out, "b") as other:
            assert (mine, theirs, other) == (True, False, True)
        assert is_claimed(out, "a")  # a vain attempt lets nothing go
        assert not is_claimed(out, "b")
    assert not is_claimed(out, "a")


def hold(out, held):
    with claim_run(out, "a"):
        held.set()
        time.sleep(60)


def test_a_claim_ends_with_its_process_by_kill_9(tmp_path):
    held = FORK.Event()
    (child,) = start(hold, tmp_path, held)
    assert held.wait(60)
    assert is_claimed(tmp_path, "a")
    child.kill()
    child.join()
    deadline = time.monotonic() + 5
    while is_claimed(tmp_path, "a"):
        assert time.monotonic() < deadline


def test_leaving_a_partial_run_without_a_record_removes_it(tmp_path):
    with partial_run(tmp_path, KEY) as directory:
        (directory / "history.json").touch()
        assert directory.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_partial_run_starts_empty_whatever_a_dead_one_left(tmp_path):
    (tmp_path / f"{PARTIAL}{KEY.name}" / "adapter").mkdir(parents=True)
    with partial_run(tmp_path, KEY) as directory:
        assert list(directory.iterdir()) == []


def test_a_run_killed_while_it_replaced_a_failed_one_is_kept_and_one_killed_earlier_is_not(tmp_path):
    for name, file in ((KEY.name, RECORD_FILE), ("earlier", "history.json"), ("failed", RECORD_FILE)):
        (tmp_path / f"{PARTIAL}{name}").mkdir()
        (tmp_path / f"{PARTIAL}{name}" / file).write_text("new")
    for folder in (f"{REPLACED}{KEY.name}", f"{REPLACED}earlier", "failed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / RECORD_FILE).write_text("old")
    with claim_run(tmp_path, KEY.name):
        clear_leftovers(tmp_path)
        assert not (tmp_path / KEY.name).exists()  # its process lives and does that itself
    clear_leftovers(tmp_path)
    found = {path.parent.name: path.read_text() for path in tmp_path.glob("*/*")}
    assert {name: text for name, text in found.items() if name != ".claims"} == {KEY.name: "new", "failed": "old"}


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    for name in (f"{PARTIAL}dead", f"{REPLACED}dead", f"{PARTIAL}alive", f"{REPLACED}alive", "finished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    with claim_run(tmp_path, "alive"):
        clear_leftovers(tmp_path)
        found = {path.name for path in tmp_path.iterdir()}
    assert found == {f"{PARTIAL}alive", f"{REPLACED}alive", "finished", ".claims"}


def test_a_file_system_without_locks_is_one_error_that_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match=r"without locks \(No locks available\)\. Put the results on another"):
        is_claimed(tmp_path, "a")
