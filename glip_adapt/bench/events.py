"""The contract of runner, executors and workers: a planned run, who does it, and the events that are reported of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from glip_adapt.bench.plan import RunKey
from glip_adapt.bench.records import CrossValidated, RunCost, RunMetrics, RunRecord


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """Result of one run, as its record holds it; its files are already in its folder."""

    metrics: RunMetrics
    cost: RunCost
    train_source: str | None = None
    selected_on: str | None = None
    cross_validated: CrossValidated | None = None


class Executor(Protocol):
    """Does runs one after the other in one process, and keeps the data that they share."""

    def environment(self, key: RunKey) -> Mapping[str, Any]:
        """Return the environment of a run, as ``capture_environment`` does; it is stored in the record."""

    def execute(
        self, key: RunKey, config: Mapping[str, Any], directory: Path, on_step: Callable[[Any, int], None]
    ) -> RunOutcome:
        """Do one run with its resolved settings, and leave its files in ``directory``, an empty folder.

        ``on_step`` is to be called after each training step with that step and the number of steps.
        """


Update = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""Method and ``config`` of an old record → ``config`` with present names, and defaults of settings that came later."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a plan and its record in the results folder.

    Attributes:
        key: which run.
        config: its resolved settings, JSON-ready.
        record: of the run, if it is there; a failed one will be tried again.
        update: brings the settings of an old record up to date, see ``list_runs``.
    """

    key: RunKey
    config: Mapping[str, Any]
    record: RunRecord | None
    update: Update | None = None

    @property
    def state(self) -> Literal["done", "failed", "missing"]:
        """State of the run in the results folder."""
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
