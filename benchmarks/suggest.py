"""Does it pay to label the images that `glip-adapt suggest` asks for? AP over the number of labelled images.

    python benchmarks/suggest.py                 # resumable; one to four minutes a cell on one core
    python benchmarks/suggest.py --draw          # the figure and the table of what is there, without running anything

A cell is a synthetic set and a seed. Two random images of the training split are labelled, and a model is trained on
them. Then four more are labelled, and a model is trained from the start again, up to 18: those that the model of the
round before suggests, or four random ones. Both ways share the first two images, the recipe and its seed. Each model is
scored on the test split in its last state; no validation image is used.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from glip_adapt import FeatureCache, attach, evaluate, load_dataset, load_trunk
from glip_adapt.bench.report.plotting import COLOURS, GREY, build_figure, draw_points, finish_axes
from glip_adapt.bench.report.statistics import resample_means
from glip_adapt.core.files import written_whole
from glip_adapt.data.dataset import Dataset
from glip_adapt.data.split import ImageRecord
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.train import train_model
from glip_adapt.share.suggesting import count_boxes, suggest
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.released import default_recipe

HERE = Path(__file__).resolve().parent
SETS = ("Dice", "CardSuits", "Music", "Tools", "Faces")  # chosen before the first run
SEEDS = (3, 30, 300)
LABELLED = (2, 6, 10, 14, 18)
SETTINGS: dict[str, Any] = {"trunk": "glip-nano", "method": "prompt", "steps": 25, "labelled": list(LABELLED)}
WAYS = ("suggested", "random")
TAIL = 0.05  # on either side: intervals are 90 %


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=SETS, help="names of synthetic sets")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of suggest.jsonl and suggest.png"
    )
    parser.add_argument("--draw", action="store_true", help="only draw and print what is there")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    file = arguments.results / "suggest.jsonl"
    cells = read_cells(file)
    if not arguments.draw:
        trunk = load_trunk(SETTINGS["trunk"])
        done = {(cell["dataset"], cell["seed"]) for cell in cells}
        asked = [(name, seed) for seed in arguments.seeds for name in arguments.sets if (name, seed) not in done]
        for name, seed in track(asked, "cells"):
            cells.append(run_cell(trunk, load_dataset(f"glyphs13/{name}"), seed) | {"dataset": name, "seed": seed})
            with written_whole(file) as temporary:
                temporary.write_text("".join(json.dumps(cell) + "\n" for cell in cells), encoding="utf-8")
    draw(cells, arguments.results / "suggest.png")
    print(format_table(cells))


def read_cells(file: Path) -> list[dict[str, Any]]:
    """Return the finished cells; ValueError if they were run with other settings."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    cells = [json.loads(line) for line in lines]
    for cell in cells:
        if cell["settings"] != SETTINGS:
            raise ValueError(f"{file} holds cells of {cell['settings']}, not of {SETTINGS}. Name another folder.")
    return cells


def run_cell(trunk: Trunk, data: Dataset, seed: int) -> dict[str, Any]:
    """Return AP, labelled boxes and classes that have one, of each way over ``LABELLED``."""
    started, cache = time.perf_counter(), FeatureCache()
    order = list(data.train.with_boxes().records)
    random.Random(seed).shuffle(order)
    first = order[: LABELLED[0]]
    model = train(trunk, data, first, seed, cache)
    start = measure(model, data, first, cache)
    cell: dict[str, Any] = {"settings": SETTINGS}
    for way in WAYS:
        mine, current, rows = list(first), model, [start]
        for count in LABELLED[1:]:
            more, left = count - len(mine), [record for record in order if record not in mine]
            if way == "suggested":
                labelled = replace(data.train, records=tuple(mine))
                found = suggest(current, [r.path for r in left], more, labelled=[labelled], cache=cache)
                mine += [next(r for r in left if r.path == suggestion.path) for suggestion in found]
            else:
                mine += left[:more]
            current = train(trunk, data, mine, seed, cache)
            rows.append(measure(current, data, mine, cache))
        cell[way] = {name: [row[name] for row in rows] for name in rows[0]}
        cell[way]["images"] = [record.image_id for record in mine]
    zero_shot = evaluate(attach(trunk, "zero_shot", classes=data.classes), data.test, cache=cache).ap
    return cell | {"zero_shot": zero_shot, "seconds": round(time.perf_counter() - started, 1)}


def train(trunk: Trunk, data: Dataset, records: Sequence[ImageRecord], seed: int, cache: FeatureCache) -> AdaptedModel:
    """Return a model that has learned from some images of the training split."""
    model = attach(trunk, SETTINGS["method"], classes=data.classes)
    recipe = replace(default_recipe(trunk.name, SETTINGS["method"], 3), max_steps=SETTINGS["steps"], seed=seed)
    train_model(model, replace(data.train, records=tuple(records)), None, recipe, cache=cache)
    return model


def measure(model: AdaptedModel, data: Dataset, records: Sequence[ImageRecord], cache: FeatureCache) -> dict[str, Any]:
    """Return test AP, and what the labelled images hold."""
    boxes = count_boxes([replace(data.train, records=tuple(records))])
    return {"ap": evaluate(model, data.test, cache=cache).ap, "boxes": boxes.total(), "classes": len(boxes)}


def grid(cells: Sequence[dict[str, Any]], way: str, name: str = "ap") -> NDArray[np.float64]:
    """Return (N, D, S): a quantity over the labelled images, sets and seeds, of the sets that have all seeds."""
    by_key = {(cell["dataset"], cell["seed"]): cell for cell in cells}
    sets, seeds = complete(cells)
    values = [[by_key[one, seed][way][name] for seed in seeds] for one in sets]
    return np.array(values, dtype=np.float64).transpose(2, 0, 1)


def complete(cells: Sequence[dict[str, Any]]) -> tuple[list[str], list[int]]:
    """Return the sets that have all seeds, and the seeds."""
    seeds = sorted({cell["seed"] for cell in cells})
    names = [cell["dataset"] for cell in cells]
    return [name for name in dict.fromkeys(names) if names.count(name) == len(seeds)], seeds


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean of (D, S) and its 90 % bootstrap limits; sets and seeds within them are resampled."""
    means = resample_means(values)
    low, high = np.quantile(means[1:], (TAIL, 1 - TAIL))
    return float(means[0]), float(low), float(high)


def draw(cells: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw mean AP of both ways, and their difference with its interval and that of each set."""
    sets, seeds = complete(cells)
    if not sets:
        raise ValueError("No set has all of its seeds yet. Run the benchmark first.")
    suggested, chance = grid(cells, "suggested"), grid(cells, "random")
    foot = (
        f"glip-nano, prompt of {SETTINGS['steps']} steps in its last state; {', '.join(sets)}; {len(seeds)} seeds. "
        "Synthetic pictograms. Both ways share the first two images.",
        "Band: 90 % bootstrap interval, sets and seeds resampled. Thin lines: one set, mean over seeds.",
    )
    figure = build_figure("Labelling what is suggested, against labelling at random", foot, (10, 4.2))
    left, right = figure.subplots(1, 2)
    looks = {"suggested": (COLOURS[0], "s"), "random": (COLOURS[1], "o")}
    for way, values in (("suggested", suggested), ("random", chance)):
        colour, marker = looks[way]
        draw_points(left, LABELLED, 100 * values.mean((1, 2)), {"color": colour, "marker": marker}, ls="-", label=way)
    zero_shot = 100 * float(np.mean([cell["zero_shot"] for cell in cells if cell["dataset"] in sets]))
    left.axhline(zero_shot, color=GREY, lw=1, ls=":", label="zero-shot")
    left.legend(frameon=False, fontsize=10)
    finish_axes(left, "test AP in percent, mean over sets")
    gain = 100 * (suggested - chance)
    for position in range(len(sets)):
        right.plot(LABELLED, gain[:, position].mean(1), color=GREY, lw=0.8, alpha=0.6)
        end = (LABELLED[-1], gain[-1, position].mean())
        right.annotate(sets[position], end, (5, 0), textcoords="offset points", fontsize=8, color=GREY, va="center")
    middle, low, high = zip(*map(interval, gain), strict=True)
    right.fill_between(LABELLED, low, high, color=COLOURS[0], alpha=0.2, lw=0)
    draw_points(right, LABELLED, middle, {"color": COLOURS[0], "marker": "s"}, ls="-")
    right.axhline(0, color=GREY, lw=1)
    finish_axes(right, "suggested less random, AP points")
    for axes in (left, right):
        axes.set_xticks(LABELLED)
        axes.set_xlabel("labelled images")
    with written_whole(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def format_table(cells: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table over the number of labelled images."""
    lines = [
        "| labelled images | AP suggested | AP random | difference | boxes | classes with a box |",
        "| --: | --: | --: | --: | --: | --: |",
    ]
    suggested, chance = ({name: grid(cells, way, name) for name in ("ap", "boxes", "classes")} for way in WAYS)
    for row, count in enumerate(LABELLED):
        mean, low, high = interval(100 * (suggested["ap"][row] - chance["ap"][row]))
        scores = " | ".join(f"{100 * way['ap'][row].mean():.1f}" for way in (suggested, chance))
        holds = " | ".join(
            f"{suggested[name][row].mean():.1f} and {chance[name][row].mean():.1f}" for name in ("boxes", "classes")
        )
        lines.append(f"| {count} | {scores} | {mean:+.1f} ({low:+.1f} to {high:+.1f}) | {holds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
