"""Workers: processes that walk one plan together, report their events, and are replaced if they die.

Every worker walks the same runs, each from another start, and takes those that nobody holds (claims.py). So no runs are
handed out, and a worker stays with a trunk and a dataset as long as it can. ``concurrent.futures`` would not do: one
dead process breaks its whole pool, and the runs of all others are lost.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol

from glip_adapt.bench.events import Emit, Event, Executor, Finished, PlannedRun, Started, Work
from glip_adapt.bench.runner import record_failure, walk
from glip_adapt.core.plain_text import plain

ATTEMPTS = 2  # of a run that takes its worker with it
STOP_SECONDS = 5.0  # for a worker to end when told to

BuildExecutor = Callable[[int], Executor]  # takes the position of a worker; picklable, as workers call it


@dataclass(frozen=True)
class Ended:
    """A worker is gone.

    Attributes:
        death: how it died; None if it is through with its runs.
        error: what stopped it, if it is not of one run, such as a full disk.
    """

    death: str | None = None
    error: Exception | None = None


Report = Event | Ended


class Pool(Protocol):
    """Starts workers, passes on their reports, and ends them."""

    size: int

    def start(self, worker: int, runs: Sequence[PlannedRun], out: Path) -> None:
        """Start a worker that walks ``runs``."""

    def next_report(self) -> tuple[int, Report]:
        """Wait for the next report of any worker; return the worker and the report."""

    def stop(self) -> None:
        """End all workers at once."""


def in_workers(pool: Pool) -> Work:
    """Return a ``Work`` that does runs in the workers of a pool."""
    return lambda runs, out, emit: _Watch(pool, runs, out, emit).run()


class ProcessPool:
    """Workers that are processes on this machine, as many as ``size``; they end with the process that started them."""

    def __init__(self, build: BuildExecutor, size: int) -> None:
        self.size = size
        self._build = build
        self._context = multiprocessing.get_context("spawn")  # a forked child inherits threads that do not run
        self._workers: dict[Connection, tuple[int, SpawnProcess]] = {}

    def start(self, worker: int, runs: Sequence[PlannedRun], out: Path) -> None:
        """Start a worker that walks ``runs``."""
        mine, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(theirs, self._build, worker, runs, out), daemon=True)
        with _ignoring_interrupts():
            process.start()
        theirs.close()  # the worker has the only copy, so that its death is read as the end of the pipe
        self._workers[mine] = (worker, process)

    def next_report(self) -> tuple[int, Report]:
        """Wait for the next report of any worker; return the worker and the report."""
        connection = wait(list(self._workers))[0]
        assert isinstance(connection, Connection)
        worker, process = self._workers[connection]
        try:
            return worker, connection.recv()
        except (EOFError, OSError):
            del self._workers[connection]
            connection.close()
            process.join()
            return worker, Ended(_describe_exit(process.exitcode))

    def stop(self) -> None:
        """End all workers at once."""
        for _, process in self._workers.values():
            process.terminate()
        for connection, (_, process) in self._workers.items():
            process.join(STOP_SECONDS)
            process.kill()
            process.join()
            connection.close()
        self._workers.clear()


class _Watch:
    """Passes the reports of workers on, and replaces workers that die."""

    def __init__(self, pool: Pool, runs: Sequence[PlannedRun], out: Path, emit: Emit) -> None:
        self.pool, self.out, self.emit = pool, out, emit
        self.runs = {run.key.name: run for run in runs}
        self.pending = dict(self.runs)
        self.under_way: dict[int, tuple[PlannedRun, Mapping[str, Any]]] = {}
        self.deaths: Counter[str] = Counter()
        self.idle_deaths = 0  # in a row, of workers that had no run

    def run(self) -> None:
        """Return when every worker has walked all runs; an error ends them."""
        runs = tuple(self.runs.values())
        active = min(self.pool.size, len(runs))
        try:
            for worker, start in enumerate(starting_places(runs, active)):
                self.pool.start(worker, (*runs[start:], *runs[:start]), self.out)
            while active:
                worker, report = self.pool.next_report()
                if not isinstance(report, Ended):
                    self._note(worker, report)
                    continue
                if report.error:
                    raise report.error
                if report.death:
                    self._bury(worker, report.death)
                if report.death and self.pending:
                    self.pool.start(worker, tuple(self.pending.values()), self.out)
                else:
                    active -= 1
        finally:
            self.pool.stop()

    def _note(self, worker: int, event: Event) -> None:
        if isinstance(event, Started):
            self.under_way[worker] = (self.runs[event.key.name], event.environment)
            self.idle_deaths = 0
        elif isinstance(event, Finished):
            self.pending.pop(event.record.key.name, None)
            self.under_way.pop(worker, None)
        self.emit(event)

    def _bury(self, worker: int, how: str) -> None:
        """Store the run of a dead worker as failed, unless it is to be tried again."""
        if worker not in self.under_way:
            self.idle_deaths += 1
            if self.idle_deaths >= ATTEMPTS:
                raise RuntimeError(f"Workers die before they start a run: {how}. Try again with --workers 1.")
            return
        run, environment = self.under_way.pop(worker)
        self.deaths[run.key.name] += 1
        if self.deaths[run.key.name] >= ATTEMPTS:
            error = f"WorkerDied: {how}, {ATTEMPTS} times in this run\nWorkers that need too much memory end like this."
            record = record_failure(run, self.out, environment, error)
            if record is not None:  # else another worker is at it already
                self._note(worker, Finished(record))


def starting_places(runs: Sequence[PlannedRun], workers: int) -> list[int]:
    """Return the position in ``runs`` at which each worker begins: evenly spread, at the first run of a dataset."""
    places = [(run.key.trunk, run.key.dataset) for run in runs]
    return [places.index(places[worker * len(runs) // workers]) for worker in range(workers)]


def _work(connection: Connection, build: BuildExecutor, worker: int, runs: Sequence[PlannedRun], out: Path) -> None:
    """Walk ``runs`` in a process of its own."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log_plainly()

    def emit(report: Report) -> None:
        try:
            connection.send(report)
        except BrokenPipeError:
            os._exit(1)  # nobody listens any more; the run must not count as failed

    try:
        walk(runs, out, build(worker), emit)
    except Exception as error:
        emit(Ended(error=picklable(error)))


def log_plainly() -> None:
    """Print warnings of the library on standard error, with control codes in file names spelled out."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter("warning: %(message)s"))
    logging.getLogger("glip_adapt").handlers = [handler]


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def picklable(error: Exception) -> Exception:
    """Return an error in a form that any process can unpickle."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror)
    return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """Wait until the parent is gone, even by kill -9, and exit as well."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Let processes that start meanwhile ignore Ctrl-C, which a terminal sends to all; their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may ask for it
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _describe_exit(code: int | None) -> str | None:
    """Return how a process died, in words, or None if it ended by itself."""
    if code is not None and code < 0:
        return f"a worker was ended by {signal.Signals(-code).name}"
    return f"a worker ended with exit code {code}" if code != 0 else None
