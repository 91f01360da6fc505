"""Does self-training help? Five labelled images per class and forty without labels, on the synthetic sets.

    python benchmarks/self_training.py --out runs/self_training run
    python benchmarks/self_training.py --out runs/self_training report

For each set and seed: a few-shot training chosen by cross-validation, and the same with labels of its own on 40 images
of the training part that were not drawn, ``self_train``. Nothing is chosen on validation or test images. Finished cells
are kept; a killed run goes on. One thread; about four minutes a cell.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.progress import track
from scipy.stats import t as student_t

from glip_adapt import FeatureCache, attach, evaluate, load_dataset, load_trunk
from glip_adapt.core.files import written_whole
from glip_adapt.data.formats.coco import coco_ground_truth
from glip_adapt.data.glyphs13 import glyph_sets
from glip_adapt.data.split import Split
from glip_adapt.engine.metrics.matching import match
from glip_adapt.engine.pseudo_labels import label_images, together
from glip_adapt.engine.selection import START, bounded, cautious_of, cross_validate, make, train_candidate
from glip_adapt.engine.self_training import self_train
from glip_adapt.engine.train import count_steps
from glip_adapt.trunks.released import default_recipe

SHOTS, UNLABELLED = 5, 40
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/self_training"))
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--method", default="full")
    run.add_argument("--seeds", type=int, nargs="+", default=[3, 30])
    run.add_argument("--trunk", default="glip-nano")
    commands.add_parser("report")
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.out)
        return
    torch.set_num_threads(1)
    cells = [(seed, spec.name) for seed in arguments.seeds for spec in glyph_sets()]
    for seed, name in track(cells, "sets and seeds"):
        file = arguments.out / f"{arguments.trunk}-{arguments.method}-{seed}-{name}.json"
        if not file.exists():
            found = measure(arguments.trunk, arguments.method, name, seed)
            with written_whole(file) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")


def measure(trunk_name: str, method: str, name: str, seed: int) -> dict[str, Any]:
    """Return test AP before training, after it, and after self-training, with what held-out images told."""
    trunk, data, cache = load_trunk(trunk_name), load_dataset(f"glyphs13/{name}"), FeatureCache()
    train = data.train.few_shot(SHOTS, seed)
    drawn = {record.image_id for record in train.records}
    others = [record for record in data.train.records if record.image_id not in drawn]
    picked = np.random.default_rng(seed).permutation(len(others))[:UNLABELLED]
    unlabelled = [others[i] for i in sorted(picked)]
    model = attach(trunk, method, classes=data.classes)
    config = bounded(default_recipe(trunk_name, method, SHOTS), len(train))

    def test_ap() -> float:
        return evaluate(model, data.test, config.view, cache=cache).ap or 0.0

    start, zero_shot = model.copy_owned(), test_ap()
    found = cross_validate(model, train, config, cache=cache)
    train_candidate(model, train, found, config, cache=cache)
    alone = test_ap()
    model.load_owned(start)
    result = self_train(model, train, [record.path for record in unlabelled], config, found=found, cache=cache)
    chosen, labels = test_ap(), result.labels
    if labels is None:  # what one round would have given, for the record
        train_candidate(model, train, found, config, cache=cache)
        labels = label_images(model, unlabelled, train, result.thresholds, view=config.view, cache=cache)
        model.load_owned(start)
        candidate = cautious_of(count_steps(config, len(train))) if found.chosen == START else found.chosen
        make(model, together(train, labels), candidate, replace(config, weights="score"), cache=cache)
    return {
        "trunk": trunk_name,
        "method": method,
        "dataset": name,
        "seed": seed,
        "labelled": len(train),
        "zero_shot": zero_shot,
        "alone": alone,
        "one_round": test_ap(),
        "chosen": chosen,
        "rounds": result.rounds,
        "held_out": result.scores,
        "labels": quality(labels, replace(data.train, records=tuple(unlabelled))),
    }


def quality(labels: Split, truth: Split) -> dict[str, float]:
    """Return precision and recall of pseudo-labels at IoU 0.5 and by class, and how many there are to an image."""
    found = [
        {"image_id": record.image_id, "category_id": a.category_id, "bbox": a.bbox_xywh, "score": a.score}
        for record in labels.records
        for a in record.annotations
    ]
    images = match(found, coco_ground_truth(truth)).images
    hits, there = sum(len(image.hits) for image in images), sum(len(image.truth_labels) for image in images)
    return {
        "precision": hits / max(1, len(found)),
        "recall": hits / max(1, there),
        "boxes": len(found) / len(truth),
    }


def report(out: Path) -> None:
    """Write records, table and figure of the cells that are done."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))]
    if not rows:
        raise SystemExit(f"{out} has no finished cell yet.")
    lines = [json.dumps(row) + "\n" for row in rows]
    (RESULTS / "self_training.jsonl").write_text("".join(lines), encoding="utf-8")
    print(format_table(rows))
    draw(rows, RESULTS / "self_training.png")


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return mean AP in percent as Markdown, with 95 % intervals of the gain over the sets."""
    lines = [
        "| method | cells | zero-shot | few-shot | one round | if it helps | gain of one round | gain if it helps | "
        "rounds taken |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for method in sorted({row["method"] for row in rows}):
        mine = [row for row in rows if row["method"] == method]
        means = [
            f"{100 * fmean(row[key] for row in mine):.1f}" for key in ("zero_shot", "alone", "one_round", "chosen")
        ]
        gains = [gain_of(mine, key) for key in ("one_round", "chosen")]
        taken = f"{sum(row['rounds'] > 0 for row in mine)} of {len(mine)}"
        lines.append(f"| {method} | {len(mine)} | {' | '.join((*means, *gains, taken))} |")
    return "\n".join(lines)


def gain_of(rows: Sequence[dict[str, Any]], key: str) -> str:
    """Return the mean gain in points over few-shot training, with a 95 % t interval over the sets."""
    by_set: dict[str, list[float]] = {}
    for row in rows:
        by_set.setdefault(row["dataset"], []).append(100 * (row[key] - row["alone"]))
    gains = [fmean(values) for values in by_set.values()]
    half = student_t.ppf(0.975, len(gains) - 1) * stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else math.nan
    return f"{fmean(gains):+.1f} ± {half:.1f}"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the gain of each set: one round, and one round if held-out images say that it helps."""
    names = sorted({row["dataset"] for row in rows}, key=lambda name: fmean(_gains(rows, name, "one_round")))
    figure, axes = plt.subplots(figsize=(7, 0.36 * len(names) + 1.4), layout="constrained")
    for key, marker, label in (("one_round", "o", "one round"), ("chosen", "x", "one round, if held-out images gain")):
        points = [(gain, place) for place, name in enumerate(names) for gain in _gains(rows, name, key)]
        axes.scatter(*zip(*points, strict=True), marker=marker, label=label, alpha=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(f"change of test AP by self-training on {UNLABELLED} unlabelled images, points")
    axes.set_title(f"glyphs13 (synthetic), {SHOTS} shots")
    axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=150)


def _gains(rows: Sequence[dict[str, Any]], name: str, key: str) -> list[float]:
    return [100 * (row[key] - row["alone"]) for row in rows if row["dataset"] == name]


if __name__ == "__main__":
    main()
