"""Walks a plan, skips what is done, and stores each run as a record; how to do one run is passed in."""

from __future__ import annotations

import datetime
import errno
import json
import logging
import shutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glip_adapt.bench.plan import BenchPlan, RunKey
from glip_adapt.bench.records import (
    RunCost,
    RunMetrics,
    RunRecord,
    claim_folder,
    partial_run,
    read_record,
    write_record,
)
from glip_adapt.config import to_mapping

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What one run gives back; its files are already in its folder."""

    metrics: RunMetrics
    cost: RunCost


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a plan and what the results folder holds of it.

    Attributes:
        key: which run.
        config: its resolved settings, JSON-ready.
        state: ``done``, ``failed`` (will be tried again) or ``missing``.
    """

    key: RunKey
    config: Mapping[str, Any]
    state: Literal["done", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How many runs of a plan were done now, were done before, and failed now."""

    done: int
    skipped: int
    failed: int


Execute = Callable[[RunKey, Mapping[str, Any], Path], RunOutcome]
Resolve = Callable[[RunKey, Mapping[str, Any]], Mapping[str, Any]]


def run_plan(
    plan: BenchPlan,
    out: Path,
    execute: Execute,
    environment: Mapping[str, Any],
    *,
    resolve: Resolve | None = None,
    on_start: Callable[[RunKey, int, int], None] | None = None,
    on_finish: Callable[[RunRecord], None] | None = None,
) -> RunSummary:
    """Do every run of ``plan`` that ``out`` does not hold yet, and return the counts.

    A run that raises becomes a record with its traceback, is tried again at the next start, and does not stop the rest.

    Args:
        plan: what to run.
        out: the results folder, made if absent.
        execute: does one run: key, resolved settings, folder for its files → outcome.
        environment: as ``capture_environment`` returns it; stored in every record.
        resolve: as for ``list_runs``.
        on_start: called before a run with its key, its position from 1, and the number of runs in the plan.
        on_finish: called with the record of a run, done or failed.

    Raises:
        ValueError: before the first run, if a finished run has other settings than the plan, or a record is broken.
        RuntimeError: if another runner works on ``out``.
        OSError: if the disk is full; finished runs are kept and the one under way leaves nothing.
    """
    counts = {"done": 0, "failed": 0}
    with claim_folder(out):
        runs = list_runs(plan, out, resolve)
        for position, run in enumerate(runs, start=1):
            if run.state == "done":
                continue
            if on_start:
                on_start(run.key, position, len(runs))
            record = _run_one(run, out, execute, environment)
            counts[record.status] += 1
            if on_finish:
                on_finish(record)
    return RunSummary(skipped=len(runs) - sum(counts.values()), **counts)


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
        record = read_record(out / key.name) if (out / key.name).exists() else None
        if record is not None and record.status == "done":
            _check_same(record, key, config)
        runs.append(PlannedRun(key=key, config=config, state=record.status if record else "missing"))
    return tuple(runs)


def _run_one(run: PlannedRun, out: Path, execute: Execute, environment: Mapping[str, Any]) -> RunRecord:
    """Do one run and store it, done or failed."""
    try:
        with partial_run(out, run.key) as directory:
            record = _attempt(run, directory, execute, environment)
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


def _attempt(run: PlannedRun, directory: Path, execute: Execute, environment: Mapping[str, Any]) -> RunRecord:
    """Return the record of one run; only a full disk (and an interrupt) gets past it."""
    result: dict[str, Any]
    try:
        outcome = execute(run.key, run.config, directory)
        result = {"status": "done", "metrics": outcome.metrics, "cost": outcome.cost}
    except Exception as error:
        if _is_disk_full(error):
            raise
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning("run %s failed: %s", run.key.name, summary)
        result = {"status": "failed", "error": f"{summary}\n{''.join(traceback.format_exception(error))}"}
        shutil.rmtree(directory)
        directory.mkdir()
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return RunRecord(key=run.key, config=run.config, environment=environment, created=created, **result)


def _check_same(record: RunRecord, key: RunKey, config: Mapping[str, Any]) -> None:
    """Raise if a finished run of this name was another run, naming every setting that differs."""
    recorded, planned = (_flatten({**to_mapping(k), **c}) for k, c in ((record.key, record.config), (key, config)))
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
