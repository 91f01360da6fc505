"""Do the strong recipes win at every number of shots? Against training and selection in the published style.

    glip-adapt bench benchmarks/plans/glyphs13_strong.toml --out runs/glyphs13_strong
    python -m benchmarks.strong report runs/glyphs13_strong
    python -m benchmarks.strong ablate runs/glyphs13_strong_ablation          # --tell: tables of what is finished

``--restore`` fills a folder with the committed records first, so that the runs go on from them. ``ablate`` leaves out
one ingredient of ``full`` after the other, on the sets of the choices with seeds on which nothing else is reported, and
goes on where it was stopped. ``report`` takes what is finished: it writes results/glyphs13_strong.jsonl (one record a
line), .png (figure) and the tables between ``<!-- strong -->`` and ``<!-- /strong -->`` in README.md; ``ablate`` writes
results/glyphs13_strong_ablation.jsonl and the table of ``<!-- strong ablation -->``.

The published style is the committed records of ``full`` in glyphs13.jsonl: the same images to learn from, the same
images to select on. Intervals are of differences cell by cell, with sets and seeds resampled.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.without_val import restore
from glip_adapt import read_plan, run_benchmark
from glip_adapt.bench.plan import ZERO_SHOT, BenchPlan
from glip_adapt.bench.records import RunRecord, read_records, to_json
from glip_adapt.bench.report.plotting import GREY, build_figure, finish_axes, styles_of
from glip_adapt.bench.report.statistics import Interval, interval_of, resample_means
from glip_adapt.bench.report.write import save_figure

HERE = Path(__file__).resolve().parent
NAME = "glyphs13_strong"
PLAN = HERE / "plans" / f"{NAME}.toml"
ABLATION = HERE / "results" / f"{NAME}_ablation.jsonl"
DEVELOPED_ON = ("Arrows", "ChessHollow", "Dice", "Music", "Tools", "Transport")
METHODS = ("full", "lora")
ABLATION_SEEDS = (7, 70)
LEFT_OUT: Mapping[str, Mapping[str, Any]] = {  # what is left out → changes to what the strong recipe was to be
    "nothing": {},
    "parts of the way back": {"factors": []},
    "compositions": {"compositions": None},
    "pasted objects": {"compositions": {"paste": 0.0}},
    "parts of images": {"compositions": {"crop": 0.0}},
    "colours": {"compositions": {"colour": 0.0}},
    "half of the steps": {"max_steps": 160, "validate_every": 80},
    "blends": {"compositions": {"blend": 0.3}},
}
ADDED = ("blends",)
"""What this changes is not left out but added."""
COLOURS = {"colour": 1.0}
"""What it was to have, and does not: without colours it did no worse."""

Cell = tuple[str, int, int]
"""Dataset without its suite, shots, seed."""
Scores = Mapping[Cell, float]
"""Test AP in points."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("report", "ablate"):
        command = commands.add_parser(name)
        command.add_argument("runs", type=Path, help="results folder")
        command.add_argument("--restore", action="store_true", help="fill the folder with the committed records")
    command.add_argument("--workers", type=int, default=1)
    command.add_argument("--tell", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if arguments.command == "report":
        if arguments.restore:
            restore(HERE / "results" / f"{NAME}.jsonl", arguments.runs)
        report(arguments.runs)
        return
    if arguments.restore:
        for name in LEFT_OUT:
            restore(ABLATION, folder_of(arguments.runs, name), left_out=name)
    if not arguments.tell:
        ablate(arguments.runs, arguments.workers)
    tell_ablation(arguments.runs)


def ablate(runs: Path, workers: int) -> None:
    """Do the runs of each ablation that are not there yet."""
    plan = read_plan(PLAN)
    variants = {name: without(plan, changes) for name, changes in LEFT_OUT.items()}
    with Progress() as progress:
        task = progress.add_task("ablations", total=sum(len(variant.keys()) for variant in variants.values()))
        for name, variant in variants.items():
            run_benchmark(
                variant,
                folder_of(runs, name),
                workers=workers,
                on_finish=lambda _: progress.advance(task),
            )


def tell_ablation(runs: Path) -> None:
    """Write records and table of what is finished."""
    found = {name: [r for r in read_records(folder_of(runs, name)) if r.status == "done"] for name in LEFT_OUT}
    lines = [
        json.dumps({"left_out": name, **to_json(record)}, ensure_ascii=False) + "\n"
        for name, records in found.items()
        for record in sorted(records, key=lambda record: record.key.name)
    ]
    ABLATION.write_text("".join(lines), encoding="utf-8")
    put("strong ablation", ablation_table({name: scores_of(records, "full") for name, records in found.items()}))


def folder_of(runs: Path, name: str) -> Path:
    """Return the results folder of an ablation."""
    return runs / name.replace(" ", "_").replace(",", "")


def without(plan: BenchPlan, changes: Mapping[str, Any]) -> BenchPlan:
    """Return the plan of an ablation: ``full``, five shots, the sets of the choices."""
    datasets = tuple(f"glyphs13/{name}" for name in DEVELOPED_ON)
    made = changes.get("compositions", {})
    fit = {**changes, "compositions": None if made is None else {**COLOURS, **made}}
    return replace(plan, datasets=datasets, methods=("full",), shots=(5,), seeds=ABLATION_SEEDS, fit=fit)


def ablation_table(found: Mapping[str, Scores]) -> str:
    """Return AP with and without each ingredient, on the same cells, as Markdown."""
    whole = found["nothing"]
    lines = ["| ingredient | cells | AP with it | without it | it gives |", "|---|---|---|---|---|"]
    for name, scores in found.items():
        if name != "nothing" and (cells := sorted(whole.keys() & scores.keys())):
            one, other = (scores, whole) if name in ADDED else (whole, scores)
            row = f"{mean(one, cells):.1f} | {mean(other, cells):.1f} | {shown(difference(one, other, cells))}"
            lines.append(f"| {name} | {len(cells)} | {row} |")
    return "\n".join(lines) + "\n"


def report(runs: Path) -> None:
    """Write records, figure and tables of what is finished."""
    records = [record for record in read_records(runs) if record.status == "done"]
    strong = {method: scores_of(records, method) for method in METHODS}
    committed = read_lines(HERE / "results" / "glyphs13.jsonl")
    zero = {cell[0]: ap for cell, ap in scores_of(committed, ZERO_SHOT).items()}
    published = {method: scores_of(committed, method) for method in METHODS}
    trained = {r.key.method: r.cost.trained_parameters for r in records if r.cost}
    tables = format_tables(strong, published, zero, trained)
    lines = [json.dumps(to_json(r), ensure_ascii=False) + "\n" for r in sorted(records, key=lambda r: r.key.name)]
    (HERE / "results" / f"{NAME}.jsonl").write_text("".join(lines), encoding="utf-8")
    draw(strong, published, zero, HERE / "results" / NAME)
    put("strong", tables)


def put(place: str, table: str) -> None:
    """Print a table, and put it between the two marks of a place in README.md."""
    print(table)
    readme, begin, end = HERE / "README.md", f"<!-- {place} -->", f"<!-- /{place} -->"
    before, begun, rest = readme.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise SystemExit(f"{readme} has no place for the tables. Add the lines '{begin}' and '{end}' to it.")
    readme.write_text(f"{before}{begin}\n\n{table}\n{end}{after}", encoding="utf-8")


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def scores_of(records: Iterable[RunRecord | dict[str, Any]], method: str) -> dict[Cell, float]:
    """Return test AP of the finished runs of a method by cell."""
    contents = [to_json(record) if isinstance(record, RunRecord) else record for record in records]
    return {
        (content["key"]["dataset"].rpartition("/")[2], content["key"]["shots"], content["key"]["seed"]): 100
        * content["metrics"]["ap"]
        for content in contents
        if content["key"]["method"] == method and content["status"] == "done"
    }


def mean(scores: Scores, cells: Sequence[Cell]) -> float:
    """Return the mean over sets, of means over seeds."""
    return float(by_set([scores[cell] for cell in cells], cells).mean())


def difference(one: Scores, other: Scores, cells: Sequence[Cell]) -> Interval:
    """Return the mean of differences over cells, with sets and seeds resampled; sets that lack a seed repeat others."""
    return interval_of(resample_means(by_set([one[cell] - other[cell] for cell in cells], cells)))


def by_set(values: Sequence[float], cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Return values of cells as (sets, seeds)."""
    rows: dict[str, list[float]] = {}
    for (name, *_), value in zip(cells, values, strict=True):
        rows.setdefault(name, []).append(value)
    most = max(map(len, rows.values()))
    return np.array([(row * most)[:most] for row in rows.values()])


def shown(interval: Interval) -> str:
    return f"{interval.value:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"


def format_tables(
    strong: Mapping[str, Scores],
    published: Mapping[str, Scores],
    zero: Mapping[str, float],
    trained: Mapping[str, int],
) -> str:
    """Return the tables as Markdown: gains over published style, shares of its gain, sets that fall."""
    lines = []
    groups = {
        "all": tuple(zero),
        "six sets of the choices": DEVELOPED_ON,
        "seven others": tuple(name for name in zero if name not in DEVELOPED_ON),
    }
    lines += ["| shots | sets | cells | zero-shot | published full | strong full | strong − published |"]
    lines += ["|---" * 7 + "|"]
    shots = shots_of(strong)
    for count, (title, names) in product(shots, groups.items()):
        cells = cells_of(strong["full"], published["full"], count, names)
        if cells:
            base = mean({cell: zero[cell[0]] for cell in cells}, cells)
            row = f"{mean(published['full'], cells):.1f} | {mean(strong['full'], cells):.1f}"
            gain = shown(difference(strong["full"], published["full"], cells))
            lines.append(f"| {count} | {title} | {len(cells)} | {base:.1f} | {row} | {gain} |")
    lines += ["", f"Strong LoRA trains {trained.get('lora', 0):,} numbers, full {trained.get('full', 0):,}.", ""]
    lines += [
        "| shots | sets | cells | published LoRA | strong LoRA | share of published full's gain, before and now |"
    ]
    lines += ["|---" * 6 + "|"]
    for count, (title, names) in product(shots, groups.items()):
        cells = cells_of(strong["lora"], published["full"], count, names)
        if cells:
            base = mean({cell: zero[cell[0]] for cell in cells}, cells)
            before, now, full = (
                mean(scores, cells) - base for scores in (published["lora"], strong["lora"], published["full"])
            )
            shares = f"{100 * before / full:.0f} %, {100 * now / full:.0f} %"
            row = f"{mean(published['lora'], cells):.1f} | {mean(strong['lora'], cells):.1f}"
            lines.append(f"| {count} | {title} | {len(cells)} | {row} | {shares} |")
    lines += ["", "AP over zero-shot, mean over seeds: the two sets that gain least.", ""]
    lines += ["| shots | method | sets |", "|---|---|---|"]
    for count in shots:
        for method in METHODS:
            worst = sorted(gains(strong[method], zero, count).items(), key=lambda item: item[1])[:2]
            if worst:
                lines.append(f"| {count} | {method} | {', '.join(f'{name} {gain:+.1f}' for name, gain in worst)} |")
    return "\n".join(lines) + "\n"


def shots_of(strong: Mapping[str, Scores]) -> list[int]:
    return sorted({cell[1] for scores in strong.values() for cell in scores})


def cells_of(one: Scores, other: Scores, shots: int, names: Sequence[str]) -> list[Cell]:
    """Return the cells of both that have so many shots, of some sets."""
    return sorted(cell for cell in one.keys() & other.keys() if cell[1] == shots and cell[0] in names)


def covers(cells: Sequence[Cell], names: Iterable[str]) -> bool:
    """Return whether there are cells of all sets; a line over means of some would compare sets, not shots."""
    return {name for name, *_ in cells} == set(names)


def gains(scores: Scores, zero: Mapping[str, float], shots: int) -> dict[str, float]:
    """Return AP over zero-shot by set, mean over seeds."""
    found: dict[str, list[float]] = {}
    for (name, count, _), ap in scores.items():
        if count == shots:
            found.setdefault(name, []).append(ap - zero[name])
    return {name: float(np.mean(values)) for name, values in found.items()}


def draw(strong: Mapping[str, Scores], published: Mapping[str, Scores], zero: Mapping[str, float], path: Path) -> None:
    """Write the figure: mean AP over shots, and the gain over published full of each set."""
    shots = shots_of(strong)
    both = {count: cells_of(strong["full"], published["full"], count, tuple(zero)) for count in shots}
    figure = build_figure(
        "Strong recipes against the published style",
        [
            f"glip-nano on glyphs13, {sum(map(len, both.values()))} cells of full. Solid: strong recipe. Dotted, "
            "hollow: published style. Bars: strong full less published full, mean over seeds; dark: sets without a "
            "part in the choices."
        ],
        (10, 4.4),
    )
    left, right = figure.subplots(1, 2)
    styles = styles_of(METHODS)
    for method in METHODS:
        for scores, line in ((strong[method], "-"), (published[method], ":")):
            known = [
                (place, mean(scores, cells))
                for place, count in enumerate(shots)
                if covers(cells := cells_of(scores, strong[method], count, tuple(zero)), zero)
            ]
            label = method if line == "-" else None
            look = {**styles[method], "ls": line, "mfc": styles[method]["color"] if line == "-" else "white"}
            left.plot([x for x, _ in known], [y for _, y in known], label=label, lw=1.8, **look)
    left.axhline(float(np.mean(list(zero.values()))), color=GREY, ls="--", lw=1, label="zero-shot")
    left.set_xticks(range(len(shots)), [str(count) for count in shots])
    left.set_xlabel("labelled images per class")
    left.legend(fontsize=9, frameon=False)
    finish_axes(left, f"Test AP, mean over {len(zero)} sets")
    names = sorted({cell[0] for cells in both.values() for cell in cells})
    for place, count in enumerate(shots):
        by_name: dict[str, list[float]] = {}
        for cell in both[count]:
            by_name.setdefault(cell[0], []).append(strong["full"][cell] - published["full"][cell])
        for name, values in by_name.items():
            colour = "#9ecae1" if name in DEVELOPED_ON else "#2171b5"
            right.bar(names.index(name) + (place - 1) * 0.27, np.mean(values), 0.25, color=colour)
    right.axhline(0, color=GREY, lw=0.8)
    right.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    drawn = ", ".join(str(count) for count in shots if both[count])
    finish_axes(right, f"Gain in AP at {drawn} shots, from left to right")
    save_figure(figure, path)


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
