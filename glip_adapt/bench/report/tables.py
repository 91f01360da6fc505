"""Tables of numbers from records. Here AP becomes a percentage, and runs are averaged.

A cell is one (trunk, dataset, method, shots); it is complete when every seed has a finished run with a defined AP.
Which cells and seeds are expected follows from the records, failed ones included: per trunk, every dataset × method ×
shots that occurs, with every seed that occurs at these shots. What is incomplete is NaN wherever an average over
datasets would hide it. A ``table`` holds runs as ``load_table`` returns them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from glip_adapt.bench.plan import ZERO_SHOT
from glip_adapt.bench.records import RunRecord
from glip_adapt.bench.report.statistics import interval_of, permutation_test, resample_means
from glip_adapt.core.plain_text import plain
from glip_adapt.core.settings import Shots

EVERY = "every"
"""In place of shots: the runs at all numbers of shots together."""

COSTS = ("trained_parameters", "adapter_bytes", "peak_bytes", "seconds")

_GRID = ["trunk", "dataset", "method", "shots", "seed"]
_CELL = ["trunk", "method", "shots"]
_METRICS = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]


def load_table(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Return one row per run: key, status, all metrics (fractions, as in the records), costs, environment, error.

    Every metric of any record has a column. Control codes in text are spelled out.
    """
    records = list(records)
    values = [dict(record.metrics.values) if record.metrics else {} for record in records]
    metrics = list(dict.fromkeys(itertools.chain(_METRICS, *values)))
    rows = []
    for record, found in zip(records, values, strict=True):
        key = record.key
        texts = {name: getattr(record.metrics, name, None) for name in ("per_class", "retention")}
        rows.append(
            {"run": key.name, "trunk": key.trunk, "dataset": key.dataset_name, "method": key.method}
            | {"shots": key.shots, "seed": key.seed, "status": record.status}
            | {name: found.get(name) for name in metrics}
            | {"val_ap": getattr(record.metrics, "val_ap", None)}
            | {name: getattr(record.cost, name, None) for name in COSTS}
            | {"stages": json.dumps(dict(record.cost.stages)) if record.cost and record.cost.stages else None}
            | {name: json.dumps(dict(of), ensure_ascii=False) if of else None for name, of in texts.items()}
            | {name: record.environment.get(name) for name in ("device", "commit", "dirty")}
            | {"created": record.created, "error": record.error.splitlines()[0] if record.error else None}
            | {"annotation_ids": (record.config.get("protocol") or {}).get("annotation_ids", "renumbered")}
        )
    rows = [{name: plain(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows]
    table = pd.DataFrame(rows)
    numbers = dict.fromkeys([*metrics, "val_ap", "seconds"], "float64")
    counts = {name: "Int64" for name in COSTS if name != "seconds"}
    return table.astype({**numbers, **counts, "shots": "object"})


def summarize_datasets(table: pd.DataFrame) -> pd.DataFrame:
    """Return AP in percent per trunk, dataset, method and shots.

    Returns:
        Columns ``mean`` and ``std`` over the finished seeds (sample standard deviation, divided by n − 1; NaN for one
        seed), ``finished`` and ``expected`` (numbers of seeds).
    """
    cells = _expected_runs(table).groupby(_GRID[:-1], sort=False)["ap"]
    return pd.DataFrame(cells.agg(mean="mean", std="std", finished="count", expected="size"))


def summarize_mean(table: pd.DataFrame) -> pd.DataFrame:
    """Return the plain mean of AP over all datasets, in percent, per trunk, method and shots.

    Datasets are averaged seed by seed, then mean and spread are taken over seeds, as in the paper's tables.

    Returns:
        Columns ``mean`` and ``std`` (sample standard deviation over seeds, divided by n − 1; NaN for one seed), both
        NaN as soon as one run is missing; ``finished`` and ``expected`` (numbers of runs, dataset × seed).
    """
    runs = _expected_runs(table)
    counts = runs.groupby(_CELL, sort=False)["ap"].agg(finished="count", expected="size")
    per_seed = runs.groupby([*_CELL, "seed"], sort=False)["ap"].mean()
    summary = per_seed.groupby(_CELL, sort=False).agg(mean="mean", std="std").join(counts)
    incomplete = summary["finished"] < summary["expected"]
    summary.loc[incomplete, ["mean", "std"]] = math.nan
    return summary


def bootstrap_mean(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of AP over all datasets with its 95 % limits, in percent, per trunk, method and shots.

    Returns:
        Columns ``mean``, ``low`` and ``high`` (datasets and seeds resampled), all NaN as soon as one run is missing;
        the limits are NaN for a single run as well.
    """
    rows = {key: _interval(grid) for key, grid in _grids(table).items()}
    index = pd.MultiIndex.from_tuples(rows, names=_CELL)
    return pd.DataFrame(rows.values(), index=index, columns=["mean", "low", "high"])


def rank_methods(table: pd.DataFrame) -> pd.DataFrame:
    """Return the method with the highest mean of AP at each number of shots, and how far it is ahead of the next one.

    The lead is of paired runs: a bootstrap draw takes the same datasets and seeds for both methods, so that what makes
    a dataset hard for either does not count. Methods that lack a run are left out.

    Returns:
        Per trunk and shots with at least two such methods: ``best``, its ``mean``, ``low`` and ``high`` as in
        ``bootstrap_mean``, ``next`` (the second best), and ``lead``, ``lead_low`` and ``lead_high`` in points.
    """
    rivals: dict[tuple[str, Shots], dict[str, NDArray[np.float64]]] = {}
    for (trunk, method, shots), grid in _grids(table).items():
        if shots != 0 and not np.isnan(grid).any():
            rivals.setdefault((trunk, shots), {})[method] = grid
    rows = {}
    for cell, grids in rivals.items():
        if len(grids) > 1:
            best, second = sorted(grids, key=lambda name: -grids[name].mean())[:2]
            rows[cell] = (best, *_interval(grids[best]), second, *_interval(grids[best] - grids[second]))
    columns = ["best", "mean", "low", "high", "next", "lead", "lead_low", "lead_high"]
    index = pd.MultiIndex.from_tuples(rows, names=["trunk", "shots"])
    return pd.DataFrame(rows.values(), index=index, columns=columns)


def compare_methods(table: pd.DataFrame) -> pd.DataFrame:
    """Return a paired permutation test for every two methods of a trunk, at each number of shots and at all together.

    A pair is two runs of one trunk, dataset, number of shots and seed; zero-shot has one run per dataset, which pairs
    with every run on it. Runs on one dataset resemble each other, so ``p_runs`` claims too much where a few datasets
    have many runs; ``p_datasets`` tests the sums per dataset instead, which are independent.

    Returns:
        Per trunk, shots, ``first`` and ``second`` method: ``difference`` (mean over the pairs of AP of the second less
        the first, points), ``p_runs``, ``p_datasets`` (two-sided, uncorrected), ``pairs``, ``datasets`` (numbers),
        and ``missing`` (expected pairs that lack a run). NaN where there is no pair.
    """
    rows = []
    for trunk, runs in _expected_runs(table).groupby("trunk", sort=False):
        wide = runs.set_index(["shots", "dataset", "seed", "method"])["ap"].unstack("method", sort=False)
        adapted = wide[wide.index.get_level_values("shots") != 0]
        zero_shot = wide[wide.index.get_level_values("shots") == 0].iloc[:, 0].groupby("dataset").first()
        if len(zero_shot):
            names = adapted.index.get_level_values("dataset")
            beside = pd.Series(zero_shot.reindex(names).array, adapted.index, name=ZERO_SHOT)
            adapted = pd.concat([beside, adapted], axis=1)
        shots = list(dict.fromkeys(adapted.index.get_level_values("shots")))
        for chosen in [*shots, EVERY] if len(shots) > 1 else shots:
            pairs = adapted if chosen == EVERY else adapted.xs(chosen, drop_level=False)
            for first, second in itertools.combinations(adapted.columns, 2):
                rows.append((trunk, chosen, first, second, *_test_pairs(pairs[second] - pairs[first])))
    index, values = ["trunk", "shots", "first", "second"], ["difference", "p_runs", "p_datasets"]
    columns = [*index, *values, "pairs", "datasets", "missing"]
    return pd.DataFrame(rows, columns=columns).set_index(index).astype(dict.fromkeys(values, "float64"))


def summarize_costs(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cost of a run, averaged over datasets and seeds, beside its AP.

    Returns:
        Per trunk, method and shots, zero-shot once: ``ap`` (mean, percent) and ``COSTS``, each NaN where a run of the
        cell is missing or did not measure it.
    """
    done = table[table["status"] == "done"].astype(dict.fromkeys(COSTS, "float64"))
    costs = done.groupby(_CELL, sort=False)[list(COSTS)].agg(_mean_if_complete)
    cells = name_zero_shot(summarize_mean(table)).rename(columns={"mean": "ap"}).join(costs)
    cells.loc[cells["ap"].isna(), list(COSTS)] = math.nan
    return cells[["ap", *COSTS]]


def summarize_stages(table: pd.DataFrame) -> pd.DataFrame:
    """Return the seconds of each stage of a run, averaged over the runs that recorded them.

    Returns:
        Per trunk, method and shots, zero-shot once: a column per stage, the longest first. Empty if no run recorded
        any.
    """
    runs = table.dropna(subset="stages")
    seconds = pd.DataFrame([json.loads(text) for text in runs["stages"]], runs.index).fillna(0.0)
    seconds = seconds[seconds.sum().sort_values(ascending=False, kind="stable").index]
    means = seconds.join(runs[_CELL]).groupby(_CELL, sort=False).mean()
    return means.loc[[cell for cell in name_zero_shot(summarize_mean(table)).index if cell in means.index]]


def summarize_retention(table: pd.DataFrame) -> pd.DataFrame:
    """Return AP on the other datasets before (zero-shot) and after adapting to one.

    Returns:
        Per trunk, method and shots: ``before`` and ``after`` (percent, mean over every run and every other dataset that
        it was scored on; both NaN as soon as one is missing), ``finished`` and ``expected`` (numbers of such scores).
        Empty if no run was scored on other datasets.
    """
    zero_shot = table[table["method"] == ZERO_SHOT].dropna(subset="ap")
    before = {(trunk, name): ap for trunk, name, ap in zero_shot[["trunk", "dataset", "ap"]].itertuples(index=False)}
    scored = {tuple(key): _others(text) for *key, text in table[[*_GRID, "retention"]].itertuples(index=False)}
    others: dict[str, set[str]] = {}
    for (trunk, *_), scores in scored.items():
        others.setdefault(trunk, set()).update(scores)
    rows = []
    for *key, _ in _expected_runs(table).itertuples(index=False):
        trunk, dataset, method, shots, _ = key
        if shots == 0:
            continue
        for other in sorted(others[trunk] - {dataset}):
            pair = before.get((trunk, other)), scored.get(tuple(key), {}).get(other)
            rows.append((trunk, method, shots, *(pair if None not in pair else (None, None))))
    pairs = pd.DataFrame(rows, columns=[*_CELL, "before", "after"]).astype({"before": "float64", "after": "float64"})
    cells = pairs.groupby(_CELL, sort=False)
    summary = (100 * cells[["before", "after"]].mean()).join(cells["after"].agg(finished="count", expected="size"))
    summary.loc[summary["finished"] < summary["expected"], ["before", "after"]] = math.nan
    return summary


def beside_values(runs: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Return our values in percent, means over seeds, beside published ones.

    Args:
        runs: of one trunk, from ``load_table``.
        published: columns ``percent`` and ``source`` by dataset, method, shots and name of a value.

    Returns:
        Columns ``here``, ``published``, ``difference`` and ``source`` by the same four; without what was not measured.
    """
    names = [name for name in published.index.get_level_values("value").unique() if name in runs]
    cell = _GRID[1:-1]
    ours = runs.melt(cell, names, var_name="value", value_name="here")
    here = ours.groupby([*cell, "value"], sort=False)[["here"]].mean() * 100
    both = published.join(here, how="inner").dropna()
    both = both.rename(columns={"percent": "published"})
    both["difference"] = both["here"] - both["published"]
    return both[["here", "published", "difference", "source"]]


def name_zero_shot(summary: pd.DataFrame) -> pd.DataFrame:
    """Return a summary by trunk, method and shots with zero-shot as a method of its own, rather than part of each."""
    shared = summary.index.get_level_values("shots") == 0
    zero_shot = summary[shared].groupby("trunk", sort=False).first()
    zero_shot.index = pd.MultiIndex.from_tuples([(trunk, ZERO_SHOT, 0) for trunk in zero_shot.index], names=_CELL)
    return pd.concat([zero_shot, summary[~shared]])


def sort_shots(shots: Iterable[Shots]) -> list[Shots]:
    """Return numbers upwards, then ``all``."""
    return sorted(shots, key=lambda value: math.inf if value == "all" else float(value))


def select(summary: pd.DataFrame, label: str) -> pd.DataFrame:
    """Return the rows under one label of the first index level."""
    rows = summary.loc[label]
    assert isinstance(rows, pd.DataFrame)
    return rows


def _expected_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per expected run with its AP in percent, NaN where there is none; zero-shot once per method."""
    table = table.copy()
    table.loc[table["method"] == ZERO_SHOT, "seed"] = 0  # it has no seed, whatever the key says
    finished = table.dropna(subset="ap")
    ap = {tuple(row): 100 * value for *row, value in finished[[*_GRID, "ap"]].itertuples(index=False)}
    rows = []
    for trunk, runs in table.groupby("trunk", sort=False):
        methods = [name for name in dict.fromkeys(runs["method"]) if name != ZERO_SHOT] or [ZERO_SHOT]
        seeds: dict[Shots, set[int]] = {}
        for shots, seed in zip(runs["shots"], runs["seed"], strict=True):
            seeds.setdefault(shots, set()).add(seed)
        for dataset, method, shots in itertools.product(dict.fromkeys(runs["dataset"]), methods, sort_shots(seeds)):
            source = ZERO_SHOT if shots == 0 else method
            for seed in sorted(seeds[shots]):
                rows.append((trunk, dataset, method, shots, seed, ap.get((trunk, dataset, source, shots, seed))))
    return pd.DataFrame(rows, columns=[*_GRID, "ap"]).astype({"ap": "float64", "shots": "object"})


def _mean_if_complete(values: pd.Series) -> float:
    return float(values.mean(skipna=False))


def _grids(table: pd.DataFrame) -> dict[tuple[str, str, Shots], NDArray[np.float64]]:
    """Return (trunk, method, shots) → AP in percent of the expected runs, (D, S): datasets × seeds."""
    grids: dict[Any, NDArray[np.float64]] = {}
    for (trunk, method, shots), cell in _expected_runs(table).groupby(_CELL, sort=False):
        grids[trunk, method, shots] = cell["ap"].to_numpy().reshape(cell["dataset"].nunique(), -1)
    return grids


def _interval(grid: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean over (D, S) runs and its limits; see ``bootstrap_mean``."""
    if grid.size == 1 or np.isnan(grid).any():
        return float(grid.mean()), math.nan, math.nan
    return dataclasses.astuple(interval_of(resample_means(grid)))


def _test_pairs(differences: pd.Series) -> tuple[float, float, float, int, int, int]:
    """Return difference, p over runs, p over datasets, and the numbers of pairs, datasets and missing pairs."""
    found = differences.dropna()
    missing = len(differences) - len(found)
    if found.empty:
        return math.nan, math.nan, math.nan, 0, 0, missing
    runs, datasets = found.to_numpy(), found.groupby("dataset").sum().to_numpy()
    return float(runs.mean()), permutation_test(runs), permutation_test(datasets), len(runs), len(datasets), missing


def _others(text: str | None) -> dict[str, float | None]:
    """Return dataset name → AP from a cell of the retention column."""
    return {PurePath(name).name: ap for name, ap in json.loads(text).items()} if isinstance(text, str) else {}
