import contextlib
import dataclasses
import errno
import json
import os

import pytest
from fake_runs import outcome, visible
from processes import exit_codes

from glip_adapt.bench import runner
from glip_adapt.bench.claims import claim_run
from glip_adapt.bench.plan import BenchPlan, ProtocolConfig
from glip_adapt.bench.records import read_record, read_records
from glip_adapt.bench.runner import RunSummary, in_process, list_runs, run_plan, walk
from glip_adapt.core.config import to_mapping

PLAN = BenchPlan(datasets=("x/a", "b"), methods=("prompt",), shots=(0, 1), seeds=(3,), fit={"rate": 0.1})
NAMES = [
    "glip-t--a--zero_shot--0--3",
    "glip-t--a--prompt--1--3",
    "glip-t--b--zero_shot--0--3",
    "glip-t--b--prompt--1--3",
]
ENVIRONMENT = {"device": "cpu"}


class FakeExecute:
    """Writes a file and gives a fixed outcome; ``trouble`` maps a run's name to what it raises."""

    def __init__(self, trouble=None, execute=None):
        self.trouble = trouble or {}
        self.other = execute
        self.calls = []

    def environment(self, key):
        return ENVIRONMENT

    def execute(self, key, config, directory, on_step):
        self.calls.append(key.name)
        if self.other:
            return self.other(key, config, directory)
        assert list(directory.iterdir()) == []
        (directory / "predictions.json").write_text("[]")
        (directory / "adapter").mkdir()
        on_step("first", 1)
        if key.name in self.trouble:
            raise self.trouble[key.name]
        return outcome()


def run(plan, out, executor, **more):
    return run_plan(plan, out, in_process(executor), **more)


def update_recipe(method, config):
    return {**config, "fit": {"keep_start": False, **config["fit"]}}


def update_protocol(method, config):
    return {**config, "protocol": {**to_mapping(ProtocolConfig()), **config["protocol"]}}


def test_plan_runs_in_order_and_stores_records_beside_their_files(tmp_path):
    execute, started, stepped, finished = FakeExecute(), [], [], []
    summary = run(
        PLAN, tmp_path / "out", execute,
        on_start=lambda *event: started.append(event), on_finish=finished.append,
        on_step=lambda *event: stepped.append(event),
    )  # fmt: skip
    assert summary == RunSummary(done=4, skipped=0, failed=0)
    assert execute.calls == NAMES
    keys = PLAN.keys()
    assert started == [(key, over, 4) for over, key in enumerate(keys)]
    assert stepped == [(key, "first", 1) for key in keys]
    assert sorted(finished, key=lambda record: record.key.name) == read_records(tmp_path / "out")
    record = read_record(tmp_path / "out" / NAMES[1])
    assert record.key.dataset == "x/a"
    assert record.config == PLAN.config_of(record.key)
    assert record.environment == ENVIRONMENT
    assert (tmp_path / "out" / NAMES[1] / "predictions.json").exists()
    assert (tmp_path / "out" / NAMES[1] / "adapter").is_dir()


def test_finished_runs_are_skipped(tmp_path):
    run(PLAN, tmp_path, FakeExecute())
    again = FakeExecute()
    assert run(PLAN, tmp_path, again) == RunSummary(done=0, skipped=4, failed=0)
    assert again.calls == []


def test_larger_plan_does_only_the_new_runs(tmp_path):
    run(dataclasses.replace(PLAN, datasets=("x/a",)), tmp_path, FakeExecute())
    positions, execute = [], FakeExecute()
    summary = run(PLAN, tmp_path, execute, on_start=lambda _key, *place: positions.append(place))
    assert summary == RunSummary(done=2, skipped=2, failed=0)
    assert execute.calls == NAMES[2:]
    assert positions == [(2, 4), (3, 4)]


def test_failure_is_a_record_with_its_traceback_and_the_rest_go_on(tmp_path):
    execute = FakeExecute({NAMES[1]: FloatingPointError("loss is nan in batch 7\nmore")})
    assert run(PLAN, tmp_path, execute) == RunSummary(done=3, skipped=0, failed=1)
    assert execute.calls == NAMES
    record = read_record(tmp_path / NAMES[1])
    assert record.status == "failed"
    assert record.error.splitlines()[0] == "FloatingPointError: loss is nan in batch 7"
    assert "in execute" in record.error
    assert visible(tmp_path / NAMES[1]) == ["record.json"]


def test_failed_run_is_tried_again_also_with_other_settings(tmp_path):
    run(PLAN, tmp_path, FakeExecute({name: ValueError("no") for name in NAMES}))
    assert [run.state for run in list_runs(PLAN, tmp_path)] == ["failed"] * 4
    changed = dataclasses.replace(PLAN, fit={"rate": 0.2})
    assert run(changed, tmp_path, FakeExecute()) == RunSummary(done=4, skipped=0, failed=0)
    assert {record.status for record in read_records(tmp_path)} == {"done"}
    assert visible(tmp_path) == sorted(NAMES)


def test_metrics_out_of_range_are_a_failed_run(tmp_path):
    summary = run(PLAN, tmp_path, FakeExecute(execute=lambda *_: outcome(ap=-1.0)))
    assert summary.failed == 4
    assert "'ap' is -1.0" in read_record(tmp_path / NAMES[0]).error


def test_a_field_of_the_recipe_that_came_later_had_its_default(tmp_path):
    run(PLAN, tmp_path, FakeExecute())
    later = dataclasses.replace(PLAN, fit={"rate": 0.1, "keep_start": False})
    assert run(later, tmp_path, FakeExecute(), update=update_recipe) == RunSummary(done=0, skipped=4, failed=0)
    other = dataclasses.replace(PLAN, fit={"rate": 0.1, "keep_start": True})
    with pytest.raises(ValueError, match=r"fit\.keep_start \(False recorded, True planned\)"):
        run(other, tmp_path, FakeExecute(), update=update_recipe)
    with pytest.raises(ValueError, match=r"fit\.keep_start \('absent' recorded, False planned\)"):
        run(later, tmp_path, FakeExecute())


def test_other_settings_for_a_finished_run_name_the_fields_and_run_nothing(tmp_path):
    run(PLAN, tmp_path, FakeExecute({NAMES[0]: ValueError("no")}))
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*.json")}
    changed = dataclasses.replace(PLAN, fit={"rate": 0.1, "prompt": {"rate": 0.2, "new": 1}})
    execute = FakeExecute()
    with pytest.raises(ValueError) as caught:
        run(changed, tmp_path, execute)
    assert "glip-t--a--prompt--1--3: this run is finished with other settings" in str(caught.value)
    assert "fit.new ('absent' recorded, 1 planned); fit.rate (0.1 recorded, 0.2 planned)" in str(caught.value)
    assert execute.calls == []
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*.json")} == before


def test_dataset_of_the_same_name_elsewhere_is_another_run(tmp_path):
    run(PLAN, tmp_path, FakeExecute())
    moved = dataclasses.replace(PLAN, datasets=("y/a", "b"))
    with pytest.raises(ValueError, match=r"dataset \('x/a' recorded, 'y/a' planned\)"):
        run(moved, tmp_path, FakeExecute())


def test_resolved_settings_are_what_runs_is_stored_and_is_compared(tmp_path):
    def resolve(key, config):
        return {**config, "sides": (480, default), "shots_seen": key.shots}

    default, seen = 800, []

    def execute(key, config, directory):
        seen.append(config["sides"])
        return outcome()

    run(PLAN, tmp_path, FakeExecute(execute=execute), resolve=resolve)
    assert seen == [[480, 800]] * 4
    assert read_record(tmp_path / NAMES[1]).config["shots_seen"] == 1
    assert run(PLAN, tmp_path, FakeExecute(execute=execute), resolve=resolve).skipped == 4
    default = 640
    with pytest.raises(ValueError, match=r"sides \(\[480, 800\] recorded, \[480, 640\] planned\)"):
        run(PLAN, tmp_path, FakeExecute(execute=execute), resolve=resolve)


def test_settings_that_do_not_resolve_stop_before_the_first_run(tmp_path):
    def resolve(key, config):
        if key.dataset == "b":
            raise ValueError("there is no dataset 'b'")
        return config

    execute = FakeExecute()
    with pytest.raises(ValueError, match="no dataset 'b'"):
        run(PLAN, tmp_path, execute, resolve=resolve)
    assert execute.calls == []


def test_interrupt_passes_through_and_the_next_start_does_the_rest(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(PLAN, tmp_path, FakeExecute({NAMES[2]: KeyboardInterrupt()}))
    assert visible(tmp_path) == sorted(NAMES[:2])
    execute = FakeExecute()
    assert run(PLAN, tmp_path, execute) == RunSummary(done=2, skipped=2, failed=0)
    assert execute.calls == NAMES[2:]


def run_until_killed(out):
    """Die in the middle of the second run as by kill -9: nothing is cleaned up."""

    def execute(key, config, directory):
        (directory / "predictions.json").write_text("[")
        if key.name == NAMES[1]:
            os._exit(9)
        return outcome()

    run(PLAN, out, FakeExecute(execute=execute))


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    assert exit_codes(run_until_killed, tmp_path) == [9]
    assert visible(tmp_path) == [f".partial-{NAMES[1]}", NAMES[0]]
    assert [record.key.name for record in read_records(tmp_path)] == [NAMES[0]]
    assert run(PLAN, tmp_path, FakeExecute()) == RunSummary(done=3, skipped=1, failed=0)
    assert visible(tmp_path) == sorted(NAMES)


def test_a_run_done_by_another_runner_since_the_listing_is_not_done_again(tmp_path):
    """The other runner, here inside the first run, does all that is left: one of them fails."""
    theirs = FakeExecute({NAMES[2]: ValueError("no")})

    def execute(key, config, directory):
        if not theirs.calls:
            walk(list_runs(PLAN, tmp_path), tmp_path, theirs, lambda event: None)
        return outcome()

    mine, finished = FakeExecute(execute=execute), []
    assert run(PLAN, tmp_path, mine, on_finish=finished.append) == RunSummary(done=1, skipped=2, failed=1)
    assert (mine.calls, theirs.calls) == (NAMES[:1], NAMES[1:])
    assert [record.key.name for record in finished] == NAMES[:1]


def test_a_run_done_meanwhile_with_other_settings_stops_and_names_them(tmp_path):
    """The other runner, here inside the first run, has another plan; what fails there is nobody's result."""
    changed = dataclasses.replace(PLAN, fit={"rate": 0.2})
    theirs = FakeExecute({NAMES[1]: ValueError("no")})

    def execute(key, config, directory):
        walk(list_runs(changed, tmp_path), tmp_path, theirs, lambda event: None)
        return outcome()

    mine = FakeExecute(execute=execute)
    with pytest.raises(ValueError, match=r"zero_shot--0--3: this run is .*: fit\.rate \(0\.2 recorded, 0\.1 planned\)"):
        run(PLAN, tmp_path, mine)
    assert mine.calls == NAMES[:1]


def test_a_run_held_by_another_runner_is_waited_for_and_taken_over_if_that_dies(tmp_path, monkeypatch):
    """The other runner holds two runs and dies while it is waited for."""
    holding = contextlib.ExitStack()
    assert all(holding.enter_context(claim_run(tmp_path, name)) for name in NAMES[1:3])
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: holding.close())
    execute = FakeExecute()
    assert run(PLAN, tmp_path, execute) == RunSummary(done=4, skipped=0, failed=0)
    assert execute.calls == [NAMES[0], NAMES[3], NAMES[1], NAMES[2]]


def test_a_run_from_before_a_choice_of_the_protocol_came_is_still_the_same(tmp_path):
    run(PLAN, tmp_path, FakeExecute())
    for file in tmp_path.glob("*/record.json"):
        content = json.loads(file.read_text())
        del content["config"]["protocol"]["retention"]
        file.write_text(json.dumps(content))
    assert run(PLAN, tmp_path, FakeExecute(), update=update_protocol).skipped == 4
    other = dataclasses.replace(PLAN, protocol=ProtocolConfig(retention=("b",)))
    with pytest.raises(ValueError, match=r"protocol.retention \(\[\] recorded, \['b'\] planned\)"):
        run(other, tmp_path, FakeExecute(), update=update_protocol)


def chained():
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        wrapped = RuntimeError("could not save the adapter")
        wrapped.__cause__ = error
        return wrapped


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        chained(),
    ],
)
def test_full_disk_stops_the_plan_with_one_error_and_leaves_nothing(tmp_path, trouble):
    execute = FakeExecute({NAMES[1]: trouble})
    with pytest.raises(OSError, match="is full; run glip-t--a--prompt--1--3 was not stored") as caught:
        run(PLAN, tmp_path, execute)
    assert caught.value.errno == errno.ENOSPC
    assert execute.calls == NAMES[:2]
    assert visible(tmp_path) == [NAMES[0]]


def test_disk_full_while_writing_the_record_leaves_nothing(tmp_path, monkeypatch):
    def no_space(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="was not stored"):
        run(PLAN, tmp_path, FakeExecute())
    assert visible(tmp_path) == []


def test_other_os_errors_are_failed_runs(tmp_path):
    execute = FakeExecute({NAMES[1]: FileNotFoundError(errno.ENOENT, "picture is gone")})
    assert run(PLAN, tmp_path, execute).failed == 1


def test_broken_record_stops_before_the_first_run(tmp_path):
    run(PLAN, tmp_path, FakeExecute())
    (tmp_path / NAMES[3] / "record.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(ValueError, match=rf"{NAMES[3]}/record\.json: missing"):
        run(PLAN, tmp_path, FakeExecute())


def test_listing_a_plan_says_what_exists_and_writes_nothing(tmp_path):
    out = tmp_path / "absent"
    assert [run.state for run in list_runs(PLAN, out)] == ["missing"] * 4
    assert not out.exists()
    run(PLAN, tmp_path, FakeExecute({NAMES[1]: ValueError("no")}))
    assert [run.state for run in list_runs(PLAN, tmp_path)] == ["done", "failed", "done", "done"]
