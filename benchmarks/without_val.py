"""Few labelled images and no validation images: what cross-validation gives, and how far its estimate is off.

    glip-adapt bench benchmarks/plans/glyphs13_without_val.toml --out runs/glyphs13_without_val
    python benchmarks/without_val.py runs/glyphs13_without_val

``--restore`` puts the committed records into the folder first, so that the plan goes on from them. The second command
writes results/glyphs13_without_val.jsonl (one record a line), .png (figure), and the tables between
``<!-- without_val -->`` and ``<!-- /without_val -->`` in README.md. Beside the runs of the plan stand the committed
records of glyphs13.jsonl, which select a state on all of val.

``auto`` is what ``adapt --method auto`` would take in each cell (``share.trials.choose``), as every method of a cell
learns from the same images with the same folds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from glip_adapt.bench.plan import ZERO_SHOT, RunKey
from glip_adapt.bench.records import RECORD_FILE, RunRecord, read_records, to_json
from glip_adapt.bench.report.plotting import GREY, build_figure, finish_axes, styles_of
from glip_adapt.bench.report.statistics import interval_of, resample_means
from glip_adapt.bench.report.write import save_figure
from glip_adapt.data.dataset import load_dataset
from glip_adapt.share.trials import METHODS, choose

HERE = Path(__file__).resolve().parent
NAME = "glyphs13_without_val"
AUTO = "auto"
BEGIN, END = "<!-- without_val -->", "<!-- /without_val -->"

Cell = tuple[str, int, int]
"""Dataset, shots, seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="results folder of the plan")
    parser.add_argument("--restore", action="store_true", help="fill the folder with the committed records, no more")
    parser.add_argument("--published", type=Path, default=HERE / "results" / "glyphs13.jsonl")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    if arguments.restore:
        restore(arguments.results / f"{NAME}.jsonl", arguments.runs)
        return
    records = [record for record in read_records(arguments.runs) if record.status == "done"]
    runs = {method: cells_of(records, method) for method in METHODS}
    complete = sorted(set.intersection(*(set(cells) for cells in runs.values())))
    if not complete:
        raise SystemExit(f"{arguments.runs} has no cell yet that all of {', '.join(METHODS)} have finished.")
    runs = {method: {cell: cells[cell] for cell in complete} for method, cells in runs.items()}
    runs[AUTO] = {cell: chosen_of(cell, [runs[method][cell] for method in METHODS]) for cell in complete}
    zero = {record.key.dataset: ap_of(record) for record in records if record.key.method == ZERO_SHOT}
    selected = published_of(arguments.published, complete)
    tables = format_tables(runs, zero, selected)
    print(tables)
    lines = [json.dumps(to_json(record), ensure_ascii=False) + "\n" for record in sorted(records, key=str)]
    (arguments.results / f"{NAME}.jsonl").write_text("".join(lines), encoding="utf-8")
    draw(runs, zero, selected, arguments.results / NAME)
    before, begun, rest = arguments.readme.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise SystemExit(f"{arguments.readme} has no place for the tables. Add the lines '{BEGIN}' and '{END}' to it.")
    arguments.readme.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", encoding="utf-8")


def restore(file: Path, runs: Path, **marks: str) -> None:
    """Write the record of each line of ``file`` into its folder below ``runs``, unless it is there.

    Of lines that hold more than a record, those with these ``marks`` are taken.
    """
    for line in file.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        if {name: content.pop(name) for name in marks} != marks:
            continue
        folder = runs / RunKey(**content["key"]).name
        if not (folder / RECORD_FILE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RECORD_FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def cells_of(records: Iterable[RunRecord], method: str) -> dict[Cell, RunRecord]:
    """Return the runs of a method by cell."""
    return {(r.key.dataset, int(r.key.shots), r.key.seed): r for r in records if r.key.method == method}


def chosen_of(cell: Cell, runs: Sequence[RunRecord]) -> RunRecord:
    """Return the run of the method that ``auto`` would take."""
    dataset, shots, seed = cell
    choices = [run.cross_validated for run in runs]
    promises = [(choice.expected_ap, choice.factor > 0) for choice in choices if choice is not None]
    return runs[choose(promises, len(load_dataset(dataset).train.few_shot(shots, seed)))]


def published_of(file: Path, cells: Sequence[Cell]) -> dict[str, dict[Cell, float]]:
    """Return test AP of the committed records, which select on val, by method and cell."""
    entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found: dict[str, dict[Cell, float]] = {method: {} for method in METHODS}
    for entry in entries:
        key = entry["key"]
        cell = (key["dataset"], key["shots"], key["seed"])
        if key["method"] in found and cell in cells:
            found[key["method"]][cell] = entry["metrics"]["ap"]
    return found


def format_tables(
    runs: Mapping[str, Mapping[Cell, RunRecord]],
    zero: Mapping[str, float],
    selected: Mapping[str, Mapping[Cell, float]],
) -> str:
    """Return the tables as Markdown: AP, the sets that fall, the estimate against the test score."""
    cells = list(runs[AUTO])
    shots, sets = sorted({cell[1] for cell in cells}), sorted({cell[0] for cell in cells})
    lines = [
        f"{len(cells)} cells: {len(sets)} sets, seeds {', '.join(map(str, sorted({cell[2] for cell in cells})))}. "
        f"Mean test AP; zero-shot {mean([zero[name] for name in sets]):.1f}.",
        "",
        "| shots | "
        + " | ".join((*(f"{m}, no val" for m in METHODS), AUTO, *(f"{m}, all of val" for m in METHODS)))
        + " |",
        "|---" * (2 + 2 * len(METHODS)) + "|",
    ]
    for count in shots:
        here = [cell for cell in cells if cell[1] == count]
        row = [mean_ap(runs[method], here) for method in (*METHODS, AUTO)]
        row += [mean([selected[method][cell] for cell in here if cell in selected[method]]) for method in METHODS]
        lines.append(f"| {count} | " + " | ".join(f"{value:.1f}" for value in row) + " |")
    lines += ["", "AP over zero-shot, mean over seeds: the sets that fall most.", ""]
    lines += ["| shots | method | mean gain | worst sets |", "|---|---|---|---|"]
    for count in shots:
        for method in (*METHODS, AUTO):
            gains = gains_of(runs[method], zero, count)
            worst = sorted(gains.items(), key=lambda item: item[1])[:2]
            named = ", ".join(f"{name.rpartition('/')[2]} {gain:+.1f}" for name, gain in worst)
            lines.append(f"| {count} | {method} | {np.mean(list(gains.values())):+.1f} | {named} |")
    lines += [
        "",
        "The estimate of cross-validation less test AP, in points: mean, and standard deviation over cells.",
        "",
    ]
    lines += [f"| shots | {' | '.join((*METHODS, AUTO))} | zero-shot |", "|---" * (3 + len(METHODS)) + "|"]
    for count in shots:
        errors = [estimate_errors(runs[method], count) for method in (*METHODS, AUTO)]
        errors.append(start_errors(runs["prompt"], zero, count))
        lines.append(
            f"| {count} | " + " | ".join(f"{np.mean(e):+.1f} ± {np.std(e):.1f}" if e else "–" for e in errors) + " |"
        )
    return "\n".join(lines) + "\n"


def ap_of(record: RunRecord) -> float:
    assert record.metrics is not None
    assert record.metrics.ap is not None
    return record.metrics.ap


def expected_of(record: RunRecord) -> float | None:
    assert record.cross_validated is not None
    return record.cross_validated.expected_ap


def mean(aps: Sequence[float]) -> float:
    return float(100 * np.mean(aps))


def mean_ap(runs: Mapping[Cell, RunRecord], cells: Sequence[Cell]) -> float:
    return mean([ap_of(runs[cell]) for cell in cells])


def gains_of(runs: Mapping[Cell, RunRecord], zero: Mapping[str, float], shots: int) -> dict[str, float]:
    """Return AP over zero-shot in points by dataset, mean over seeds."""
    gains: dict[str, list[float]] = {}
    for (dataset, count, _), run in runs.items():
        if count == shots:
            gains.setdefault(dataset, []).append(100 * (ap_of(run) - zero[dataset]))
    return {dataset: float(np.mean(values)) for dataset, values in gains.items()}


def estimate_errors(runs: Mapping[Cell, RunRecord], shots: int) -> list[float]:
    pairs = [(expected_of(run), ap_of(run)) for cell, run in runs.items() if cell[1] == shots]
    return [100 * (expected - ap) for expected, ap in pairs if expected is not None]


def start_errors(runs: Mapping[Cell, RunRecord], zero: Mapping[str, float], shots: int) -> list[float]:
    """Return zero-shot AP on the labelled images less that on test: what few images alone do to AP."""
    starts = [(run.cross_validated, zero[cell[0]]) for cell, run in runs.items() if cell[1] == shots]
    return [100 * (c.start_ap - ap) for c, ap in starts if c is not None and c.start_ap is not None]


def draw(
    runs: Mapping[str, Mapping[Cell, RunRecord]],
    zero: Mapping[str, float],
    selected: Mapping[str, Mapping[Cell, float]],
    path: Path,
) -> None:
    """Write the figure: mean AP over shots with and without validation images, and estimate against test."""
    cells = list(runs[AUTO])
    shots = sorted({cell[1] for cell in cells})
    sets = sorted({cell[0] for cell in cells})
    figure = build_figure(
        "Few labelled images, no validation images",
        [
            f"{len(sets)} sets of glyphs13, {len(cells)} cells, glip-nano. Solid: cross-validation over the training "
            "images. Dotted: the same methods, selected on all 40 images of val. Band: 95 % over sets and seeds, for "
            "auto."
        ],
        (10, 4.4),
    )
    left, right = figure.subplots(1, 2)
    styles = styles_of(METHODS) | {AUTO: {"color": "black", "marker": "*"}}
    for method in (*METHODS, AUTO):
        means = [mean_ap(runs[method], [cell for cell in cells if cell[1] == count]) for count in shots]
        left.plot(range(len(shots)), means, label=method, lw=2.4 if method == AUTO else 1.4, **styles[method])
        if method != AUTO:
            known = [[selected[method].get(cell) for cell in cells if cell[1] == count] for count in shots]
            dotted = [100 * np.mean([ap for ap in aps if ap is not None]) for aps in known]
            left.plot(range(len(shots)), dotted, ls=":", color=styles[method]["color"], lw=1.2)
    bands = [auto_band(runs[AUTO], sets, count) for count in shots]
    left.fill_between(range(len(shots)), [b[0] for b in bands], [b[1] for b in bands], color="black", alpha=0.08, lw=0)
    left.axhline(100 * np.mean([zero[name] for name in sets]), color=GREY, ls="--", lw=1, label="zero-shot")
    left.set_xticks(range(len(shots)), [str(count) for count in shots])
    left.set_xlabel("labelled images per class")
    left.legend(fontsize=9, frameon=False)
    finish_axes(left, "Test AP, mean over sets")
    for method in METHODS:
        pairs = [(expected_of(run), ap_of(run)) for run in runs[method].values()]
        points = np.array([(expected, ap) for expected, ap in pairs if expected is not None]) * 100
        right.plot(*points.T, ls="", ms=4, alpha=0.7, label=method, **styles[method])
    right.plot([0, 100], [0, 100], color=GREY, lw=0.8)
    right.set_xlabel("AP that cross-validation promises")
    right.set_xlim(0, 100)
    right.set_ylim(0, 100)
    finish_axes(right, "Test AP of each run")
    save_figure(figure, path)


def auto_band(runs: Mapping[Cell, RunRecord], sets: Sequence[str], shots: int) -> tuple[float, float]:
    """Return a 95 % interval of the mean over sets and seeds; a set with fewer seeds than others repeats them."""
    rows = [[ap_of(run) for cell, run in runs.items() if cell[:2] == (name, shots)] for name in sets]
    most = max(map(len, rows))
    table = np.array([(row * most)[:most] for row in rows if row])
    found = interval_of(100 * resample_means(table))
    return found.low, found.high


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
