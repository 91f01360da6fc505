"""How much of full fine-tuning's gain prompt tuning recovers at 10 shots, with and without deep fusion.

    glip-adapt bench benchmarks/plans/fusion_matters.toml --out runs/fusion_matters
    python benchmarks/fusion_matters.py runs/fusion_matters --out benchmarks/results/fusion_matters

writes the figure (PNG and SVG) and prints the table; both hold bootstrap intervals over datasets and seeds.
The claim of GLIP, arXiv 2112.03857, Fig. 10: with deep fusion prompt tuning recovers most of the gain, without
it far less.
Letters: M trunks, D datasets, S seeds, R bootstrap draws. An axis of 2 is method, reference.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from glip_adapt.bench.plan import ZERO_SHOT, RunKey
from glip_adapt.bench.records import RunRecord, read_records
from glip_adapt.bench.report.plotting import COLOURS, GREY, build_figure
from glip_adapt.bench.report.statistics import DRAWS, Interval, interval_of, resample_means
from glip_adapt.bench.report.write import save_figure
from glip_adapt.core.plain_text import markdown
from glip_adapt.core.settings import Shots
from glip_adapt.trunks.released import TRUNKS

COMPARED = ("glip-nano", "glip-nano-a")

PUBLISHED: Mapping[str, float] = {
    "GLIP-T (B), fusion": 0.90,
    "GLIP-T (C), fusion": 0.90,
    "GLIP-T, fusion": 0.85,
    "GLIP-L, fusion": 0.95,
    "GLIP-T (A), no fusion": 0.41,
}
"""Model → share of full fine-tuning's gain that prompt tuning recovers at 10 shots, from Tables 14–16 of the paper."""

_METHOD_COLOUR, _REFERENCE_COLOUR = COLOURS[:2]
_WIDEST = (-0.5, 2.0)  # of the axis of shares; an interval may be infinite


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Gains of a method and of its reference on one trunk: AP less zero-shot AP, as fractions, and their ratio."""

    trunk: str
    method: str
    reference: str
    shots: Shots
    share: Interval
    gain: Interval
    reference_gain: Interval
    datasets: int
    seeds: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of the plan's records")
    parser.add_argument("--out", type=Path, required=True, help="name of the figure, without a suffix")
    arguments = parser.parse_args()
    records = read_records(arguments.results)
    recoveries = [share_of_gain(records, trunk, "prompt") for trunk in COMPARED]
    save_figure(draw_recovery(recoveries, note="Measured on synthetic data."), arguments.out)
    difference = difference_of_shares(records, *COMPARED, "prompt")
    print(format_recovery(recoveries, difference, note="The data are synthetic."))


def share_of_gain(
    records: Iterable[RunRecord],
    trunk: str,
    method: str,
    reference: str = "full",
    shots: Shots = 10,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Recovery:
    """Return the share of the reference's gain over zero-shot that ``method`` recovers on a trunk.

    All datasets of the trunk and all seeds of the two methods count. Gains are averaged over them before they are
    divided: a dataset without a gain of the reference has no ratio, and a small gain would drown the others.

    Limits are percentiles over bootstrap draws of datasets and, within each drawn dataset, of seeds; the same draws
    serve both methods. A draw in which the reference gains nothing has no share: it is −∞ for the lower limit and +∞
    for the upper one.

    Raises:
        ValueError: if there are no records of the trunk, if a run has not finished (names it), or if the reference
            gains nothing on average.
    """
    gains = _collect_gains(records, (trunk,), method, reference, shots)
    totals = resample_means(gains, draws, seed)[0]
    return Recovery(
        trunk=trunk,
        method=method,
        reference=reference,
        shots=shots,
        share=interval_of(_divide(totals)),
        gain=interval_of(totals[0]),
        reference_gain=interval_of(totals[1]),
        datasets=gains.shape[2],
        seeds=gains.shape[3],
    )


def difference_of_shares(
    records: Iterable[RunRecord],
    first: str,
    second: str,
    method: str,
    reference: str = "full",
    shots: Shots = 10,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Return the share of the ``first`` trunk less that of the ``second``; each draw is the same for both.

    Raises:
        ValueError: as for ``share_of_gain``, and if a run of one trunk has no counterpart on the other.
    """
    shares = _divide(resample_means(_collect_gains(records, (first, second), method, reference, shots), draws, seed))
    return interval_of(shares[0] - shares[1])


def format_recovery(recoveries: Sequence[Recovery], difference: Interval, note: str = "") -> str:
    """Return a Markdown table (shares in percent, gains in AP points) and the difference of the first two.

    Raises:
        ValueError: if there are fewer than two recoveries, or they differ in more than the trunk.
    """
    if len(recoveries) < 2:
        raise ValueError(f"The difference is between the first two trunks; got {len(recoveries)}.")
    method, reference, setting = _describe(recoveries)
    header = ["trunk", f"gain of {method}", f"gain of {reference}", f"share of {reference}'s gain"]
    rows = [
        [markdown(_label(one.trunk)), _format(one.gain), _format(one.reference_gain), _format(one.share, 0, " %")]
        for one in recoveries
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in (header, [":--", "--:", "--:", "--:"], *rows))
    first, second = (markdown(one.trunk) for one in recoveries[:2])
    text = (
        f"{table}\n\n"
        f"Share of {first} less that of {second}: {_format(difference, 0)} percentage points.\n\n"
        f"Gains over zero-shot in AP points, {setting}. In brackets 95 % bootstrap intervals, datasets and seeds "
        f"resampled. {note}"
    )
    return f"{text.rstrip()}\n"


@matplotlib.rc_context({"text.parse_math": False})  # names from elsewhere are no formulas
def draw_recovery(recoveries: Sequence[Recovery], note: str = "") -> Figure:
    """Return a figure: the gains of method and reference on the left, their share beside ``PUBLISHED`` on the right.

    Raises:
        ValueError: if there are no recoveries, or they differ in more than the trunk.
    """
    method, reference, setting = _describe(recoveries)
    height = 1.5 + max(0.85 * len(recoveries), 0.36 * (len(recoveries) + len(PUBLISHED) + 1))
    foot = (
        f"{setting[0].upper()}{setting[1:]}. Lines: 95 % bootstrap intervals, datasets and seeds resampled.",
        note,
        "Published: photos, larger models, 10 shots (GLIP, arXiv 2112.03857, Fig. 10), scored by the annotation ids of "
        "the files, where one box of a split is lost.",
    )
    title = f"Gain over zero-shot: {method} beside {reference}, and the share that {method} recovers"
    figure = build_figure(title, foot, (11.5, height))
    left, right = figure.subplots(1, 2)
    _draw_gains(left, recoveries)
    _draw_shares(right, recoveries)
    return figure


def _collect_gains(
    records: Iterable[RunRecord], trunks: Sequence[str], method: str, reference: str, shots: Shots
) -> NDArray[np.float64]:
    """Return AP less zero-shot AP, (M, 2, D, S): every dataset and seed of any of the trunks, for each of them."""
    records = sorted(records, key=lambda record: record.key.name)  # zero-shot may be there under two seeds
    ours = [record for record in records if record.key.trunk in trunks]
    for trunk in trunks:
        if trunk not in {record.key.trunk for record in ours}:
            there = ", ".join(sorted({record.key.trunk for record in records})) or "none"
            raise ValueError(f"There are no records of the trunk {trunk!r}; there are: {there}.")
    datasets = sorted({record.key.dataset_name for record in ours})
    compared = [record.key for record in ours if record.key.method in (method, reference)]
    seeds = sorted({key.seed for key in compared if key.shots == shots})
    if not seeds:
        raise ValueError(f"{', '.join(trunks)}: there is no run of {method} or {reference} at {shots} shots.")
    ap = {
        _run_name(record.key): record.metrics.ap for record in ours if record.metrics and record.metrics.ap is not None
    }
    grid = itertools.product(trunks, (method, reference, ZERO_SHOT), datasets, seeds)
    names = [_run_name(RunKey(trunk, dataset, name, shots, seed)) for trunk, name, dataset, seed in grid]
    if missing := [name for name in dict.fromkeys(names) if name not in ap]:
        raise ValueError(f"A share needs every dataset with every seed; not finished: {', '.join(missing)}.")
    table = np.array([ap[name] for name in names]).reshape(len(trunks), 3, len(datasets), len(seeds))
    gains = table[:, :2] - table[:, 2:]
    for trunk, gain in zip(trunks, gains[:, 1].mean(axis=(-2, -1)), strict=True):
        if gain <= 0:
            raise ValueError(
                f"{trunk}: {reference} gains nothing over zero-shot on average ({100 * gain:+.1f} AP points), so that "
                "a share of its gain makes no sense."
            )
    return gains


def _run_name(key: RunKey) -> str:
    """Return the name of a run; zero-shot has neither shots nor seed, whatever the key says."""
    return f"{key.trunk}--{key.dataset_name}--{ZERO_SHOT}" if key.method == ZERO_SHOT else key.name


def _divide(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return shares, (…, 2, 1 + R) → (…, 1 + R); NaN where the reference gains nothing."""
    gain, reference = totals[..., 0, :], totals[..., 1, :]
    return np.divide(gain, reference, out=np.full_like(gain, math.nan), where=reference > 0)


def _describe(recoveries: Sequence[Recovery]) -> tuple[str, str, str]:
    """Return method, reference, and the setting in words, after checking that the recoveries share all three."""
    settings = {(one.method, one.reference, one.shots, one.datasets, one.seeds) for one in recoveries}
    if len(settings) != 1:
        found = "; ".join(map(str, sorted(settings, key=str))) or "no recovery"
        raise ValueError(f"Expected one method, reference, shots, datasets and seeds for all trunks; got {found}.")
    method, reference, shots, datasets, seeds = settings.pop()
    amount = "all pictures" if shots == "all" else f"{shots} shots per class"
    setting = f"{amount}, mean over {datasets} datasets × {seeds} seeds"
    return method.replace("_", " "), reference.replace("_", " "), setting


def _label(trunk: str) -> str:
    """Return the name of a trunk, and whether it fuses where that is known."""
    if trunk not in TRUNKS:
        return trunk
    return f"{trunk}, {'fusion' if TRUNKS[trunk].config.deep_fusion else 'no fusion'}"


def _format(interval: Interval, decimals: int = 1, unit: str = "") -> str:
    """Return an interval times 100 as text."""
    value, low, high = (
        f"{100 * number:.{decimals}f}".replace("inf", "∞") for number in (interval.value, interval.low, interval.high)
    )
    return f"{value}{unit} ({low} to {high})"


def _draw_gains(axes: Axes, recoveries: Sequence[Recovery]) -> None:
    """Draw two bars per trunk, in AP points."""
    method, reference, _ = _describe(recoveries)
    rows = range(len(recoveries))
    for name, colour, shift, gains in (
        (method, _METHOD_COLOUR, -0.2, [one.gain for one in recoveries]),
        (reference, _REFERENCE_COLOUR, 0.2, [one.reference_gain for one in recoveries]),
    ):
        places = [row + shift for row in rows]
        axes.barh(places, [100 * gain.value for gain in gains], 0.36, color=colour, alpha=0.75, label=name)
        for place, gain in zip(places, gains, strict=True):
            axes.plot([100 * gain.low, 100 * gain.high], [place, place], "|-", color="black", lw=1.3, ms=8)
            _write(axes, place, f"{100 * gain.value:.1f}", colour)
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set_xlabel("gain over zero-shot (AP points)")
    axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False, fontsize=10)
    _finish(axes, rows, [_label(one.trunk) for one in recoveries])


def _draw_shares(axes: Axes, recoveries: Sequence[Recovery]) -> None:
    """Draw one disc per trunk with its interval, an arrow where it leaves the axis, and hollow ones as published."""
    _, reference, _ = _describe(recoveries)
    shares = [one.share for one in recoveries]
    values = [*(share.value for share in shares), *PUBLISHED.values()]
    left = min(0.0, *values, max(_WIDEST[0], min(share.low for share in shares)))
    right = max(1.05, *values, min(_WIDEST[1], max(share.high for share in shares)))
    colour = _METHOD_COLOUR
    for row, share in enumerate(shares):
        low, high = max(share.low, left), min(share.high, right)
        axes.plot([100 * low, 100 * high], [row, row], color=colour, lw=2)
        axes.plot(100 * low, row, "<" if share.low < left else "|", color=colour, ms=9)
        axes.plot(100 * high, row, ">" if share.high > right else "|", color=colour, ms=9)
        axes.plot(100 * share.value, row, "o", color=colour, ms=9, mec="white", zorder=3)
        _write(axes, row, f"{100 * share.value:.0f} %", colour)
    below = range(len(shares) + 1, len(shares) + 1 + len(PUBLISHED))
    for row, value in zip(below, PUBLISHED.values(), strict=True):
        axes.plot(100 * value, row, "D", mfc="white", mec=GREY, mew=1.6, ms=8)
        _write(axes, row, f"{100 * value:.0f} %", GREY)
    axes.axvline(100, color=_REFERENCE_COLOUR, lw=1.2, ls="--", zorder=0)
    words: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "bottom"}
    axes.annotate(f"{reference} = 100 %", (100, 1), (0, 6), ha="center", color=_REFERENCE_COLOUR, **words)
    axes.annotate("measured", (100 * left, 1), (0, 6), color=colour, **words)
    axes.text(100 * left, len(shares) + 0.15, "published, at 10 shots", color=GREY, va="center")
    axes.axhline(len(shares) - 0.4, color=GREY, lw=0.6)
    span = right - left
    axes.set_xlim(100 * (left - 0.04 * span), 100 * (right + 0.04 * span))
    axes.set_xlabel(f"share of the gain of {reference} (percent)")
    _finish(axes, [*range(len(shares)), *below], [*(_label(one.trunk) for one in recoveries), *PUBLISHED])


def _write(axes: Axes, row: float, text: str, colour: str) -> None:
    """Write the figure of a row beside the panel, where no line passes behind it."""
    style: dict[str, Any] = {"va": "center", "ha": "left", "color": colour, "fontweight": "bold"}
    axes.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), **style)


def _finish(axes: Axes, rows: Sequence[float], labels: Sequence[str]) -> None:
    """Name the rows, the first one on top, and keep only the lines that are read."""
    axes.set_yticks(rows, labels)
    axes.set_ylim(max(rows) + 0.55, min(rows) - 0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    main()
