"""A local Ray cluster of two workers; it takes half a minute to start on a busy machine."""

from pathlib import Path

import pytest
from fake_runs import NAMES, PLAN, BuildFake, FakeExecutor, read_log, stored, visible

from glip_adapt.bench.records import read_record
from glip_adapt.bench.runner import RunSummary, in_process, run_plan
from glip_adapt.bench.workers import in_workers

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """Two cores, whatever the machine has, and processes that find the fakes."""
    path = str(Path(__file__).parent)
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield
    ray.shutdown()


def run(out, build):
    from glip_adapt.bench.ray_pool import RayPool

    return run_plan(PLAN, out, in_workers(RayPool(build, 2, "auto")))


def test_two_ray_workers_give_the_records_of_one_process(cluster, tmp_path):
    run_plan(PLAN, tmp_path / "serial", in_process(FakeExecutor(tmp_path / "other")))
    assert run(tmp_path / "out", BuildFake(tmp_path / "log", seconds=0.5)) == RunSummary(done=8, skipped=0, failed=0)
    assert stored(tmp_path / "out") == stored(tmp_path / "serial")
    assert visible(tmp_path / "out") == sorted(NAMES)
    done = read_log(tmp_path / "log")
    assert sorted(entry["run"] for entry in done) == sorted(NAMES)  # each once
    assert len({entry["process"] for entry in done}) == 2


def test_a_ray_worker_that_dies_is_replaced_and_its_run_fails_the_second_time(cluster, tmp_path):
    build = BuildFake(tmp_path / "log", trouble={NAMES[1]: "die", NAMES[2]: ValueError("no boxes")})
    assert run(tmp_path / "out", build) == RunSummary(done=6, skipped=0, failed=2)
    assert read_record(tmp_path / "out" / NAMES[1]).error.startswith("WorkerDied: a Ray worker is gone")
    assert read_record(tmp_path / "out" / NAMES[2]).error.startswith("ValueError: no boxes\nTraceback")


def test_an_error_outside_of_runs_stops_all(cluster, tmp_path):
    with pytest.raises(RuntimeError, match="ValueError: there is no such device"):
        run(tmp_path / "out", BuildFake(tmp_path / "log", fails=True))


def test_an_absent_cluster_is_one_error(monkeypatch):
    from glip_adapt.bench.ray_pool import RayPool

    def refuse(**settings):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(RuntimeError, match=r"No Ray cluster at '10\.0\.0\.1:6379': nobody answers"):
        RayPool(BuildFake(Path("log")), 2, "10.0.0.1:6379")
