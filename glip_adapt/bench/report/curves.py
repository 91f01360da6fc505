"""Data-efficiency figures: AP over shots, one line per method (the form of GLIP, arXiv 2112.03857, Fig. 8) or trunk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from glip_adapt.bench.plan import ZERO_SHOT
from glip_adapt.bench.report import plotting
from glip_adapt.bench.report.published import published_ap, published_mean, published_note
from glip_adapt.bench.report.tables import select, sort_shots, summarize_datasets, summarize_mean
from glip_adapt.core.settings import Shots


def draw_data_efficiency(table: pd.DataFrame, trunk: str, note: str = "") -> Figure:
    """Return the data-efficiency figure of one trunk.

    The large panel is the mean over datasets, the small ones a dataset each. Few shots stand on a log axis, 0 on its
    left and ``all`` on its right, joined by dashes because they are not on that axis. Error bars are sample standard
    deviations over seeds. Incomplete cells are gaps. Published curves of the same trunk and datasets are dotted. The
    table is that of ``load_table``; ``note`` is a sentence for the foot of the figure.
    """
    table = table[table["trunk"] == trunk]
    datasets, mean = select(summarize_datasets(table), trunk), select(summarize_mean(table), trunk)
    names = list(dict.fromkeys(datasets.index.get_level_values("dataset")))
    published = published_ap(trunk)
    small = names if len(names) > 1 else []
    columns = math.ceil(math.sqrt(len(small)))
    rows = math.ceil(len(small) / columns) if small else 1
    gaps = "Gaps: figures that are missing." if (mean["finished"] < mean["expected"]).any() else ""
    overlaid = published[published.index.get_level_values("dataset").isin(names)]
    foot = (note, published_note(overlaid, table["annotation_ids"]), gaps)
    size = (7.4 + 2.7 * columns, max(4.6, 2.15 * rows) + 0.7)
    figure = plotting.build_figure(f"Data efficiency of {trunk}", foot, size)
    panels = figure.add_gridspec(rows, columns + 1, width_ratios=[2.4] + [1.0] * columns)
    main = figure.add_subplot(panels[:, 0])
    title = f"mean over {len(names)} datasets" if small else names[0]
    spread = ", ± std over seeds" if mean["std"].notna().any() else ""
    _draw_panel(main, mean, published_mean(trunk, names), f"{title}{spread}")
    main.set_ylabel("AP (percent)")
    _label_lines(main, mean)
    for position, name in enumerate(small):
        panel = figure.add_subplot(panels[position // columns, 1 + position % columns])
        _draw_panel(panel, select(datasets, name), published_mean(trunk, [name]), name, large=False)
        if position + columns < len(small):
            panel.set_xticks([])  # as below
            panel.set_xlabel("")
    return figure


def draw_trunks(table: pd.DataFrame, note: str = "") -> Figure:
    """Return trunks side by side: AP over shots, a panel per method and in it one line per trunk, on one scale.

    The lines of a panel differ by what the trunk gives; a line differs from panel to panel by what the method gives.
    Means are over the datasets that all trunks were run on. The table is that of ``load_table``.
    """
    table = table[table["dataset"].isin(shared_datasets(table))]
    mean, names = summarize_mean(table), list(dict.fromkeys(table["dataset"]))
    methods, trunks = (list(dict.fromkeys(mean.index.get_level_values(level))) for level in ("method", "trunk"))
    figure = plotting.build_figure("What trunk and method give", (note,), (max(7.4, 2.2 + 3.0 * len(methods)), 4.6))
    panels = figure.subplots(1, len(methods), squeeze=False)[0]
    unpublished = pd.Series(dtype="float64", index=pd.MultiIndex.from_tuples([], names=["method", "shots"]))
    for axes, method in zip(panels, methods, strict=True):
        of_trunks = select(mean.reorder_levels(["method", "trunk", "shots"]), method)
        of_trunks.index = of_trunks.index.set_names(["method", "shots"])  # as trunks are the lines here
        _draw_panel(axes, of_trunks, unpublished, plotting.readable(method))
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, top)
    panels[0].set_ylabel(f"AP (percent), mean over {len(names)} datasets" if len(names) > 1 else "AP (percent)")
    plotting.add_legend(figure, plotting.styles_of(trunks))
    return figure


def shared_datasets(table: pd.DataFrame) -> set[str]:
    """Return the names of the datasets that every trunk of a table was run on."""
    return set.intersection(*(set(runs["dataset"]) for _, runs in table.groupby("trunk")))


def _draw_panel(axes: Axes, summary: pd.DataFrame, published: pd.Series, title: str, large: bool = True) -> None:
    """Draw the complete cells of a summary indexed by method and shots, one line per method, and published ones."""
    summary = summary.where(summary["finished"] == summary["expected"])
    shots = sort_shots(dict.fromkeys(summary.index.get_level_values("shots")))
    places = plotting.positions_of(shots)
    methods = dict.fromkeys(summary.index.get_level_values("method"))
    styles = plotting.styles_of(methods)
    shown = published[published.index.isin(list(itertools.product(styles, places)))]
    for method in methods:
        _draw_published(axes, shown, method, places, styles[method], large)
        _draw_line(axes, select(summary, method).reindex(shots), places, styles[method], large)
    axes.set_ylim(0, plotting.top_of(pd.concat([summary["mean"] + summary["std"].fillna(0), shown]), 1.12))
    axes.set_xlim(min(places.values()) - 0.1, max(places.values()) + 0.1)
    axes.set_xticks([places[value] for value in shots], [str(value) for value in shots])
    axes.set_xlabel("shots per class", fontsize=10 if large else 8)
    axes.yaxis.set_major_locator(MaxNLocator(8 if large else 4))
    plotting.finish_axes(axes, title, large)


def _draw_published(
    axes: Axes, published: pd.Series, method: str, places: dict[Shots, float], style: Mapping[str, Any], large: bool
) -> None:
    """Draw the published curve of one method, dotted and hollow, from the published zero-shot point."""
    methods = published.index.get_level_values("method")
    if method in methods:
        line = pd.concat([published[methods == ZERO_SHOT], published[methods == method]]).droplevel("method")
        size, width = (6.5, 1.4) if large else (3.5, 1.0)
        x = [places[shots] for shots in line.index]
        axes.plot(x, line, ":", mfc="white", mew=width, ms=size, lw=width, **style)


def _draw_line(
    axes: Axes, line: pd.DataFrame, places: dict[Shots, float], style: Mapping[str, Any], large: bool
) -> None:
    """Draw one method: solid on the log axis, dashed to the points beside it, the zero-shot point in grey."""
    size, width = (7.5, 2.0) if large else (5.0, 1.4)
    shots, mean = list(places), line["mean"]
    solid = [value for value in shots if value not in (0, "all")]
    dashed = [part for end, part in ((0, shots[:2]), ("all", shots[-2:])) if end in shots]
    for dashes, part in (("-", solid), *(("--", part) for part in dashed)):
        axes.plot([places[value] for value in part], mean[part], dashes, color=style["color"], lw=width)
    points = line.drop(index=0, errors="ignore")
    spread = points["std"].fillna(0) if points["std"].notna().any() else None
    look = {**plotting.RIM, **style, "ms": size, "capsize": 3 if large else 0, "elinewidth": 1.1, "zorder": 3}
    axes.errorbar([places[value] for value in points.index], points["mean"], spread, **look)
    if 0 in places:
        plotting.draw_points(axes, places[0], mean[0], {"color": plotting.GREY, "marker": "o"}, size + 0.5, zorder=4)


def _label_lines(axes: Axes, summary: pd.DataFrame) -> None:
    """Name each line right of the panel, at the height of its last point or as near as the names stay apart."""
    complete = summary.loc[summary["finished"] == summary["expected"], "mean"]
    methods = list(dict.fromkeys(summary.index.get_level_values("method")))
    last = {method: mean.iloc[-1] / axes.get_ylim()[1] for method, mean in complete.groupby("method")}
    styles = plotting.styles_of(methods)
    order = sorted(methods, key=lambda method: last.get(method, 0.0))
    heights = _spread([last.get(method, 0.0) for method in order], gap=0.055)
    for method, height in zip(order, heights, strict=True):
        axes.plot(1.03, height, ls="", ms=7, transform=axes.transAxes, clip_on=False, **styles[method])
        text = plotting.readable(method) + ("" if method in last else " (no figure)")
        axes.annotate(text, (1.055, height), xycoords="axes fraction", va="center", color=styles[method]["color"])
    zero = complete[complete.index.get_level_values("shots") == 0]
    if len(zero) and ZERO_SHOT not in methods:
        place = plotting.positions_of(sort_shots(summary.index.get_level_values("shots").unique()))[0], zero.iloc[0]
        shift = 0, -16 if place[1] / axes.get_ylim()[1] > 0.1 else 8
        words = {"ha": "center", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}  # lines pass behind
        plotting.write_beside(axes, "zero-shot", place, shift, plotting.GREY, **words)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return ascending heights in [0, 1], moved as little as a least distance of ``gap`` needs."""
    placed = [0.0 - gap]
    for height in heights:
        placed.append(max(height, placed[-1] + gap))
    ceiling = 1.0 + gap
    for index in range(len(placed) - 1, 0, -1):
        placed[index] = ceiling = min(placed[index], ceiling - gap)
    return placed[1:]
