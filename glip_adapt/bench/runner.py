"""Run a plan: skip finished runs, do the others, and store each as a record. How to do one run is passed in.

``run_plan`` lists the runs, has them walked, and counts. ``walk`` does runs one after the other, in this process or in
one of many workers; it takes those that no other process holds.
"""

from __future__ import annotations

import datetime
import errno
import functools
import json
import logging
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glip_adapt.bench.claims import claim_run, clear_leftovers, is_claimed, partial_run
from glip_adapt.bench.events import Emit, Event, Executor, Finished, PlannedRun, Started, Stepped, Update, Work
from glip_adapt.bench.plan import BenchPlan, RunKey
from glip_adapt.bench.records import RunRecord, find_record, write_record
from glip_adapt.core.config import to_mapping

WAIT_SECONDS = 1.0  # between looks at runs that another runner holds

logger = logging.getLogger(__name__)

Resolve = Callable[[RunKey, Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How the runs of a plan ended.

    Attributes:
        done: runs done now.
        skipped: runs done before, or meanwhile by another runner.
        failed: runs that failed now, here or with another runner.
    """

    done: int
    skipped: int
    failed: int


def run_plan(
    plan: BenchPlan,
    out: Path,
    work: Work,
    *,
    resolve: Resolve | None = None,
    update: Update | None = None,
    on_start: Callable[[RunKey, int, int], None] | None = None,
    on_step: Callable[[RunKey, Any, int], None] | None = None,
    on_finish: Callable[[RunRecord], None] | None = None,
) -> RunSummary:
    """Do every run of ``plan`` that ``out`` does not hold yet, and return the counts.

    A run that raises becomes a record with its traceback, is tried again at the next start, and does not stop the rest.
    Runs that another runner has in hand are waited for, and taken over should it die. ``work`` does those of given runs
    that nobody else holds, and reports: ``in_process`` or ``workers.in_workers``. ``resolve`` and ``update`` are those
    of ``list_runs``, and what is called on events is as for ``benchmark.run_benchmark``.

    Raises:
        ValueError: before the first run, if a finished run has other settings than the plan, or a record is broken;
            later, if another runner has meanwhile done a run with other settings.
        OSError: if the disk is full; finished runs are kept and those under way leave nothing.
        RuntimeError: if workers cannot start, or one of them meets such a run of another runner.
    """
    out.mkdir(parents=True, exist_ok=True)
    clear_leftovers(out)
    progress = _Progress(list_runs(plan, out, resolve, update), on_start, on_step, on_finish)
    try:
        while progress.pending:
            free = [run for name, run in progress.pending.items() if not is_claimed(out, name)]
            if free:
                work(free, out, progress.note)
            else:
                time.sleep(WAIT_SECONDS)
    finally:
        clear_leftovers(out)
    return progress.summary()


def list_runs(
    plan: BenchPlan, out: Path, resolve: Resolve | None = None, update: Update | None = None
) -> tuple[PlannedRun, ...]:
    """Return the runs of ``plan`` in order, with their resolved settings and their records in ``out``, if it is there.

    ``resolve`` turns the settings that a plan gives (``BenchPlan.config_of``) into all settings of the run, defaults
    included, so that a changed default is noticed; without it they are stored as given. ``update`` brings the settings
    of a record from before a setting existed or was renamed up to date; it is a function of a module, as it goes to
    worker processes.

    Raises:
        ValueError: if a finished run has other settings, naming each, or a record is broken.
    """
    runs = []
    for key in plan.keys():  # noqa: SIM118  # a plan is no dict
        given = plan.config_of(key)
        config = json.loads(json.dumps(resolve(key, given) if resolve else given, allow_nan=False))
        record = find_record(out / key.name)
        run = PlannedRun(key=key, config=config, record=record, update=update)
        _check_same(record, run)
        runs.append(run)
    return tuple(runs)


def in_process(executor: Executor) -> Work:
    """Return a ``Work`` that does runs in this process."""
    return lambda runs, out, emit: walk(runs, out, executor, emit)


def walk(runs: Sequence[PlannedRun], out: Path, executor: Executor, emit: Emit) -> None:
    """Do in order those of ``runs`` that no other process holds or has done since they were listed.

    Raises:
        ValueError: if another process has done one with other settings, naming each.
        OSError: if the disk is full; the run under way leaves nothing.
    """
    for run in runs:
        with claim_run(out, run.key.name) as mine:
            if not mine:
                continue
            found = find_record(out / run.key.name)
            if found is not None and found != run.record:
                _check_same(found, run)
                emit(Finished(found, elsewhere=True))
                continue
            environment = executor.environment(run.key)
            emit(Started(run.key, environment))
            emit(Finished(_store(run, out, environment, functools.partial(_execute, run, executor, emit))))


def record_failure(run: PlannedRun, out: Path, environment: Mapping[str, Any], error: str) -> RunRecord | None:
    """Store a run as failed and return its record, or None where another process holds the run or has done it."""
    with claim_run(out, run.key.name) as mine:
        if not mine or find_record(out / run.key.name) != run.record:
            return None
        return _store(run, out, environment, lambda directory: {"status": "failed", "error": error})


@dataclass
class _Progress:
    """Which runs of a plan are not over, and how the others ended."""

    runs: Sequence[PlannedRun]
    on_start: Callable[[RunKey, int, int], None] | None
    on_step: Callable[[RunKey, Any, int], None] | None
    on_finish: Callable[[RunRecord], None] | None

    def __post_init__(self) -> None:
        self.total = len(self.runs)
        self.pending = {run.key.name: run for run in self.runs if run.state != "done"}
        self.ended: dict[str, Finished] = {}

    def note(self, event: Event) -> None:
        """Take note of an event and pass it on.

        Events of workers arrive in any order: one of ours may find a run done elsewhere before the other of ours, which
        did it, is heard. The latter counts.
        """
        if isinstance(event, Started) and self.on_start:
            self.on_start(event.key, self.total - len(self.pending), self.total)
        elif isinstance(event, Stepped) and self.on_step:
            self.on_step(event.key, event.step, event.total)
        elif isinstance(event, Finished):
            name = event.record.key.name
            known = self.ended.get(name)
            if known is None or (known.elsewhere and not event.elsewhere):
                self.ended[name] = event
                self.pending.pop(name, None)
                if not event.elsewhere and self.on_finish:
                    self.on_finish(event.record)

    def summary(self) -> RunSummary:
        failed = sum(event.record.status == "failed" for event in self.ended.values())
        done = sum(event.record.status == "done" and not event.elsewhere for event in self.ended.values())
        return RunSummary(done=done, skipped=self.total - done - failed, failed=failed)


def _store(
    run: PlannedRun, out: Path, environment: Mapping[str, Any], attempt: Callable[[Path], dict[str, Any]]
) -> RunRecord:
    """Make and store the record of one run; ``attempt`` fills its folder and returns the fields of its outcome."""
    try:
        with partial_run(out, run.key) as directory:
            result = attempt(directory)
            # In microseconds, so that two failures of one run are not taken for one.
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
            record = RunRecord(key=run.key, config=run.config, environment=environment, created=created, **result)
            write_record(out, record, directory)
            return record
    except Exception as error:
        if not _is_disk_full(error):
            raise
        raise OSError(
            errno.ENOSPC,
            f"The disk that holds {out} is full; run {run.key.name} was not stored. Finished runs are kept: "
            "free some space and start the same command again",
        ) from error


def _execute(run: PlannedRun, executor: Executor, emit: Emit, directory: Path) -> dict[str, Any]:
    """Do one run and return the fields of its outcome; of all exceptions, only a full disk is raised."""
    try:
        outcome = executor.execute(run.key, run.config, directory, lambda *step: emit(Stepped(run.key, *step)))
        return {"status": "done", **vars(outcome)}
    except Exception as error:
        if _is_disk_full(error):
            raise
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning("run %s failed: %s", run.key.name, summary)
        shutil.rmtree(directory)
        directory.mkdir()
        return {"status": "failed", "error": f"{summary}\n{''.join(traceback.format_exception(error))}"}


def _check_same(record: RunRecord | None, run: PlannedRun) -> None:
    """Raise if a finished run of this name was another run, naming every setting that differs."""
    if record is None or record.status != "done":
        return
    config: Mapping[str, Any] = {"settings": {}, **record.config}
    config = run.update(run.key.method, config) if run.update else config
    recorded, planned = _flatten({**to_mapping(record.key), **config}), _flatten({**to_mapping(run.key), **run.config})
    found = {name: (recorded.get(name, "absent"), planned.get(name, "absent")) for name in {*recorded, *planned}}
    differing = [f"{name} ({a!r} recorded, {b!r} planned)" for name, (a, b) in sorted(found.items()) if a != b]
    if differing:
        raise ValueError(
            f"{run.key.name}: this run is finished with other settings: {'; '.join(differing)}. "
            "Use another --out, or remove its folder to run it again."
        )


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _is_disk_full(error: BaseException | None) -> bool:
    """Say whether a full disk or quota is behind an error; some writers report it in words only."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
