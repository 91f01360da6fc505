"""Build the sections of a report: titles, explanations, tables whose cells are text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from glip_adapt.bench.report import tables
from glip_adapt.bench.report.markup import Section
from glip_adapt.bench.report.published import SOURCE, published_mean, published_values, scoring_note

MISSING = "–"

_SUITES = (
    "Our values on COCO and LVIS, in percent, beside published ones, which are not measured here. Published values "
    "named so are of the best checkpoint of a pre-training; released files are the last ones, which are lower on LVIS."
)

_TEXTS: Mapping[str, str] = {
    "Mean with 95 % intervals": (
        "Mean over datasets, in brackets its 95 % bootstrap interval: datasets are drawn with replacement, and seeds "
        "within each. With few datasets it is too narrow."
    ),
    "Best method": (
        "The method with the highest mean over datasets at each number of shots, and its lead over the next one, in "
        "points; in brackets 95 % bootstrap intervals. That of the lead resamples the same datasets and seeds for both "
        "methods: where it holds zero, these runs do not tell which of the two is better."
    ),
    "Methods in pairs": (
        "AP of the second method less the first, in points, averaged over pairs of runs of the same trunk, dataset, "
        "shots and seed. p is two-sided, from a paired permutation test (exact up to 14 pairs), and not corrected for "
        "the number of comparisons. Runs on one dataset resemble each other: p (runs) takes them for independent, "
        "p (datasets) does not and is the one to trust."
    ),
    "Cost": (
        "Means over datasets and seeds, of complete cells. Time is that of fitting and scoring; memory is the peak. "
        "Features that a worker keeps from earlier runs are not computed again and count into its memory."
    ),
    "Where the time goes": (
        "Seconds of a run by stage, means over datasets and seeds. Decoding is time that the network waited for "
        "images; beside a GPU, threads do most of it meanwhile."
    ),
    "Zero-shot retention": (
        "AP on the other datasets before adapting to one (zero-shot) and after, mean over runs and other datasets."
    ),
}
"""Title of a section → the explanation of its table."""


def build_document(table: pd.DataFrame, note: str = "") -> list[Section]:
    """Return the sections of a report on the runs of ``load_table``; the first one is its head, which has the note."""
    datasets, mean = tables.summarize_datasets(table), tables.summarize_mean(table)
    interval = tables.bootstrap_mean(table)
    sections = [_head(table, note), Section("AP per dataset", table=_as_text(pivot(datasets)))]
    for trunk in dict.fromkeys(table["trunk"]):
        runs = table[table["trunk"] == trunk]
        names = list(dict.fromkeys(runs["dataset"]))
        title = f"Mean over {_count(len(names), 'dataset')}, {trunk}"
        sections.append(Section(title, ", ".join(names) + ".", _as_text(pivot(mean.loc[[trunk]]))))
        published = published_mean(trunk, names)
        if len(published):
            here = tables.select(tables.name_zero_shot(mean), trunk)["mean"]
            sections.append(_beside_published(trunk, here, published, runs["annotation_ids"]))
        beside = tables.beside_values(runs, published_values(trunk))
        if len(beside):
            sections.append(Section(f"Beside published results on suites, {trunk}", _SUITES, _as_text(beside)))
    retention = tables.summarize_retention(table)
    retention.insert(2, "change", retention["after"] - retention["before"])
    has_intervals = interval["low"].notna().any()
    summaries = {
        "Mean with 95 % intervals": (
            pivot(interval, lambda row: _with_limits(row.mean, row.low, row.high)) if has_intervals else pd.DataFrame()
        ),
        "Best method": _with_intervals(tables.rank_methods(table)),
        "Methods in pairs": tables.compare_methods(table),
        "Cost": tables.summarize_costs(table),
        "Where the time goes": tables.summarize_stages(table),
        "Zero-shot retention": retention,
    }
    sections += [Section(title, _TEXTS[title], _as_text(found)) for title, found in summaries.items() if len(found)]
    sections.append(Section("Completeness", _completeness(datasets)))
    failed = table.loc[table["status"] == "failed", ["run", "error"]]
    if len(failed):
        sections.append(Section(_count(len(failed), "failed run"), table=failed.astype(str)))
    return sections


def _format_cell(row: Any) -> str:
    """Return mean, spread and what is missing, from a row of a summary."""
    if math.isnan(row.mean):
        return f"{MISSING} ({row.expected - row.finished} of {row.expected} missing)" if row.finished else MISSING
    spread = "" if math.isnan(row.std) else f" ± {row.std:.1f}"
    lack = f" ({row.finished} of {row.expected} seeds)" if row.finished < row.expected else ""
    return f"{row.mean:.1f}{spread}{lack}"


def pivot(summary: pd.DataFrame, format_cell: Callable[[Any], str] = _format_cell) -> pd.DataFrame:
    """Return a summary as text with one column per number of shots, one decimal, ``–`` where there is no figure.

    A cell is made of a row of the summary; by default it has the mean, ± std, and what is missing.
    """
    text = pd.Series([format_cell(row) for row in summary.itertuples()], index=summary.index, dtype="object")
    wide = text.unstack("shots", sort=False).fillna(MISSING)
    return wide.reindex(columns=tables.sort_shots(summary.index.get_level_values("shots").unique()))


def _head(table: pd.DataFrame, note: str) -> Section:
    """Return the head: title, note, legend, devices and commits of the runs."""
    legend = (
        "AP in percent (COCO, IoU 0.50:0.95) by shots per class; 0 is zero-shot, shared by all methods. "
        f"± is the sample standard deviation over seeds (n − 1). {MISSING} is a missing figure."
    )
    devices = sorted({str(name) for name in table["device"].dropna()})
    states = table[["commit", "dirty"]].dropna(subset="commit").drop_duplicates().to_numpy()
    commits = sorted({f"{commit[:12]}{' with changes' if dirty else ''}" for commit, dirty in states})
    origin = (
        f"{_count(len(table), 'run')}, {(table['status'] == 'failed').sum()} failed. "
        f"Device: {', '.join(devices) or 'not recorded'}. Code: {', '.join(commits) or 'not recorded'}."
    )
    return Section("Benchmark report", "\n\n".join(filter(None, (note.strip(), legend, origin))))


def _beside_published(trunk: str, here: pd.Series, published: pd.Series, annotation_ids: pd.Series) -> Section:
    """Return our means beside published ones over the same datasets."""
    both = pd.DataFrame({"here": here, "published": published.reindex(here.index)}).dropna(subset="published")
    both["difference"] = both["here"] - both["published"]
    text = f"Mean AP over the same datasets. Published: {SOURCE}; not measured here. {scoring_note(annotation_ids)}"
    return Section(f"Beside published results, {trunk}", text, _as_text(both))


def _with_intervals(ranked: pd.DataFrame) -> pd.DataFrame:
    """Return the ranking with each interval in the cell of its estimate."""
    ranked["mean"] = list(map(_with_limits, ranked["mean"], ranked["low"], ranked["high"]))
    ranked["lead"] = list(map(_with_limits, ranked["lead"], ranked["lead_low"], ranked["lead_high"]))
    return ranked[["best", "mean", "next", "lead"]]


def _completeness(datasets: pd.DataFrame) -> str:
    """Return a sentence on what is missing; the records do not tell what else the plan holds."""
    missing = int((datasets["expected"] - datasets["finished"]).sum())
    started = "among the datasets, methods, shots and seeds that were started"
    if not missing:
        return f"No figure is missing {started}."
    return f"{_count(missing, 'expected figure')} missing {started}; a mean over datasets is given only where none is."


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its index as columns, all cells and names as text, see ``_COLUMNS``."""
    frame = frame.reset_index().rename(columns=str)
    plain = {name: (name, _number if frame[name].dtype == "float64" else str) for name in frame.columns}
    shown = {name: _COLUMNS.get(name, plain[name]) for name in frame.columns}
    return pd.DataFrame({title: frame[name].map(form) for name, (title, form) in shown.items()})


def _with_limits(value: float, low: float, high: float) -> str:
    limits = "" if math.isnan(low) else f" ({low:.1f} to {high:.1f})".replace("-", "−")
    return _number(value) + limits


def _as(form: str) -> Callable[[float], str]:
    """Return what writes numbers in a format of Python, with a true minus sign."""
    return lambda value: MISSING if math.isnan(value) else format(value, form).replace("-", "−")


def _bytes(value: float) -> str:
    """Return a size in the largest unit that leaves a number from 1."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return MISSING if math.isnan(value) else f"{value:.0f} B"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


_number, _signed, _thousands, _probability = _as(".1f"), _as("+.1f"), _as(",.0f"), _as(".4f")

_COLUMNS: Mapping[str, tuple[str, Callable[..., str]]] = {
    **{name: (name, _signed) for name in ("difference", "change")},
    "ap": ("AP", _number),
    "p_runs": ("p (runs)", _probability),
    "p_datasets": ("p (datasets)", _probability),
    "missing": ("missing pairs", str),
    "trained_parameters": ("trained parameters", _thousands),
    "adapter_bytes": ("adapter", _bytes),
    "peak_bytes": ("memory", _bytes),
    "finished": ("scores", str),
    "expected": ("expected scores", str),
}
"""Column of a table → its name in the report, and how its cells are written; others keep name, numbers one decimal."""
