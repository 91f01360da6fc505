"""Build the sections of a report: title, text, table of text; write them as Markdown or LaTeX (HTML is in ``page``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd

from glip_adapt.bench.plan import ZERO_SHOT
from glip_adapt.bench.report.published import SOURCE, published_mean, scoring_note
from glip_adapt.bench.report.tables import (
    COSTS,
    bootstrap_mean,
    compare_methods,
    rank_methods,
    select,
    sort_shots,
    summarize_costs,
    summarize_datasets,
    summarize_mean,
    summarize_retention,
)
from glip_adapt.core.plain_text import markdown

MISSING = "–"
LABELS = ("trunk", "dataset", "method", "best", "next", "first", "second", "run", "error")
"""Columns of words; all others are numbers and stand on the right."""

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "−": "$-$", "²": "$^2$",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}", "[": "{[}",  # after the end of a row it would be a length
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and a table whose cells are text; of these only the heading is always there."""

    title: str
    text: str = ""
    table: pd.DataFrame | None = None


def build_document(table: pd.DataFrame, note: str = "") -> list[Section]:
    """Return the sections of a report in order; the first one is its head.

    Args:
        table: as ``load_table`` returns it.
        note: a sentence for the head.
    """
    datasets, mean = summarize_datasets(table), summarize_mean(table)
    sections = [_head(table, note), Section("AP per dataset", table=_as_text(pivot(datasets)))]
    for trunk in dict.fromkeys(table["trunk"]):
        names = list(dict.fromkeys(table.loc[table["trunk"] == trunk, "dataset"]))
        title, listed = f"Mean over {_count(len(names), 'dataset')}, {trunk}", ", ".join(names) + "."
        sections.append(Section(title, listed, _as_text(pivot(mean.loc[[trunk]]))))
        published = published_mean(trunk, names)
        if len(published):
            scored = table.loc[table["trunk"] == trunk, "annotation_ids"]
            sections.append(_beside_published(trunk, select(mean, trunk), published, scored))
    interval = bootstrap_mean(table)
    if interval["low"].notna().any():
        sections.append(_intervals(interval))
    for section in (_ranking(table), _comparisons(table), _costs(table), _retention(table)):
        if section.table is not None and len(section.table):
            sections.append(section)
    sections.append(_missing(datasets))
    failed = table.loc[table["status"] == "failed", ["run", "error"]]
    if len(failed):
        sections.append(Section(_count(len(failed), "failed run"), table=failed.astype(str)))
    return sections


def pivot(summary: pd.DataFrame, format_cell: Callable[..., str] | None = None) -> pd.DataFrame:
    """Return a summary as text with one column per number of shots, one decimal, ``–`` where there is no figure.

    Args:
        summary: from ``summarize_datasets`` or ``summarize_mean``.
        format_cell: row of the summary → text; by default mean, ± std, and what is missing.
    """
    form = format_cell or _format_cell
    text = pd.Series([form(cell) for cell in summary.itertuples()], index=summary.index, dtype="object")
    wide = text.unstack("shots", sort=False).fillna(MISSING)
    return wide.reindex(columns=sort_shots(summary.index.get_level_values("shots").unique()))


def format_markdown(sections: Sequence[Section]) -> str:
    """Return a document as Markdown."""
    text = []
    for level, section in zip(("#", *["##"] * len(sections)), sections, strict=False):
        text += [
            f"{level} {markdown(section.title)}",
            *map(markdown, section.text.split("\n\n") if section.text else ()),
        ]
        if section.table is not None:
            rows = [[markdown(str(value)) for value in row] for row in section.table.itertuples(index=False)]
            header = [markdown(str(column)) for column in section.table.columns]
            rule = [":--" if column in LABELS else "--:" for column in section.table.columns]
            text.append("\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows)))
    return "\n\n".join(text) + "\n"


def format_latex(sections: Sequence[Section]) -> str:
    """Return the tables of a document as LaTeX; they need the packages ``booktabs`` and ``longtable``."""
    blocks = [r"% \usepackage{booktabs, longtable}"]
    for section in sections:
        if section.table is None:
            continue
        columns = "".join("l" if column in LABELS else "r" for column in section.table.columns)
        header, *rows = (
            " & ".join(map(_tex, row)) + r" \\"
            for row in (list(section.table.columns), *section.table.itertuples(index=False))
        )
        caption = _tex(f"{section.title}. {section.text}".strip())
        head = [r"\toprule", header, r"\midrule"]
        lines = [rf"\begin{{longtable}}{{{columns}}}", rf"\caption{{{caption}}} \\", *head, r"\endfirsthead"]
        blocks.append("\n".join([*lines, *head, r"\endhead", *rows, r"\bottomrule", r"\end{longtable}"]))
    return "\n\n".join(blocks) + "\n"


def _head(table: pd.DataFrame, note: str) -> Section:
    """Return the head: title, note, legend, devices and commits of the runs."""
    legend = (
        "AP in percent (COCO, IoU 0.50:0.95) by shots per class; 0 is zero-shot, shared by all methods. "
        f"± is the sample standard deviation over seeds (n − 1). {MISSING} is a missing figure."
    )
    devices = ", ".join(sorted({str(name) for name in table["device"].dropna()})) or "not recorded"
    commits = sorted(
        {
            f"{str(commit)[:12]}{' with changes' if dirty else ''}"
            for commit, dirty in table[["commit", "dirty"]].dropna(subset="commit").itertuples(index=False)
        }
    )
    failed = int((table["status"] == "failed").sum())
    origin = (
        f"{_count(len(table), 'run')}, {failed} failed. Device: {devices}. "
        f"Code: {', '.join(commits) or 'not recorded'}."
    )
    return Section("Benchmark report", "\n\n".join([*([note.strip()] if note.strip() else []), legend, origin]))


def _intervals(interval: pd.DataFrame) -> Section:
    text = (
        "Mean over datasets, in brackets its 95 % bootstrap interval: datasets are drawn with replacement, and seeds "
        "within each. With few datasets it is too narrow."
    )
    return Section("Mean with 95 % intervals", text, _as_text(pivot(interval, _format_interval)))


def _beside_published(trunk: str, mean: pd.DataFrame, published: pd.Series, annotation_ids: pd.Series) -> Section:
    """Return our means beside published ones over the same datasets; zero-shot once."""
    here = mean["mean"]
    zero_shot = here[here.index.get_level_values("shots") == 0].iloc[:1]
    zero_shot.index = pd.MultiIndex.from_tuples([(ZERO_SHOT, 0)] * len(zero_shot), names=["method", "shots"])
    here = pd.concat([zero_shot, here[here.index.get_level_values("shots") != 0]])
    both = pd.DataFrame({"here": here, "published": published.reindex(here.index)}).dropna(subset="published")
    both["difference"] = both["here"] - both["published"]
    text = f"Mean AP over the same datasets. Published: {SOURCE}; not measured here. {scoring_note(annotation_ids)}"
    formats = {"here": _number, "published": _number, "difference": _signed}
    return Section(f"Beside published results, {trunk}", text, _as_text(both, formats))


def _ranking(table: pd.DataFrame) -> Section:
    text = (
        "The method with the highest mean over datasets at each number of shots, and its lead over the next one, in "
        "points; in brackets 95 % bootstrap intervals. That of the lead resamples the same datasets and seeds for both "
        "methods: where it holds zero, these runs do not tell which of the two is better."
    )
    ranked = rank_methods(table)
    ranked["mean"] = list(map(_with_limits, ranked["mean"], ranked["low"], ranked["high"]))
    ranked["lead"] = list(map(_with_limits, ranked["lead"], ranked["lead_low"], ranked["lead_high"]))
    return Section("Best method", text, _as_text(ranked[["best", "mean", "next", "lead"]]))


def _comparisons(table: pd.DataFrame) -> Section:
    text = (
        "AP of the second method less the first, in points, averaged over pairs of runs of the same trunk, dataset, "
        "shots and seed. p is two-sided, from a paired permutation test (exact up to 14 pairs), and not corrected for "
        "the number of comparisons. Runs on one dataset resemble each other: p (runs) takes them for independent, "
        "p (datasets) does not and is the one to trust."
    )
    formats = {"difference": _signed, "p_runs": _probability, "p_datasets": _probability}
    names = {"p_runs": "p (runs)", "p_datasets": "p (datasets)", "missing": "missing pairs"}
    return Section("Methods in pairs", text, _as_text(compare_methods(table), formats, names))


def _costs(table: pd.DataFrame) -> Section:
    text = (
        "Means over datasets and seeds, of complete cells. Time is that of fitting and scoring; memory is the peak. "
        "Features that a worker keeps from earlier runs are not computed again and count into its memory."
    )
    formats = dict(zip(["ap", *COSTS], (_number, _thousands, _bytes, _bytes, _number), strict=True))
    names = dict(zip(["ap", *COSTS], ("AP", "trained parameters", "adapter", "memory", "seconds"), strict=True))
    return Section("Cost", text, _as_text(summarize_costs(table), formats, names))


def _retention(table: pd.DataFrame) -> Section:
    text = "AP on the other datasets before adapting to one (zero-shot) and after, mean over runs and other datasets."
    found = summarize_retention(table)
    found.insert(2, "change", found["after"] - found["before"])
    formats = {"before": _number, "after": _number, "change": _signed}
    names = {"finished": "scores", "expected": "expected scores"}
    return Section("Zero-shot retention", text, _as_text(found, formats, names))


def _missing(datasets: pd.DataFrame) -> Section:
    """Return the section on completeness; the records do not tell what else the plan holds."""
    missing = int((datasets["expected"] - datasets["finished"]).sum())
    started = "among the datasets, methods, shots and seeds that were started"
    if not missing:
        return Section("Completeness", f"No figure is missing {started}.")
    text = f"{_count(missing, 'expected figure')} missing {started}; a mean over datasets is given only where none is."
    return Section("Completeness", text)


def _as_text(
    frame: pd.DataFrame,
    formats: Mapping[str, Callable[[float], str]] = MappingProxyType({}),
    names: Mapping[str, str] = MappingProxyType({}),
) -> pd.DataFrame:
    """Return a table with its index as columns, all cells and names as text.

    Args:
        frame: the table.
        formats: column → number to text; other columns are written as they are.
        names: column → its name in the report, if another.
    """
    frame = frame.reset_index().rename(columns=str)
    columns = map(str, frame.columns)
    return pd.DataFrame({names.get(name, name): frame[name].map(formats.get(name, str)) for name in columns})


def _format_cell(cell: object) -> str:
    """Return one row of a summary as the text of a table cell."""
    mean, std, finished, expected = (getattr(cell, name) for name in ("mean", "std", "finished", "expected"))
    if math.isnan(mean):
        return f"{MISSING} ({expected - finished} of {expected} missing)" if finished else MISSING
    spread = "" if math.isnan(std) else f" ± {std:.1f}"
    return f"{mean:.1f}{spread}" + (f" ({finished} of {expected} seeds)" if finished < expected else "")


def _format_interval(cell: object) -> str:
    """Return mean and limits of one row as the text of a table cell."""
    return _with_limits(*(getattr(cell, name) for name in ("mean", "low", "high")))


def _with_limits(value: float, low: float, high: float) -> str:
    limits = "" if math.isnan(low) else f" ({low:.1f} to {high:.1f})".replace("-", "−")
    return _number(value) + limits


def _number(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.1f}".replace("-", "−")


def _signed(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:+.1f}".replace("-", "−")


def _thousands(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:,.0f}"


def _probability(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.4f}"


def _bytes(value: float) -> str:
    """Return a size in the largest unit that leaves a number from 1."""
    if math.isnan(value):
        return MISSING
    unit, name = next(
        ((size, name) for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= size), (1, "B")
    )
    return f"{value / unit:.1f} {name}" if unit > 1 else f"{value:.0f} {name}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _tex(value: object) -> str:
    """Return text as LaTeX prints it."""
    return "".join(_TEX.get(character, character) for character in str(value))
