"""Walks a plan, skips what is done, and stores each run as a record; how to do one run is passed in.

``walk`` is what every process does, alone or as one of many workers: it takes one run after the other that nobody else
holds. ``run_plan`` lists the runs, has them walked, and counts.
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
from typing import Any, Literal, Protocol

from glip_adapt.adapters import build_adapter
from glip_adapt.bench.claims import claim_run, clear_leftovers, is_claimed, partial_run
from glip_adapt.bench.plan import BenchPlan, ProtocolConfig, RunKey
from glip_adapt.bench.records import RunCost, RunMetrics, RunRecord, find_record, write_record
from glip_adapt.core.config import to_mapping
from glip_adapt.engine.recipes import FitConfig

WAIT_SECONDS = 1.0  # between looks at runs that another runner holds

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What one run gives back, as its record holds it; its files are already in its folder."""

    metrics: RunMetrics
    cost: RunCost
    train_source: str | None = None
    selected_on: str | None = None


class Executor(Protocol):
    """Does runs one after the other in one process, and keeps what they share."""

    def environment(self, key: RunKey) -> Mapping[str, Any]:
        """Return where a run takes place, as ``capture_environment`` does; stored in its record."""

    def execute(
        self, key: RunKey, config: Mapping[str, Any], directory: Path, on_step: Callable[[Any, int], None]
    ) -> RunOutcome:
        """Do one run.

        Args:
            key: which run.
            config: its resolved settings.
            directory: empty folder for its files.
            on_step: to be called after each training step with it and the number of steps.
        """


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a plan and what the results folder holds of it.

    Attributes:
        key: which run.
        config: its resolved settings, JSON-ready.
        record: of the run, if it is there; a failed one will be tried again.
    """

    key: RunKey
    config: Mapping[str, Any]
    record: RunRecord | None

    @property
    def state(self) -> Literal["done", "failed", "missing"]:
        """What the results folder holds."""
        return self.record.status if self.record else "missing"


@dataclass(frozen=True)
class Started:
    """A run begins, in this environment."""

    key: RunKey
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Stepped:
    """A run took a training step of ``total``."""

    key: RunKey
    step: Any
    total: int


@dataclass(frozen=True)
class Finished:
    """A run is over, done or failed; ``elsewhere`` says that another runner did it since the plan was listed."""

    record: RunRecord
    elsewhere: bool = False


Event = Started | Stepped | Finished
Emit = Callable[[Event], None]
Work = Callable[[Sequence[PlannedRun], Path, Emit], None]
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
    on_start: Callable[[RunKey, int, int], None] | None = None,
    on_step: Callable[[RunKey, Any, int], None] | None = None,
    on_finish: Callable[[RunRecord], None] | None = None,
) -> RunSummary:
    """Do every run of ``plan`` that ``out`` does not hold yet, and return the counts.

    A run that raises becomes a record with its traceback, is tried again at the next start, and does not stop the rest.
    Runs that another runner has in hand are waited for, and taken over should it die.

    Args:
        plan: what to run.
        out: the results folder, made if absent.
        work: does those of some runs that nobody else holds, and reports: ``in_process`` or ``workers.in_workers``.
        resolve: as for ``list_runs``.
        on_start: called when a run begins with its key, how many runs of the plan are over, and how many there are.
        on_step: called after each training step with the key of its run, the step and the number of steps.
        on_finish: called with the record of each run done or failed now.

    Raises:
        ValueError: before the first run, if a finished run has other settings than the plan, or a record is broken;
            later, if another runner has meanwhile done a run with other settings.
        OSError: if the disk is full; finished runs are kept and those under way leave nothing.
        RuntimeError: if workers cannot start, or one of them meets such a run of another runner.
    """
    out.mkdir(parents=True, exist_ok=True)
    clear_leftovers(out)
    progress = _Progress(list_runs(plan, out, resolve), on_start, on_step, on_finish)
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


def list_runs(plan: BenchPlan, out: Path, resolve: Resolve | None = None) -> tuple[PlannedRun, ...]:
    """Return the runs of ``plan`` in order, with their resolved settings and what ``out`` holds of them.

    Args:
        plan: what to run.
        out: the results folder; may be absent.
        resolve: turns the settings that a plan gives (``BenchPlan.config_of``) into all settings of the run, defaults
            included, so that a changed default is noticed; without it they are stored as given.

    Raises:
        ValueError: if a finished run has other settings, naming each, or a record is broken.
    """
    runs, keys = [], plan.keys()
    for key in keys:
        given = plan.config_of(key)
        config = json.loads(json.dumps(resolve(key, given) if resolve else given, allow_nan=False))
        record = find_record(out / key.name)
        _check_same(record, key, config)
        runs.append(PlannedRun(key=key, config=config, record=record))
    return tuple(runs)


def in_process(executor: Executor) -> Work:
    """Return how this process does runs itself."""
    return lambda runs, out, emit: walk(runs, out, executor, emit)


def walk(runs: Sequence[PlannedRun], out: Path, executor: Executor, emit: Emit) -> None:
    """Do those of ``runs`` that no other process holds or has done since they were listed, in order.

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
                _check_same(found, run.key, run.config)
                emit(Finished(found, elsewhere=True))
                continue
            environment = executor.environment(run.key)
            emit(Started(run.key, environment))
            record = _store(run, out, environment, functools.partial(_execute, run, executor, emit))
            emit(Finished(record))


def record_failure(run: PlannedRun, out: Path, environment: Mapping[str, Any], error: str) -> RunRecord | None:
    """Store a run as failed and return its record, or None where another process holds the run or has done it."""
    with claim_run(out, run.key.name) as mine:
        if not mine or find_record(out / run.key.name) != run.record:
            return None
        return _store(run, out, environment, lambda directory: {"status": "failed", "error": error})


class _Progress:
    """Which runs of a plan are not over, and how the others ended."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        on_start: Callable[[RunKey, int, int], None] | None,
        on_step: Callable[[RunKey, Any, int], None] | None,
        on_finish: Callable[[RunRecord], None] | None,
    ) -> None:
        self.total = len(runs)
        self.pending = {run.key.name: run for run in runs if run.state != "done"}
        self.ended: dict[str, Finished] = {}
        self.on_start, self.on_step, self.on_finish = on_start, on_step, on_finish

    def note(self, event: Event) -> None:
        """Take note of an event and pass it on.

        Workers are heard in any order, so that one may find a run done elsewhere before another of ours tells that it
        did it; what ours tell counts.
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
    """Make and store the record of one run; ``attempt`` fills its folder and returns status and what belongs to it."""
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
    """Return how one run ended; only a full disk (and an interrupt) gets past it."""
    try:
        outcome = executor.execute(
            run.key, run.config, directory, lambda step, total: emit(Stepped(run.key, step, total))
        )
        return {"status": "done", **vars(outcome)}
    except Exception as error:
        if _is_disk_full(error):
            raise
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning("run %s failed: %s", run.key.name, summary)
        shutil.rmtree(directory)
        directory.mkdir()
        return {"status": "failed", "error": f"{summary}\n{''.join(traceback.format_exception(error))}"}


def _check_same(record: RunRecord | None, key: RunKey, config: Mapping[str, Any]) -> None:
    """Raise if a finished run of this name was another run, naming every setting that differs.

    A choice of the protocol, the recipe or the adapter that a record does not hold had its default then.
    """
    if record is None or record.status != "done":
        return
    settings = {"settings": {}, **record.config}
    for name, defaults in (
        ("protocol", to_mapping(ProtocolConfig())),
        ("fit", to_mapping(FitConfig())),
        ("settings", to_mapping(build_adapter(key.method, {}))),
    ):
        if settings.get(name) is not None:
            settings[name] = {**{f: defaults[f] for f in config.get(name) or {} if f in defaults}, **settings[name]}
    recorded, planned = (_flatten({**to_mapping(k), **c}) for k, c in ((record.key, settings), (key, config)))
    differing = [
        f"{name} ({recorded.get(name, 'absent')!r} recorded, {planned.get(name, 'absent')!r} planned)"
        for name in sorted({*recorded, *planned})
        if name not in recorded or name not in planned or recorded[name] != planned[name]
    ]
    if differing:
        raise ValueError(
            f"{key.name}: this run is finished with other settings: {'; '.join(differing)}. "
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
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
