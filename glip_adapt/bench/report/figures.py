"""Figures of one trunk beside the data-efficiency curves: method comparison, cost, zero-shot retention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from glip_adapt.bench.plan import ZERO_SHOT
from glip_adapt.bench.report.plotting import GREY, RULE, build_figure, finish_axes, published_note, readable, styles_of
from glip_adapt.bench.report.published import published_mean
from glip_adapt.bench.report.tables import (
    COSTS,
    bootstrap_mean,
    select,
    sort_shots,
    summarize_costs,
    summarize_retention,
)
from glip_adapt.core.settings import Shots

_COST_AXES: Mapping[str, tuple[str, str | None]] = {
    "trained_parameters": ("trained parameters", ""),
    "adapter_bytes": ("saved adapter", "B"),
    "peak_bytes": ("peak memory", "B"),
    "seconds": ("seconds per run", None),
}
"""Cost → its axis, and the unit that takes a k, M or G; None for plain numbers."""

_LIMITS = "Lines: 95 % bootstrap intervals, datasets and seeds resampled."


def draw_comparison(table: pd.DataFrame, trunk: str, note: str = "") -> Figure:
    """Return the methods of one trunk side by side at each number of shots: mean AP over datasets and its interval.

    Published means over the same datasets stand beside ours as hollow markers. Incomplete cells say so.

    Args:
        table: as ``load_table`` returns it.
        trunk: which trunk.
        note: a sentence for the foot of the figure.
    """
    table = table[table["trunk"] == trunk]
    names = list(dict.fromkeys(table["dataset"]))
    mean, published = select(bootstrap_mean(table), trunk), published_mean(trunk, names)
    published = published[published.index.isin(mean.index)]
    shots = sort_shots(dict.fromkeys(mean.index.get_level_values("shots")))
    methods = list(dict.fromkeys(mean.index.get_level_values("method")))
    foot = (
        note,
        _LIMITS if mean["low"].notna().any() else "",
        published_note(published.index, table["annotation_ids"]),
    )
    figure = build_figure(f"Methods on {trunk}", foot, _group_size(len(methods), len(shots)))
    axes = figure.add_subplot()
    _draw_groups(axes, mean.rename(columns={"mean": "value"}), published, [value for value in shots if value != 0])
    zero_shot = mean[mean.index.get_level_values("shots") == 0]["mean"]
    _draw_level(axes, zero_shot.iloc[0] if len(zero_shot) else math.nan, "zero-shot")
    axes.set_ylabel("AP (percent)")
    finish_axes(axes, f"mean over {len(names)} datasets" if len(names) > 1 else names[0])
    return figure


def draw_retention(table: pd.DataFrame, trunk: str, note: str = "") -> Figure:
    """Return AP on the other datasets after adapting to one, per method and shots, beside AP before.

    Args:
        table: as ``load_table`` returns it, of runs that were scored on other datasets.
        trunk: which trunk.
        note: a sentence for the foot of the figure.
    """
    retention = select(summarize_retention(table[table["trunk"] == trunk]), trunk)
    shots = sort_shots(dict.fromkeys(retention.index.get_level_values("shots")))
    methods = retention.index.get_level_values("method").nunique()
    figure = build_figure(f"Zero-shot retention of {trunk}", (note,), _group_size(methods, len(shots)))
    axes = figure.add_subplot()
    after = retention.rename(columns={"after": "value"}).assign(low=math.nan, high=math.nan)
    _draw_groups(axes, after, pd.Series(dtype="float64"), shots)
    _draw_level(axes, retention["before"].dropna().max(), "before adapting")
    axes.set_ylabel("AP on the other datasets (percent)")
    finish_axes(axes, "mean over runs and the datasets that they were not adapted to")
    return figure


def draw_costs(table: pd.DataFrame, trunk: str, note: str = "") -> Figure:
    """Return AP over each cost of one trunk's methods: trained parameters, adapter size, peak memory, time.

    A point is the mean over datasets and seeds at one number of shots, joined by method; the least and the most
    shots are named. Zero-shot, which trains nothing, is a level.

    Args:
        table: as ``load_table`` returns it.
        trunk: which trunk.
        note: a sentence for the foot of the figure.
    """
    costs = select(summarize_costs(table[table["trunk"] == trunk]), trunk)
    methods = costs.index.get_level_values("method")
    zero_shot, adapted = costs[methods == ZERO_SHOT]["ap"], costs[methods != ZERO_SHOT]
    styles = styles_of(adapted.index.get_level_values("method"))
    figure = build_figure(
        f"Cost of the methods on {trunk}",
        (note, "Beside the ends of a line: shots per class."),
        (max(11.0, _head_width(len(styles))), 7.6),
    )
    for position, cost in enumerate(COSTS, start=1):
        axes = figure.add_subplot(2, 2, position)
        label, unit = _COST_AXES[cost]
        for method in dict.fromkeys(adapted.index.get_level_values("method")):
            _draw_cost(axes, adapted.loc[method, cost], adapted.loc[method, "ap"], styles[method])
        _draw_level(axes, zero_shot.iloc[0] if len(zero_shot) else math.nan, "zero-shot")
        if adapted[cost].isna().all():
            axes.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)
        else:
            _scale_costs(axes, adapted[cost].dropna(), unit)
        axes.set_ylim(0, _top(costs["ap"]))
        axes.set_xlabel(label)
        axes.set_ylabel("AP (percent)" if position % 2 else "")
        finish_axes(axes, "")
        axes.grid(axis="x", color=RULE, lw=0.8)
    _add_legend(figure, styles)
    return figure


def _head_width(methods: int) -> float:
    """Return the inches that title and legend need side by side."""
    return 4.2 + 1.25 * methods


def _group_size(methods: int, groups: int) -> tuple[float, float]:
    """Return width and height of a figure of groups, inches."""
    return max(7.4, _head_width(methods), 3.0 + 0.34 * (methods + 1) * groups), 4.9


def _draw_groups(axes: Axes, summary: pd.DataFrame, published: pd.Series, shots: Sequence[Shots]) -> None:
    """Draw ``value`` with ``low`` and ``high`` by method and shots: a group per number of shots, a place per method."""
    methods = [name for name in dict.fromkeys(summary.index.get_level_values("method")) if name != ZERO_SHOT]
    styles = styles_of(methods)
    step = 0.8 / (len(methods) + 1)
    for group, value in enumerate(shots):
        for place, method in enumerate(methods):
            x, cell, style = (
                group + step * (place - (len(methods) - 1) / 2),
                summary.loc[(method, value)],
                styles[method],
            )
            axes.plot([x, x], [cell["low"], cell["high"]], "-", color=style["color"], lw=1.6)
            axes.plot(x, cell["value"], ls="", ms=8, mec="white", mew=0.8, **style)
            if math.isnan(cell["value"]):
                axes.annotate(
                    "missing",
                    (x, 0),
                    (0, 3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    rotation=90,
                    fontsize=8,
                    color=style["color"],
                )
            if (method, value) in published.index:
                axes.plot(x + step / 3, published[method, value], ls="", ms=5.5, mfc="white", mew=1.3, **style)
    shown = pd.concat([summary["value"], summary["high"], published])
    axes.set_ylim(0, _top(shown))
    axes.set_xlim(-0.6, len(shots) - 0.4)
    axes.set_xticks(range(len(shots)), [str(value) for value in shots])
    axes.set_xlabel("shots per class")
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    _add_legend(figure, styles)


def _draw_cost(axes: Axes, cost: pd.Series, ap: pd.Series, style: Mapping[str, Any]) -> None:
    """Draw the points of one method by shots, joined, on a log axis."""
    cost, ap = cost[cost.notna() & ap.notna()], ap[cost.notna() & ap.notna()]
    axes.plot(cost, ap, "-", ms=7.5, mec="white", mew=0.8, lw=1.2, **style)
    for end in dict.fromkeys((0, len(cost) - 1)) if len(cost) else ():
        shots, place = str(cost.index[end]), (cost.iloc[end], ap.iloc[end])
        axes.annotate(shots, place, (7, 0), textcoords="offset points", va="center", fontsize=8, color=style["color"])


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
        axes.axhline(ap, color=GREY, lw=1.2, ls="--", zorder=0)
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.05 * ap))
        axes.annotate(name, (1.01, ap), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=GREY)


def _add_legend(figure: Figure, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Name the methods above the panels."""
    handles = [
        Line2D([], [], ls="", ms=8, label=readable(name), **style)
        for name, style in styles.items()
        if name != ZERO_SHOT
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=max(1, len(handles)), frameon=False)


def _top(values: pd.Series) -> float:
    """Return where an axis from 0 ends, a little above its highest value."""
    return 1.0 if values.isna().all() else max(1.0, 1.1 * float(values.max()))
