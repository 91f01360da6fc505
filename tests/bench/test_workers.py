"""Processes that share a plan: nearly every test starts real ones.

Most come from a server that has torch in memory already, which saves seconds each. The first test and those that start
a runner of their own spawn workers as users do.
"""

import errno
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest
from fake_runs import NAMES, PLAN, BuildFake, FakeExecutor, read_log, stored, visible
from processes import exit_codes, start

from glip_adapt.bench import workers
from glip_adapt.bench.claims import claim_run
from glip_adapt.bench.records import read_record, read_records
from glip_adapt.bench.runner import RunSummary, in_process, list_runs, run_plan, walk
from glip_adapt.bench.workers import Ended, ProcessPool, in_workers, starting_places

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["glip_adapt.bench.runner"])


@pytest.fixture
def quick_start(monkeypatch):
    """Have pools take workers from the server."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: SERVER)


def run(out, build, size=2, **more):
    return run_plan(PLAN, out, in_workers(ProcessPool(build, size)), **more)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The records of an undisturbed run in this process."""
    out = tmp_path_factory.mktemp("serial")
    run_plan(PLAN, out, in_process(FakeExecutor(out / "log")))
    (out / "log").unlink()
    return stored(out)


def test_workers_give_the_records_of_one_process_and_tell_of_every_run(tmp_path, serial):
    out, log, events = tmp_path / "out", tmp_path / "log", []
    summary = run(
        out, BuildFake(log, seconds=0.4),
        on_start=lambda key, over, total: events.append(("start", key.name)),
        on_step=lambda key, step, total: events.append((step, key.name)),
        on_finish=lambda record: events.append(("finish", record.key.name)),
    )  # fmt: skip
    assert summary == RunSummary(done=8, skipped=0, failed=0)
    assert stored(out) == serial
    assert visible(out) == sorted(NAMES)
    done = read_log(log)
    assert sorted(entry["run"] for entry in done) == sorted(NAMES)  # each once
    assert len({entry["process"] for entry in done} - {os.getpid()}) == 2
    for name in NAMES:
        assert [what for what, run in events if run == name] == ["start", 1, 2, "finish"]


def test_each_worker_stays_with_a_dataset_while_there_is_one_for_it(quick_start, tmp_path):
    run(tmp_path / "out", BuildFake(tmp_path / "log", seconds=0.3))
    for worker, dataset in ((0, "a"), (1, "b")):
        mine = [entry["run"].split("--")[1] for entry in read_log(tmp_path / "log") if entry["worker"] == worker]
        assert mine[0] == dataset
        assert len(list(groupby(mine))) <= 2  # the other dataset only once its own is done


@pytest.mark.parametrize(("size", "places"), [(1, [0]), (2, [0, 4]), (4, [0, 0, 4, 4])])
def test_workers_begin_evenly_spread_at_the_first_run_of_a_dataset(tmp_path, size, places):
    assert starting_places(list_runs(PLAN, tmp_path), size) == places


class LatePool:
    """Two workers, of which the second does every run before the first looks, and is heard last."""

    size = 2

    def __init__(self, log):
        self.walks, self.executor = [], FakeExecutor(log)

    def start(self, worker, runs, out):
        self.walks.append((worker, runs, out))

    def next_report(self):
        if self.walks:
            told = {worker: [] for worker, *_ in self.walks}
            for worker, runs, out in reversed(self.walks):
                walk(runs, out, self.executor, told[worker].append)
            self.walks = []
            self.reports = [(worker, report) for worker in told for report in (*told[worker], Ended())]
        return self.reports.pop(0)

    def stop(self):
        pass


def test_workers_that_are_heard_in_another_order_than_they_spoke_count_their_own_runs(tmp_path):
    started, finished = [], []
    summary = run_plan(
        PLAN, tmp_path / "out", in_workers(LatePool(tmp_path / "log")),
        on_start=lambda key, over, total: started.append(key.name),
        on_finish=lambda record: finished.append(record.key.name),
    )  # fmt: skip
    assert summary == RunSummary(done=8, skipped=0, failed=0)
    assert sorted(started) == sorted(finished) == sorted(NAMES)


def test_a_failing_run_is_a_record_and_the_rest_go_on(quick_start, tmp_path):
    trouble = {NAMES[2]: ValueError("no boxes")}
    summary = run(tmp_path / "out", BuildFake(tmp_path / "log", trouble=trouble))
    assert summary == RunSummary(done=7, skipped=0, failed=1)
    assert read_record(tmp_path / "out" / NAMES[2]).error.startswith("ValueError: no boxes\nTraceback")


def test_a_run_whose_worker_dies_is_tried_again(quick_start, tmp_path, serial):
    trouble = {NAMES[1]: "die once"}
    assert run(tmp_path / "out", BuildFake(tmp_path / "log", trouble=trouble)).done == 8
    assert [entry["run"] for entry in read_log(tmp_path / "log")].count(NAMES[1]) == 2
    assert stored(tmp_path / "out") == serial


def test_a_run_that_kills_every_worker_fails_and_the_rest_go_on(quick_start, tmp_path):
    finished = []
    build = BuildFake(tmp_path / "log", trouble={NAMES[5]: "die"})
    summary = run(tmp_path / "out", build, on_finish=finished.append)
    assert summary == RunSummary(done=7, skipped=0, failed=1)
    record = read_record(tmp_path / "out" / NAMES[5])
    assert record.error.startswith("WorkerDied: a worker was ended by SIGKILL, 2 times in this run")
    assert record.environment == {"device": "cpu"}
    assert record in finished
    assert visible(tmp_path / "out") == sorted(NAMES)


def test_workers_that_cannot_start_are_one_error(quick_start, tmp_path):
    with pytest.raises(RuntimeError, match="ValueError: there is no such device"):
        run(tmp_path / "out", BuildFake(tmp_path / "log", fails=True))


def test_workers_that_die_at_the_start_are_one_error(quick_start, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_work", os._exit)  # with anything but a whole number: an error, hence exit code 1
    with pytest.raises(RuntimeError, match="Workers die before they start a run: a worker ended with exit code 1"):
        run(tmp_path / "out", BuildFake(tmp_path / "log"))


def test_a_full_disk_in_a_worker_stops_all_and_leaves_nothing(quick_start, tmp_path):
    trouble = {name: OSError(errno.ENOSPC, "No space left on device") for name in NAMES}
    with pytest.raises(OSError, match=r"is full; run .* was not stored") as caught:
        run(tmp_path / "out", BuildFake(tmp_path / "log", trouble=trouble))
    assert caught.value.errno == errno.ENOSPC
    assert visible(tmp_path / "out") == []


def test_an_error_here_ends_the_workers(quick_start, tmp_path):
    def interrupt(*event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", BuildFake(tmp_path / "log", seconds=60), on_step=interrupt, on_start=interrupt)
    assert visible(tmp_path / "out") == []
    with claim_run(tmp_path / "out", NAMES[0]) as mine:
        assert mine


SCRIPT = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores Ctrl-C
from fake_runs import PLAN, BuildFake
from glip_adapt.bench.runner import run_plan
from glip_adapt.bench.workers import ProcessPool, in_workers

if __name__ == "__main__":
    run_plan(PLAN, pathlib.Path(sys.argv[1]), in_workers(ProcessPool(BuildFake(pathlib.Path(sys.argv[2]), 1.0), 2)))
"""


def run_all(tmp_path, seconds, size):
    """Do the plan as a runner, in a process of its own; its workers are spawned."""
    build = BuildFake(tmp_path / "log", seconds)
    run_plan(PLAN, tmp_path / "out", in_process(build(0)) if size == 1 else in_workers(ProcessPool(build, size)))


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_runners_on_one_folder_share_the_work(tmp_path, serial):
    runners = start(run_all, tmp_path, 0.2, 1, count=2)
    for child in runners:
        child.join()
    assert [child.exitcode for child in runners] == [0, 0]
    done = read_log(tmp_path / "log")
    assert sorted(entry["run"] for entry in done) == sorted(NAMES)  # each once
    assert {entry["process"] for entry in done} == {child.pid for child in runners}
    assert stored(tmp_path / "out") == serial
    assert visible(tmp_path / "out") == sorted(NAMES)


def test_ctrl_c_ends_runner_and_workers_and_keeps_what_is_finished(tmp_path):
    (tmp_path / "runner.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *(str(tmp_path / name) for name in ("runner.py", "out", "log"))]
    child = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(read_records(tmp_path / "out")) >= 2)
    processes = {entry["process"] for entry in read_log(tmp_path / "log")}
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, error = child.communicate()
    assert error.strip().endswith("KeyboardInterrupt")
    assert error.count("Traceback") == 1  # the runner's own: no worker complains
    wait_for(lambda: not any(map(is_running, processes)))
    assert not [name for name in visible(tmp_path / "out") if name.startswith(".")]
    assert {record.status for record in read_records(tmp_path / "out")} == {"done"}


def test_workers_go_with_their_runner_in_the_middle_of_a_run(tmp_path):
    (child,) = start(run_all, tmp_path, 60.0, 2)
    wait_for(lambda: len(read_log(tmp_path / "log")) == 2)
    processes = {entry["process"] for entry in read_log(tmp_path / "log")}
    child.kill()
    child.join()
    wait_for(lambda: not any(map(is_running, processes)), seconds=20)


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_9_ten_times_then_resume_equals_an_undisturbed_run(tmp_path, serial, size):
    """Of the runs in flight nothing is kept, of the others everything; workers go with their runner."""
    times, seen = random.Random(0), {}
    for _ in range(10):
        (child,) = start(run_all, tmp_path, 0.2, size)
        time.sleep(times.uniform(0.0, 0.6 if size == 1 else 6.0))
        child.kill()
        child.join()
        found = {record.key.name: record for record in read_records(tmp_path / "out")}
        assert seen.items() <= found.items()
        seen = found
    wait_for(lambda: not any(is_running(entry["process"]) for entry in read_log(tmp_path / "log")))
    run_plan(PLAN, tmp_path / "out", in_process(FakeExecutor(tmp_path / "log")))
    assert stored(tmp_path / "out") == serial
    assert visible(tmp_path / "out") == sorted(NAMES)


def is_running(process):
    try:
        os.kill(process, 0)
        status = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return status != "Z"


def warn_in_a_worker():
    workers.log_plainly()
    logging.getLogger("glip_adapt.data").warning("file \x1b[2J.png")


def test_a_worker_prints_warnings_without_control_codes(capfd):
    assert exit_codes(warn_in_a_worker) == [0]
    assert capfd.readouterr().err == "warning: file \\x1b[2J.png\n"
