"""Workers on Ray; where a test needs a cluster, a local one, which takes half a minute to start on a busy machine."""

from pathlib import Path

import pytest
from fake_runs import NAMES, PLAN, BuildFake, FakeExecutor, read_log, stored, visible

from glip_adapt.bench.records import read_record
from glip_adapt.bench.runner import RunSummary, in_process, run_plan
from glip_adapt.bench.workers import in_workers

ray = pytest.importorskip("ray")
ray_pool = pytest.importorskip("glip_adapt.bench.ray_pool")


@pytest.fixture(scope="module")
def cluster():
    """Two cores, whatever the machine has, and processes that find the fakes."""
    path = str(Path(__file__).parent)
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield
    ray.shutdown()


def run(out, build):
    return run_plan(PLAN, out, in_workers(ray_pool.RayPool(build, 2, "auto")))


@pytest.mark.slow
def test_two_ray_workers_give_the_records_of_one_process(cluster, tmp_path):
    run_plan(PLAN, tmp_path / "serial", in_process(FakeExecutor(tmp_path / "other")))
    assert run(tmp_path / "out", BuildFake(tmp_path / "log", seconds=0.5)) == RunSummary(done=8, skipped=0, failed=0)
    assert stored(tmp_path / "out") == stored(tmp_path / "serial")
    assert visible(tmp_path / "out") == sorted(NAMES)
    done = read_log(tmp_path / "log")
    assert sorted(entry["run"] for entry in done) == sorted(NAMES)  # each once
    assert len({entry["process"] for entry in done}) == 2


@pytest.mark.slow
def test_a_ray_worker_that_dies_is_replaced_and_its_run_fails_the_second_time(cluster, tmp_path):
    build = BuildFake(tmp_path / "log", trouble={NAMES[1]: "die", NAMES[2]: ValueError("no boxes")})
    assert run(tmp_path / "out", build) == RunSummary(done=6, skipped=0, failed=2)
    assert read_record(tmp_path / "out" / NAMES[1]).error.startswith("WorkerDied: a Ray worker is gone")
    assert read_record(tmp_path / "out" / NAMES[2]).error.startswith("ValueError: no boxes\nTraceback")


@pytest.mark.slow
def test_an_error_outside_of_runs_stops_all(cluster, tmp_path):
    with pytest.raises(RuntimeError, match="ValueError: there is no such device"):
        run(tmp_path / "out", BuildFake(tmp_path / "log", fails=True))


def test_an_absent_cluster_is_one_error(monkeypatch):
    def refuse(**settings):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(RuntimeError, match=r"No Ray cluster at '10\.0\.0\.1:6379': nobody answers"):
        ray_pool.RayPool(BuildFake(Path("log")), 2, "10.0.0.1:6379")


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of two living nodes that is only described."""
    described = [({"CPU": 8.0}, True), ({"CPU": 4.0, "GPU": 1.0}, True), ({"CPU": 64.0, "GPU": 8.0}, False)]
    monkeypatch.setattr(ray, "init", lambda **settings: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Resources": has, "Alive": alive} for has, alive in described])
    monkeypatch.setattr(ray_pool, "Queue", lambda **settings: None)


@pytest.mark.parametrize(("threads", "gpus"), [(8, 0), (4, 1)])
def test_a_cluster_with_a_node_for_a_worker_is_taken(nodes, threads, gpus):
    ray_pool.RayPool(BuildFake(Path("log")), 2, "auto", threads=threads, gpus=gpus)


@pytest.mark.parametrize(
    ("threads", "gpus", "message"),
    [
        (16, 0, "16 CPUs and 0 GPUs; the largest node has 8 and 0"),
        (1, 2, "1 CPUs and 2 GPUs; the largest node has 4 and 1"),
        (8, 1, "8 CPUs and 1 GPUs; the largest node has 4 and 1"),  # no one node has both
    ],
)
def test_a_cluster_without_room_for_a_worker_is_one_error(nodes, threads, gpus, message):
    with pytest.raises(RuntimeError, match=f"'auto' has no room for a worker, which takes {message}"):
        ray_pool.RayPool(BuildFake(Path("log")), 2, "auto", threads=threads, gpus=gpus)
