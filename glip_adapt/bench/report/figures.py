"""Figures of one trunk beside the data-efficiency curves: method comparison, cost, zero-shot retention.

Each takes the runs as ``load_table`` returns them, the name of the trunk, and a sentence for the foot of the figure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from glip_adapt.bench.plan import ZERO_SHOT
from glip_adapt.bench.report import plotting, tables
from glip_adapt.bench.report.published import published_mean, published_note

_COST_AXES: Mapping[str, tuple[str, str | None]] = {
    "trained_parameters": ("trained parameters", ""),
    "adapter_bytes": ("saved adapter", "B"),
    "peak_bytes": ("peak memory", "B"),
    "seconds": ("seconds per run", None),
}
"""Cost → its axis, and the unit that takes a k, M or G; None for plain numbers."""


def draw_comparison(table: pd.DataFrame, trunk: str, note: str = "") -> Figure:
    """Return the methods of one trunk side by side at each number of shots: mean AP over datasets and its interval.

    Published means over the same datasets stand beside ours as hollow markers. Incomplete cells say so.
    """
    table = table[table["trunk"] == trunk]
    names = list(dict.fromkeys(table["dataset"]))
    mean, published = tables.select(tables.bootstrap_mean(table), trunk), published_mean(trunk, names)
    published = published[published.index.isin(mean.index)]
    has_limits = mean["low"].notna().any()
    limits = "Lines: 95 % bootstrap intervals, datasets and seeds resampled." if has_limits else ""
    foot = (note, limits, published_note(published.index, table["annotation_ids"]))
    figure, axes = _draw_groups(f"Methods on {trunk}", foot, mean.rename(columns={"mean": "value"}), published)
    _draw_level(axes, mean[mean.index.get_level_values("shots") == 0]["mean"].max(), "zero-shot")
    axes.set_ylabel("AP (percent)")
    plotting.finish_axes(axes, f"mean over {len(names)} datasets" if len(names) > 1 else names[0])
    return figure


def draw_retention(table: pd.DataFrame, trunk: str, note: str = "") -> Figure:
    """Return AP on the other datasets after adapting to one, per method and shots, beside AP before."""
    retention = tables.select(tables.summarize_retention(table[table["trunk"] == trunk]), trunk)
    after = retention.rename(columns={"after": "value"}).assign(low=math.nan, high=math.nan)
    figure, axes = _draw_groups(f"Zero-shot retention of {trunk}", (note,), after, pd.Series(dtype="float64"))
    _draw_level(axes, retention["before"].max(), "before adapting")
    axes.set_ylabel("AP on the other datasets (percent)")
    plotting.finish_axes(axes, "mean over runs and the datasets that they were not adapted to")
    return figure


def draw_costs(table: pd.DataFrame, trunk: str, note: str = "") -> Figure:
    """Return AP over each cost of one trunk's methods: trained parameters, adapter size, peak memory, time.

    A point is the mean over datasets and seeds at one number of shots, joined by method; the least and the most
    shots are named. Zero-shot, which trains nothing, is a level.
    """
    costs = tables.select(tables.summarize_costs(table[table["trunk"] == trunk]), trunk)
    methods = costs.index.get_level_values("method")
    zero_shot, adapted = costs[methods == ZERO_SHOT]["ap"], costs[methods != ZERO_SHOT]
    styles = plotting.styles_of(methods)
    foot = (note, "Beside the ends of a line: shots per class.")
    figure = plotting.build_figure(f"Cost of the methods on {trunk}", foot, (max(11.0, _head_width(len(styles))), 7.6))
    for position, cost in enumerate(tables.COSTS, start=1):
        axes = figure.add_subplot(2, 2, position)
        label, unit = _COST_AXES[cost]
        for method, points in adapted.groupby("method", sort=False):
            _draw_cost(axes, points.droplevel("method")[[cost, "ap"]].dropna(), styles[str(method)])
        _draw_level(axes, zero_shot.max(), "zero-shot")
        if adapted[cost].isna().all():
            axes.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", color=plotting.GREY)
        else:
            _scale_costs(axes, adapted[cost].dropna(), unit)
        axes.set_ylim(0, plotting.top_of(costs["ap"]))
        axes.set_xlabel(label)
        axes.set_ylabel("AP (percent)" if position % 2 else "")
        plotting.finish_axes(axes, "")
        axes.grid(axis="x", color=plotting.RULE, lw=0.8)
    plotting.add_legend(figure, styles)
    return figure


def draw_stages(table: pd.DataFrame, trunk: str, note: str = "") -> Figure:
    """Return where the time of a run goes: a bar per method and number of shots, a part of it per stage."""
    stages = tables.select(tables.summarize_stages(table[table["trunk"] == trunk]), trunk)
    figure = plotting.build_figure(f"Seconds per run on {trunk}", (note,), (8.6, 1.6 + 0.34 * len(stages)))
    axes, ends = figure.add_subplot(), stages.cumsum(axis=1)
    for colour, (stage, seconds) in zip(itertools.cycle(plotting.COLOURS), stages.items(), strict=False):
        axes.barh(range(len(stages)), seconds, left=ends[stage] - seconds, color=colour, label=str(stage))
    names = [
        plotting.readable(method) + ("" if method == ZERO_SHOT else f", {shots} {'shot' if shots == 1 else 'shots'}")
        for method, shots in stages.index
    ]
    axes.set_yticks(range(len(stages)), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds, mean over datasets and seeds")
    plotting.finish_axes(axes, "")
    axes.grid(axis="x", color=plotting.RULE, lw=0.8)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right", ncols=min(4, len(stages.columns)), frameon=False, fontsize=9)
    return figure


def _head_width(methods: int) -> float:
    """Return the inches that title and legend need side by side."""
    return 4.2 + 1.25 * methods


def _draw_groups(title: str, foot: Sequence[str], summary: pd.DataFrame, published: pd.Series) -> tuple[Figure, Axes]:
    """Draw ``value`` with ``low`` and ``high`` by method and shots: a group per number of shots, a place per method."""
    shots = tables.sort_shots(dict.fromkeys(summary.index.get_level_values("shots")))
    styles = plotting.styles_of(summary.index.get_level_values("method"))
    methods = [name for name in styles if name != ZERO_SHOT]
    width = max(7.4, _head_width(len(methods)), 3.0 + 0.34 * (len(methods) + 1) * len(shots))
    figure = plotting.build_figure(title, foot, (width, 4.9))
    axes = figure.add_subplot()
    shots = [value for value in shots if value != 0]
    step = 0.8 / (len(methods) + 1)
    for group, value in enumerate(shots):
        for place, method in enumerate(methods):
            x, style = group + step * (place - (len(methods) - 1) / 2), styles[method]
            middle, *limits = summary.loc[(method, value), ["value", "low", "high"]].to_numpy(dtype="float64")
            axes.plot([x, x], limits, "-", color=style["color"], lw=1.6)
            plotting.draw_points(axes, x, middle, style)
            if math.isnan(middle):
                words = {"ha": "center", "va": "bottom", "rotation": 90, "fontsize": 8}
                plotting.write_beside(axes, "missing", (x, 0), (0, 3), style["color"], **words)
            if (method, value) in published.index:
                hollow = {"mfc": "white", "mec": None, "mew": 1.3}
                plotting.draw_points(axes, x + step / 3, published[method, value], style, 5.5, **hollow)
    shown = pd.concat([summary["value"], summary["high"], published])
    axes.set_ylim(0, plotting.top_of(shown))
    axes.set_xlim(-0.6, len(shots) - 0.4)
    axes.set_xticks(range(len(shots)), [str(value) for value in shots])
    axes.set_xlabel("shots per class")
    plotting.add_legend(figure, styles)
    return figure, axes


def _draw_cost(axes: Axes, points: pd.DataFrame, style: Mapping[str, Any]) -> None:
    """Draw the points of one method, cost and AP by shots, joined; the least and the most shots are named."""
    cost, ap = points.to_numpy(dtype="float64").T
    plotting.draw_points(axes, cost, ap, style, 7.5, ls="-", lw=1.2)
    for end in dict.fromkeys((0, len(points) - 1)) if len(points) else ():
        shots = str(points.index[end])
        plotting.write_beside(axes, shots, (cost[end], ap[end]), (7, 0), style["color"], va="center", fontsize=8)


def _scale_costs(axes: Axes, cost: pd.Series, unit: str | None) -> None:
    """Lay a log axis under costs, with a few round numbers on it however far they reach."""
    decades = math.log10(max(cost.max(), 1e-9) / max(cost.min(), 1e-9))
    axes.set_xscale("log")
    round_numbers = LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0))
    axes.xaxis.set_major_locator(MaxNLocator(4) if decades < 0.3 else round_numbers)  # no two of those may be in reach
    axes.xaxis.set_major_formatter("{x:g}" if unit is None else EngFormatter(unit))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)


def _draw_level(axes: Axes, ap: float, name: str) -> None:
    """Draw a value that all methods share, named on its right; nothing where it is missing."""
    if not math.isnan(ap):
        axes.axhline(ap, color=plotting.GREY, lw=1.2, ls="--", zorder=0)
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.05 * ap))
        axes.annotate(
            name, (1.01, ap), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=plotting.GREY
        )
