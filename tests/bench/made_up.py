"""Made-up runs that the tests of the report share."""

import json

from glip_adapt.bench.plan import RunKey
from glip_adapt.bench.records import RECORD_FILE, RunCost, RunMetrics, RunRecord, to_json


def record(dataset, method, shots, seed, ap, trunk="glip-t", peak_bytes=None, seconds=1.5, stages=None, **metrics):
    """A run of ``dataset`` with AP ``ap``; an exception instead of a number is a failed run."""
    common = {
        "key": RunKey(trunk, dataset, method, shots, seed),
        "config": {},
        "environment": {"device": "cpu", "commit": "abc", "dirty": False},
        "created": "2025-01-01T00:00:00+00:00",
    }
    if isinstance(ap, Exception):
        return RunRecord(status="failed", error=f"{type(ap).__name__}: {ap}\nTraceback …", **common)
    values = {"ap": ap, "ap50": 0.9, "ap75": 0.4, "ap_small": None, "ap_medium": 0.2, "ap_large": 0.6}
    found = RunMetrics(values=values, per_class={"cat": ap}, val_ap=0.3, **metrics)
    cost = RunCost(
        trained_parameters=768, adapter_bytes=3072, peak_bytes=peak_bytes, seconds=seconds, stages=stages or {}
    )
    return RunRecord(status="done", metrics=found, cost=cost, **common)


def store(out, records):
    for one in records:
        folder = out / one.key.name
        folder.mkdir(parents=True)
        (folder / RECORD_FILE).write_text(json.dumps(to_json(one)))


# Two sets, two seeds; "full" failed once on b at 5 shots, and was never run on b with all data.
RECORDS = [
    record("x/a", "zero_shot", 0, 3, 0.10),
    record("b", "zero_shot", 0, 3, 0.20),
    record("x/a", "prompt", 1, 3, 0.20),
    record("x/a", "prompt", 1, 30, 0.30),
    record("b", "prompt", 1, 3, 0.40),
    record("b", "prompt", 1, 30, 0.60),
    record("x/a", "prompt", 5, 3, 0.30),
    record("x/a", "prompt", 5, 30, 0.30),
    record("b", "prompt", 5, 3, 0.50),
    record("b", "prompt", 5, 30, 0.70),
    record("x/a", "full", 1, 3, 0.11),
    record("x/a", "full", 1, 30, 0.13),
    record("b", "full", 1, 3, 0.21),
    record("b", "full", 1, 30, 0.23),
    record("x/a", "full", 5, 3, 0.50),
    record("x/a", "full", 5, 30, 0.54),
    record("b", "full", 5, 3, 0.70),
    record("b", "full", 5, 30, FloatingPointError("loss is nan | batch 7")),
    record("x/a", "full", "all", 3, 0.80),
]
