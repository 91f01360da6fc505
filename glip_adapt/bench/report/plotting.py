"""Parts that all figures of a report share: colours, the shots axis, frames, sentences at the foot."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from glip_adapt.adapters import ADAPTERS
from glip_adapt.bench.plan import ZERO_SHOT
from glip_adapt.core.settings import Shots

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
GREY, RULE = "#555555", "#E4E4E4"
RIM: Mapping[str, Any] = {"ls": "", "mec": "white", "mew": 0.8}  # of markers, which lines pass behind

_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "*")


def styles_of(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return method → its colour and marker, the same in every figure; the grey disc is kept for zero-shot."""
    shown = [method for method in dict.fromkeys(methods) if method != ZERO_SHOT]
    known = [method for method in dict.fromkeys((*ADAPTERS, *shown)) if method != ZERO_SHOT]
    looks = zip(known, itertools.cycle(COLOURS), itertools.cycle(_MARKERS), strict=False)
    styles = {method: {"color": colour, "marker": marker} for method, colour, marker in looks}
    return {method: styles[method] for method in shown} | {ZERO_SHOT: {"color": GREY, "marker": "o"}}


def positions_of(shots: Sequence[Shots]) -> dict[Shots, float]:
    """Return shots → place on the x axis: log10 for positive numbers, 0 and ``all`` a step outside."""
    places: dict[Shots, float] = {value: math.log10(value) for value in shots if value != "all" and value > 0}
    places |= {0: min(places.values(), default=0.0) - 0.35, "all": max(places.values(), default=0.0) + 0.35}
    return {value: places[value] for value in shots}


def build_figure(title: str, foot: Sequence[str], size: tuple[float, float]) -> Figure:
    """Return an empty figure with its title above, on the left, and the sentences of ``foot`` that are not empty below.

    The size is width and height in inches, without the sentences.
    """
    width, height = size
    lines = textwrap.wrap(" ".join(filter(None, (sentence.strip() for sentence in foot))), int(12.5 * width))
    figure = Figure(figsize=(width, height + 0.2 * len(lines)), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
    if lines:
        figure.supxlabel("\n".join(lines), x=0.012, ha="left", fontsize=9, color=GREY)
    return figure


def finish_axes(axes: Axes, title: str, large: bool = True) -> None:
    """Set the title of a panel and remove lines that nobody reads."""
    axes.set_title(title, loc="left", fontsize=11 if large else 9)
    axes.tick_params(labelsize=10 if large else 8, left=False, bottom=False)
    axes.grid(axis="y", color=RULE, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def top_of(values: pd.Series, room: float = 1.1) -> float:
    """Return where an axis from 0 ends: ``room`` times the highest value, at least 1."""
    return 1.0 if values.isna().all() else max(1.0, room * float(values.max()))


def draw_points(axes: Axes, x: Any, y: Any, style: Mapping[str, Any], size: float = 8, **more: Any) -> None:
    """Draw markers with a white rim; without a line, unless ``more`` asks for one."""
    axes.plot(x, y, **{"ms": size, **RIM, **style, **more})


def write_beside(
    axes: Axes, text: str, place: tuple[float, float], shift: tuple[float, float], color: str, **more: Any
) -> None:
    """Write words at a distance from a place in the data, in points."""
    axes.annotate(text, place, shift, textcoords="offset points", color=color, **more)


def add_legend(figure: Figure, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Name the methods, or trunks, above the panels."""
    shown = {readable(name): style for name, style in styles.items() if name != ZERO_SHOT}
    handles = [Line2D([], [], ls="", ms=8, label=name, **style) for name, style in shown.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=max(1, len(handles)), frameon=False)


def readable(method: str) -> str:
    """Return the name of a method for a figure."""
    return "zero-shot" if method == ZERO_SHOT else method.replace("_", " ")
