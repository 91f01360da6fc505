"""What does a trunk forget while it learns? AP on a dataset and on others, along the way from the trunk to the adapter.

    glip-adapt bench benchmarks/plans/glyphs13_strong.toml --out runs/glyphs13_strong
    python -m benchmarks.forgetting run runs/glyphs13_strong --out runs/forgetting
    python -m benchmarks.forgetting report --out runs/forgetting

``run`` takes the finished adapters of one number of shots and one seed. It moves each to several parts of the way and
scores it on the dataset that it learned and, with their class names, on those sets that the trunk knows best: of the
others there is little to forget. A finished adapter is kept; a killed run goes on. A minute of one core each.
``report`` writes results/forgetting.json and .png, and the table between ``<!-- forgetting -->`` and
``<!-- /forgetting -->`` in README.md. A part that is read off this figure is chosen on test images; the recipe chooses
on others, and the table says what that costs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import torch
from rich.progress import track

from benchmarks.strong import put
from glip_adapt import FeatureCache, attach, evaluate, load_adapter, load_dataset, load_trunk
from glip_adapt.bench.records import RunRecord, read_records
from glip_adapt.bench.report.plotting import GREY, build_figure, finish_axes, styles_of
from glip_adapt.bench.report.write import save_figure
from glip_adapt.core.files import written_whole
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.trunks.catalogue import Trunk

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
"""Of the way from the trunk to the trained state."""
KNOWN = ("Transport", "Tools", "ChessHollow")
"""The sets with the highest zero-shot AP of glip-nano."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("runs", type=Path, help="results folder of a plan, with its adapters")
    run.add_argument("--shots", type=int, default=5)
    run.add_argument("--seed", type=int, default=3)
    report_only = commands.add_parser("report")
    for command in (run, report_only):
        command.add_argument("--out", type=Path, required=True, help="folder of what is measured")
    arguments = parser.parse_args()
    if arguments.command == "run":
        measure_all(arguments.runs, arguments.shots, arguments.seed, arguments.out)
    else:
        report(arguments.out)


def measure_all(runs: Path, shots: int, seed: int, out: Path) -> None:
    """Measure the adapters that are not measured yet, one file each."""
    torch.set_num_threads(1)
    records = [r for r in read_records(runs) if r.status == "done" and (r.key.shots, r.key.seed) == (shots, seed)]
    trunks: dict[str, Trunk] = {}
    for record in track(records, "adapters"):
        file = out / f"{record.key.name}.json"
        if file.exists():
            continue
        if record.key.trunk not in trunks:
            trunks[record.key.trunk] = load_trunk(record.key.trunk, device="cpu")
        found = measure(trunks[record.key.trunk], runs / record.key.name, record)
        out.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")


def measure(trunk: Trunk, folder: Path, record: RunRecord) -> dict[str, Any]:
    """Return test AP in points of one adapter at each part of the way, on its own dataset and on others."""
    model = load_adapter(folder / "adapter", trunk=trunk)
    fresh = attach(trunk, model.adapter, classes=model.prompts).copy_owned()
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    best = [v for v in history["validations"] if v["is_best"]][-1]
    if best.get("module"):
        raise SystemExit(f"{record.key.name} has moved {best['module']} alone; expected one part of the way for all.")
    saved = best["factor"] if best["step"] else 0.0
    if saved not in PARTS:
        raise SystemExit(f"{record.key.name} stands at {saved} of the way; expected one of {PARTS}.")
    end, own = model.copy_owned(), record.key.dataset
    names = [own, *(f"glyphs13/{name}" for name in KNOWN if not own.endswith(f"/{name}"))]
    ap: dict[str, list[float]] = {name: [] for name in names}
    for part in PARTS:
        # What is saved is at a part of the way itself. An adapter that chose the trunk has no way to go.
        model.load_owned(model.adapter.between(fresh, end, part / saved) if saved else fresh)
        for name in names:
            ap[name].append(score(model, name, record))
    key = record.key
    return {"method": key.method, "dataset": own, "shots": key.shots, "seed": key.seed, "saved": saved, "ap": ap}


def score(model: AdaptedModel, name: str, record: RunRecord) -> float:
    """Return test AP in points of the tensors of a model on a dataset."""
    data = load_dataset(name)
    other = model if name == record.key.dataset else model.for_classes(data.classes)
    return 100 * (evaluate(other, data.test, cache=FeatureCache()).ap or 0.0)


def report(out: Path) -> None:
    """Write numbers, figure and table of what is measured."""
    measured = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))]
    if len(drawn := {(one["shots"], one["seed"]) for one in measured}) != 1:
        raise SystemExit(f"{out} has adapters of {sorted(drawn)}; expected those of one number of shots and one seed.")
    with written_whole(RESULTS / "forgetting.json") as temporary:
        temporary.write_text("[\n" + ",\n".join(map(json.dumps, measured)) + "\n]\n", encoding="utf-8")
    curves = {method: curves_of(measured, method) for method in dict.fromkeys(one["method"] for one in measured)}
    put("forgetting", format_table(measured, curves))
    draw(curves, measured, RESULTS / "forgetting")


def curves_of(measured: Sequence[Mapping[str, Any]], method: str) -> dict[str, list[float]]:
    """Return the mean AP at each part, on what was learned (``own``) and on the other sets (``others``)."""
    mine = [one for one in measured if one["method"] == method]
    own = [one["ap"][one["dataset"]] for one in mine]
    others = [curve for one in mine for name, curve in one["ap"].items() if name != one["dataset"]]
    return {
        "own": [fmean(column) for column in zip(*own, strict=True)],
        "others": [fmean(column) for column in zip(*others, strict=True)],
    }


def at(one: Mapping[str, Any], curve: Sequence[float]) -> float:
    """Return the AP of the part that validation images chose."""
    return curve[PARTS.index(one["saved"])]


def format_table(measured: Sequence[Mapping[str, Any]], curves: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return a Markdown table: AP on what was learned and on others, with the trunk, the chosen part and the end."""
    lines = [
        "| method | adapters | learned set: trunk, chosen part, end | others: trunk, chosen part, end |",
        "| :-- | --: | --: | --: |",
    ]
    for method, curve in curves.items():
        mine = [one for one in measured if one["method"] == method]
        own = fmean(at(one, one["ap"][one["dataset"]]) for one in mine)
        kept = fmean(at(one, ap) for one in mine for name, ap in one["ap"].items() if name != one["dataset"])
        cells = (
            f"{curve[name][0]:.1f}, {chosen:.1f}, {curve[name][-1]:.1f}"
            for name, chosen in (("own", own), ("others", kept))
        )
        lines.append(f"| {method} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(
    curves: Mapping[str, Mapping[str, Sequence[float]]], measured: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Write the figure: both curves of each method over the part of the way."""
    figure = build_figure(
        "What is learned, and what is forgotten",
        [
            f"glip-nano on glyphs13, {measured[0]['shots']} shots, {len(measured)} adapters, test images. 0: the "
            f"trunk; 1: the trained state, before its way back. Others: {', '.join(KNOWN)}, by their class names."
        ],
        (10, 4.2),
    )
    styles = styles_of(tuple(curves))
    titles = {"own": "AP on the set that was learned", "others": "AP on other sets"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for method, curve in curves.items():
            axes.plot(PARTS, curve[name], label=method, lw=1.8, **styles[method])
        axes.axhline(next(iter(curves.values()))[name][0], color=GREY, ls="--", lw=1, label="zero-shot")
        axes.set_xlabel("part of the way from the trunk to the trained state")
        finish_axes(axes, title)
    axes.legend(fontsize=9, frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
