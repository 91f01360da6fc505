"""A plan of eight runs and executors that other processes can load: no network, no pictures."""

import json
import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from glip_adapt.bench.events import RunOutcome
from glip_adapt.bench.plan import BenchPlan
from glip_adapt.bench.records import RunCost, RunMetrics, read_records

PLAN = BenchPlan(datasets=("a", "b"), methods=("prompt",), shots=(1, 3), seeds=(3, 30), fit={"rate": 0.1})
NAMES = [key.name for key in PLAN.keys()]  # noqa: SIM118  # a plan is no dict
ENVIRONMENT = {"device": "cpu"}


def outcome(ap=0.5):
    values = {"ap": ap, "ap50": ap, "ap75": ap, "ap_small": None, "ap_medium": ap, "ap_large": ap}
    metrics = RunMetrics(values=values, per_class={"cat": ap})
    return RunOutcome(metrics=metrics, cost=RunCost(trained_parameters=1, adapter_bytes=2, peak_bytes=3, seconds=0.1))


def ap_of(key):
    return (NAMES.index(key.name) + 1) / 10 if key.name in NAMES else 0.5


@dataclass(frozen=True)
class FakeExecutor:
    """Writes who did a run, waits, and gives an AP that the key fixes; ``trouble`` maps names to what goes wrong."""

    log: Path
    seconds: float = 0.0
    trouble: dict = field(default_factory=dict)
    worker: int = 0

    def environment(self, key):
        return ENVIRONMENT

    def execute(self, key, config, directory, on_step):
        note(self.log, key.name, self.worker)
        (directory / "predictions.json").write_text("[")
        what = self.trouble.get(key.name)
        if what == "die" or (what == "die once" and self.started(key.name) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(what, Exception):
            raise what
        for step in (1, 2):
            time.sleep(self.seconds / 2)
            on_step(step, 2)
        (directory / "predictions.json").write_text("[]")
        return outcome(ap_of(key))

    def started(self, name):
        return [entry["run"] for entry in read_log(self.log)].count(name)


@dataclass(frozen=True)
class BuildFake:
    """Makes the executor of a worker, in whichever process that is."""

    log: Path
    seconds: float = 0.0
    trouble: dict = field(default_factory=dict)
    fails: bool = False

    def __call__(self, worker):
        if self.fails:
            raise ValueError("there is no such device")
        return FakeExecutor(self.log, self.seconds, self.trouble, worker)


def note(log, name, worker):
    with log.open("a") as file:  # short lines arrive whole
        file.write(json.dumps({"run": name, "worker": worker, "process": os.getpid()}) + "\n")


def read_log(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def stored(out):
    """Return the records without what differs from one doing to the next."""
    return [replace(record, created="", environment={}) for record in read_records(out)]


def visible(out):
    return sorted(path.name for path in out.iterdir() if path.name != ".claims")
