"""Workers on a Ray cluster, for the extra ``ray``.

All nodes see the results folder, the datasets and the checkpoints under the same paths, and have the package installed;
environment variables, such as GLIP_ADAPT_DATA, are those of the node.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glip_adapt.bench.events import PlannedRun
from glip_adapt.bench.runner import walk
from glip_adapt.bench.workers import STOP_SECONDS, BuildExecutor, Ended, Report, picklable

try:
    import ray
    from ray.exceptions import RayError
    from ray.util.queue import Empty, Queue
except ImportError as error:
    raise RuntimeError("Ray is not installed. `pip install glip-adapt[ray]` brings it, or use --workers.") from error

POLL_SECONDS = 0.2


class RayPool:
    """Workers that are tasks of a Ray cluster."""

    def __init__(self, build: BuildExecutor, size: int, address: str, *, threads: int = 1, gpus: float = 0) -> None:
        """Connect to the cluster.

        Args:
            build: makes the executor, in the worker; Ray shows each worker only its own GPUs.
            size: number of workers.
            address: of the cluster; ``"auto"`` finds that of this machine, ``"local"`` starts one here.
            threads: CPU cores that a worker takes.
            gpus: GPUs that a worker takes.

        Raises:
            RuntimeError: if there is no such cluster, or it has no room for a worker.
        """
        self.size = size
        self._build = build
        try:
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, ValueError) as error:
            raise RuntimeError(f"No Ray cluster at {address!r}: {error}") from error
        _check_room(address, threads, gpus)
        self._task = ray.remote(_work).options(num_cpus=threads, num_gpus=gpus, max_retries=0)
        self._queue = Queue(actor_options={"num_cpus": 0})
        self._workers: dict[Any, int] = {}

    def start(self, worker: int, runs: Sequence[PlannedRun], out: Path) -> None:
        """Start a worker that walks ``runs``."""
        place = (os.getcwd(), out.resolve())
        self._workers[self._task.remote(self._queue, self._build, worker, runs, *place)] = worker

    def next_report(self) -> tuple[int, Report]:
        """Wait for the next report of any worker; return the worker and the report."""
        while True:
            ended, _ = ray.wait(list(self._workers), timeout=0)
            try:  # reports from before the end of a worker come before its end
                return self._queue.get(timeout=0.01 if ended else POLL_SECONDS)
            except Empty:
                if ended:
                    return self._workers.pop(ended[0]), Ended(_describe_death(ended[0]))

    def stop(self) -> None:
        """End all workers at once."""
        for task in self._workers:
            with contextlib.suppress(RayError):
                ray.cancel(task, force=True)
        if self._workers:
            ray.wait(list(self._workers), num_returns=len(self._workers), timeout=STOP_SECONDS)
        self._workers.clear()


def _check_room(address: str, threads: int, gpus: float) -> None:
    """Raise if no node is large enough for a worker; Ray would wait for one without a message."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = [(node.get("GPU", 0), node.get("CPU", 0)) for node in nodes]
    if any(node_gpus >= gpus and node_cpus >= threads for node_gpus, node_cpus in rooms):
        return
    most_gpus, most_cpus = max(rooms, default=(0, 0), key=lambda room: room if gpus else room[::-1])
    raise RuntimeError(
        f"The Ray cluster at {address!r} has no room for a worker, which takes {threads} CPUs and {gpus:g} GPUs; the "
        f"largest node has {most_cpus:g} and {most_gpus:g}. Add a larger node, or ask for less: `threads` in the plan, "
        "--device."
    )


def _describe_death(task: Any) -> str | None:
    """Return how a task died, in words, or None if it ended by itself."""
    try:
        ray.get(task)
    except RayError as error:
        return f"a Ray worker is gone ({type(error).__name__})"
    return None


def _work(queue: Queue, build: BuildExecutor, worker: int, runs: Sequence[PlannedRun], folder: str, out: Path) -> None:
    """Walk ``runs`` in a task."""
    try:
        os.chdir(folder)  # relative paths of a plan start from it
        walk(runs, out, build(worker), lambda event: queue.put((worker, event)))
    except Exception as error:
        queue.put((worker, Ended(error=picklable(error))))
