"""Records → tables and figures. Here and in ``comparison`` alone AP is a percentage, and runs are averaged.

A cell is one (trunk, dataset, method, shots); it is complete when every seed has a finished run with a defined AP.
Which cells and seeds are expected follows from the records, failed ones included: per trunk, every dataset × method ×
shots that occurs, with every seed that occurs at these shots. Figures show complete cells only, tables say what is
missing.
"""

from __future__ import annotations

import itertools
import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from glip_adapt.bench.plan import ZERO_SHOT, Shots
from glip_adapt.bench.records import RunRecord, read_records

MISSING = "–"

_GRID = ["trunk", "dataset", "method", "shots", "seed"]
_METRICS = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "val_ap"]
_COSTS = ["trained_parameters", "adapter_bytes", "peak_bytes", "seconds"]
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "*")
_GREY = "#555555"


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written; ``figures`` holds a PNG and an SVG per trunk."""

    csv: Path
    markdown: Path
    figures: tuple[Path, ...]


def write_report(out: Path, note: str = "") -> ReportFiles:
    """Write ``OUT/report/``: table.csv, table.md, and data_efficiency.png and .svg (one pair per trunk if several).

    Args:
        out: the results folder.
        note: a sentence that heads the table and stands below the figures, for example what the figures do not show.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: if ``out`` holds no record.
        ValueError: if a record is broken; names the file.
    """
    records = read_records(out)
    if not records:
        raise FileNotFoundError(
            f"{out}: holds no benchmark records. Make some first: glip-adapt bench PLAN.toml --out {out}"
        )
    table = load_table(records)
    folder = out / "report"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("data_efficiency*"):
        stale.unlink()
    csv, markdown = folder / "table.csv", folder / "table.md"
    table.to_csv(csv, index=False)
    markdown.write_text(format_markdown(table, note), encoding="utf-8")
    figures = []
    trunks = list(dict.fromkeys(table["trunk"]))
    for trunk in trunks:
        figure = draw_data_efficiency(table, trunk, note)
        stem = "data_efficiency" if len(trunks) == 1 else f"data_efficiency--{trunk}"
        for suffix in ("png", "svg"):
            figures.append(folder / f"{stem}.{suffix}")
            with matplotlib.rc_context({"svg.hashsalt": "glip_adapt"}):  # equal records give an equal file
                figure.savefig(figures[-1], dpi=160, metadata={"Date": None} if suffix == "svg" else None)
    return ReportFiles(csv, markdown, tuple(figures))


def load_table(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Return one row per run: key, status, all metrics (fractions, as in the records), costs, environment, error."""
    rows = []
    for record in records:
        key = record.key
        rows.append(
            {"run": key.name, "trunk": key.trunk, "dataset": key.dataset_name, "method": key.method}
            | {"shots": key.shots, "seed": key.seed, "status": record.status}
            | {name: getattr(record.metrics, name, None) for name in _METRICS}
            | {name: getattr(record.cost, name, None) for name in _COSTS}
            | {"per_class": json.dumps(record.metrics.per_class, ensure_ascii=False) if record.metrics else None}
            | {name: record.environment.get(name) for name in ("device", "commit", "dirty")}
            | {"created": record.created, "error": record.error.splitlines()[0] if record.error else None}
        )
    table = pd.DataFrame(rows)
    numbers = dict.fromkeys([*_METRICS, "seconds"], "float64")
    counts = {name: "Int64" for name in _COSTS if name != "seconds"}
    return table.astype({**numbers, **counts, "shots": "object"})


def summarize_datasets(table: pd.DataFrame) -> pd.DataFrame:
    """Return AP in percent per trunk, dataset, method and shots.

    Args:
        table: as ``load_table`` returns it.

    Returns:
        Columns ``mean`` and ``std`` over the finished seeds (sample standard deviation, divided by n − 1; NaN for one
        seed), ``finished`` and ``expected`` (numbers of seeds).
    """
    cells = _expected_runs(table).groupby(_GRID[:-1], sort=False)["ap"]
    return pd.DataFrame(cells.agg(mean="mean", std="std", finished="count", expected="size"))


def summarize_mean(table: pd.DataFrame) -> pd.DataFrame:
    """Return the plain mean of AP over all datasets, in percent, per trunk, method and shots.

    Datasets are averaged seed by seed, then mean and spread are taken over seeds, as in the paper's tables.

    Args:
        table: as ``load_table`` returns it.

    Returns:
        Columns ``mean`` and ``std`` (sample standard deviation over seeds, divided by n − 1; NaN for one seed), both
        NaN as soon as one run is missing; ``finished`` and ``expected`` (numbers of runs, dataset × seed).
    """
    runs = _expected_runs(table)
    group = ["trunk", "method", "shots"]
    counts = runs.groupby(group, sort=False)["ap"].agg(finished="count", expected="size")
    per_seed = runs.groupby([*group, "seed"], sort=False)["ap"].mean()
    summary = per_seed.groupby(group, sort=False).agg(mean="mean", std="std").join(counts)
    incomplete = summary["finished"] < summary["expected"]
    summary.loc[incomplete, ["mean", "std"]] = math.nan
    return summary


def pivot(summary: pd.DataFrame) -> pd.DataFrame:
    """Return a summary as text with one column per number of shots, one decimal, ``–`` where there is no figure."""
    text = pd.Series([_format_cell(cell) for cell in summary.itertuples()], index=summary.index, dtype="object")
    wide = text.unstack("shots", sort=False).fillna(MISSING)
    return wide.reindex(columns=_sort_shots(summary.index.get_level_values("shots").unique()))


def format_markdown(table: pd.DataFrame, note: str = "") -> str:
    """Return the report as Markdown: note, AP per dataset, mean over datasets, failed runs."""
    datasets, mean = summarize_datasets(table), summarize_mean(table)
    missing = int((datasets["expected"] - datasets["finished"]).sum())
    legend = (
        "AP in percent (COCO, IoU 0.50:0.95) by shots per class; 0 is zero-shot, shared by all methods. "
        f"± is the sample standard deviation over seeds (n − 1). {MISSING} is a missing figure."
    )
    text = ["# Benchmark report", *([note.strip()] if note.strip() else []), legend]
    text += ["## AP per dataset", _markdown_table(pivot(datasets))]
    for trunk in dict.fromkeys(table["trunk"]):
        names = list(dict.fromkeys(table.loc[table["trunk"] == trunk, "dataset"]))
        text += [f"## Mean over {_count(len(names), 'dataset')}, {trunk}", ", ".join(names) + "."]
        text.append(_markdown_table(pivot(mean.loc[[trunk]])))
    text.append(
        f"{_count(missing, 'expected figure')} missing; a mean over datasets is given only where none is."
        if missing
        else "No figure is missing."
    )
    failed = table.loc[table["status"] == "failed", ["run", "error"]]
    if len(failed):
        text += [f"## {_count(len(failed), 'failed run')}", _markdown_table(failed.set_index("run"))]
    return "\n\n".join(text) + "\n"


def draw_data_efficiency(table: pd.DataFrame, trunk: str, note: str = "") -> Figure:
    """Return the data-efficiency figure of one trunk: AP over shots, one line per method.

    The large panel is the mean over datasets, the small ones a dataset each. Few shots stand on a log axis, 0 on its
    left and ``all`` on its right, joined by dashes because they are not on that axis. Error bars are sample standard
    deviations over seeds. Incomplete cells are gaps.

    Args:
        table: as ``load_table`` returns it.
        trunk: which trunk.
        note: a sentence for the foot of the figure.
    """
    table = table[table["trunk"] == trunk]
    datasets = _select(summarize_datasets(table), trunk)
    mean = _select(summarize_mean(table), trunk)
    names = list(dict.fromkeys(datasets.index.get_level_values("dataset")))
    small = names if len(names) > 1 else []
    columns = math.ceil(math.sqrt(len(small)))
    rows = math.ceil(len(small) / columns) if small else 1
    gaps = "Gaps: figures that are missing." if (mean["finished"] < mean["expected"]).any() else ""
    lines = textwrap.wrap(f"{note.strip()} {gaps}".strip(), 95 + 32 * columns)
    height = max(4.6, 2.15 * rows) + 0.7 + 0.2 * len(lines)
    figure = Figure(figsize=(7.4 + 2.7 * columns, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    figure.suptitle(f"Data efficiency of {trunk}", x=0.012, ha="left", fontsize=14, fontweight="bold")
    panels = figure.add_gridspec(rows, columns + 1, width_ratios=[2.4] + [1.0] * columns)
    main = figure.add_subplot(panels[:, 0])
    title = f"mean over {len(names)} datasets" if small else names[0]
    _draw_panel(main, mean, f"{title}{', ± std over seeds' if mean['std'].notna().any() else ''}")
    main.set_ylabel("AP (percent)")
    _label_lines(main, mean)
    for position, name in enumerate(small):
        panel = figure.add_subplot(panels[position // columns, 1 + position % columns])
        _draw_panel(panel, _select(datasets, name), name, large=False)
        if position + columns < len(small):
            panel.tick_params(labelbottom=False)
            panel.set_xlabel("")
    if lines:
        figure.supxlabel("\n".join(lines), x=0.012, ha="left", fontsize=9, color=_GREY)
    return figure


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
        for dataset, method, shots in itertools.product(dict.fromkeys(runs["dataset"]), methods, _sort_shots(seeds)):
            source = ZERO_SHOT if shots == 0 else method
            for seed in sorted(seeds[shots]):
                rows.append((trunk, dataset, method, shots, seed, ap.get((trunk, dataset, source, shots, seed))))
    return pd.DataFrame(rows, columns=[*_GRID, "ap"]).astype({"ap": "float64", "shots": "object"})


def _select(summary: pd.DataFrame, label: str) -> pd.DataFrame:
    """Return the rows under one label of the first index level."""
    rows = summary.loc[label]
    assert isinstance(rows, pd.DataFrame)
    return rows


def _sort_shots(shots: Iterable[Shots]) -> list[Shots]:
    """Return numbers upwards, then ``all``."""
    return sorted(shots, key=lambda value: math.inf if value == "all" else float(value))


def _format_cell(cell: object) -> str:
    """Return one row of a summary as the text of a table cell."""
    mean, std, finished, expected = (getattr(cell, name) for name in ("mean", "std", "finished", "expected"))
    if math.isnan(mean):
        return f"{MISSING} ({expected - finished} of {expected} missing)" if finished else MISSING
    spread = "" if math.isnan(std) else f" ± {std:.1f}"
    return f"{mean:.1f}{spread}" + (f" ({finished} of {expected} seeds)" if finished < expected else "")


def _markdown_table(frame: pd.DataFrame) -> str:
    """Return a frame, index included, as a Markdown table."""
    frame = frame.reset_index()
    rows = [[str(value).replace("|", "\\|") for value in row] for row in frame.itertuples(index=False)]
    header = [str(column) for column in frame.columns]
    labels = sum(column in ("trunk", "dataset", "method", "run", "error") for column in header)
    rule = [":--"] * labels + ["--:"] * (len(header) - labels)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _positions(shots: Sequence[Shots]) -> dict[Shots, float]:
    """Return shots → place on the x axis: log10 for positive numbers, 0 and ``all`` a step outside."""
    places: dict[Shots, float] = {value: math.log10(value) for value in shots if value != "all" and value > 0}
    outside: dict[Shots, float] = {
        0: min(places.values(), default=0.0) - 0.35,
        "all": max(places.values(), default=0.0) + 0.35,
    }
    return {value: (places | outside)[value] for value in shots}


def _styles(methods: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return method → its colour and marker; the grey disc is kept for zero-shot."""
    styles = {
        method: {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}
        for index, method in enumerate(dict.fromkeys(methods))
    }
    return {**styles, ZERO_SHOT: {"color": _GREY, "marker": "o"}} if ZERO_SHOT in styles else styles


def _draw_panel(axes: Axes, summary: pd.DataFrame, title: str, large: bool = True) -> None:
    """Draw the complete cells of a summary indexed by method and shots, one line per method."""
    summary = summary.where(summary["finished"] == summary["expected"])
    shots = _sort_shots(dict.fromkeys(summary.index.get_level_values("shots")))
    places = _positions(shots)
    for method, style in _styles(summary.index.get_level_values("method")).items():
        _draw_line(axes, _select(summary, method).reindex(shots), places, style, large)
    top = (summary["mean"] + summary["std"].fillna(0)).max()
    axes.set_ylim(0, 1.0 if math.isnan(top) else max(1.0, 1.12 * top))
    axes.set_xlim(min(places.values()) - 0.1, max(places.values()) + 0.1)
    axes.set_xticks([places[value] for value in shots], [str(value) for value in shots])
    axes.set_xlabel("shots per class", fontsize=10 if large else 8)
    axes.set_title(title, loc="left", fontsize=11 if large else 9)
    axes.tick_params(labelsize=10 if large else 8, length=0)
    axes.grid(axis="y", color="#E4E4E4", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_line(axes: Axes, line: pd.DataFrame, places: dict[Shots, float], style: dict[str, str], large: bool) -> None:
    """Draw one method: solid on the log axis, dashed to the points beside it, the zero-shot point in grey."""
    size, width = (7.5, 2.0) if large else (5.0, 1.4)
    height = dict(zip(places, line["mean"], strict=True))
    for start, end in itertools.pairwise(places):
        dashes = "--" if start == 0 or end == "all" else "-"
        ends = [places[start], places[end]]
        axes.plot(ends, [height[start], height[end]], dashes, color=style["color"], lw=width)
    points = line.drop(index=0, errors="ignore")
    axes.errorbar(
        [places[value] for value in points.index],
        points["mean"],
        yerr=points["std"].fillna(0) if points["std"].notna().any() else None,
        fmt=style["marker"],
        color=style["color"],
        ms=size,
        mec="white",
        mew=0.8,
        capsize=3 if large else 2,
        elinewidth=1.1,
        zorder=3,
    )
    if 0 in places:
        axes.plot(places[0], height[0], "o", color=_GREY, ms=size + 0.5, mec="white", mew=0.8, zorder=4)


def _label_lines(axes: Axes, summary: pd.DataFrame) -> None:
    """Name each line right of the panel, at the height of its last point or as near as the names stay apart."""
    complete = summary.loc[summary["finished"] == summary["expected"], "mean"]
    methods = summary.index.get_level_values("method")
    last = {method: mean.iloc[-1] / axes.get_ylim()[1] for method, mean in complete.groupby("method")}
    styles = _styles(methods)
    order = sorted(styles, key=lambda method: last.get(method, 0.0))
    heights = _spread([last.get(method, 0.0) for method in order], gap=0.055)
    for method, height in zip(order, heights, strict=True):
        colour, marker = styles[method]["color"], styles[method]["marker"]
        axes.plot(1.03, height, marker, color=colour, ms=7, transform=axes.transAxes, clip_on=False)
        text = method.replace("_", " ") + ("" if method in last else " (no figure)")
        axes.annotate(text, (1.055, height), xycoords="axes fraction", va="center", color=colour)
    zero = complete[complete.index.get_level_values("shots") == 0]
    if len(zero) and ZERO_SHOT not in styles:
        below = zero.iloc[0] / axes.get_ylim()[1] > 0.1
        place = _positions(_sort_shots(summary.index.get_level_values("shots").unique()))[0]
        offset = (0, -16 if below else 8)
        axes.annotate(
            "zero-shot",
            (place, zero.iloc[0]),
            offset,
            textcoords="offset points",
            ha="center",
            color=_GREY,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # the lines pass behind the words
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return ascending heights in [0, 1], moved as little as a least distance of ``gap`` needs."""
    placed = [0.0 - gap]
    for height in heights:
        placed.append(max(height, placed[-1] + gap))
    ceiling = 1.0 + gap
    for index in range(len(placed) - 1, 0, -1):
        placed[index] = ceiling = min(placed[index], ceiling - gap)
    return placed[1:]
