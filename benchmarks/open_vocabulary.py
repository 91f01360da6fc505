"""Is the zero-shot detection of the nano trunks real? AP by the right names against AP by names that are swapped.

    python benchmarks/open_vocabulary.py --out benchmarks/results/open_vocabulary.json

For each synthetic set the class names are moved on by one, two and three places, so that every class is called by
another's name. A detector that reads the names must collapse; one that only knows where things are stays. Classes whose
words pre-training showed, but never together ("hollow chess queen" after solid pieces and other hollow things), are
scored by themselves: AP above that of the swapped names is what reading the composition adds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from glip_adapt import FeatureCache, attach, evaluate, load_dataset, load_trunk
from glip_adapt.data.dataset import Dataset
from glip_adapt.data.glyphs import unseen_glyphs
from glip_adapt.data.glyphs13 import glyph_sets
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.released import default_recipe

SHIFTS = (1, 2, 3)
COMPOSED = ("glyphs13/ChessHollow", "glyphs13/CardSuits")  # sets with unseen compositions of seen words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--trunks", nargs="+", default=["glip-nano", "glip-nano-a"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.trunks:
        trunk = load_trunk(name)
        for spec in track(glyph_sets(), name):
            rows.append({"trunk": name, "dataset": spec.name, **measure(trunk, load_dataset(f"glyphs13/{spec.name}"))})
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(format_table(rows))


def measure(trunk: Trunk, data: Dataset) -> dict[str, Any]:
    """Return AP by the right names, its mean by swapped names, and both over the unseen compositions."""
    cache = FeatureCache()
    composed = [glyph.name for glyph in unseen_glyphs()] if data.name in COMPOSED else []

    def score(names: Sequence[str]) -> tuple[float, float | None]:
        shown = default_recipe(trunk.name, "zero_shot", 1).view
        found = evaluate(attach(trunk, "zero_shot", classes=names), data.test, shown, cache=cache)
        parts = [found.per_class[name] or 0.0 for name in data.classes if name in composed]
        return found.ap or 0.0, mean(parts)

    count = len(data.classes)
    swapped = [score(data.classes[shift:] + data.classes[:shift]) for shift in SHIFTS if shift < count]
    ap, ap_composed = score(data.classes)
    return {
        "ap": ap,
        "ap_swapped": mean([value for value, _ in swapped]),
        "ap_composed": ap_composed,
        "ap_composed_swapped": mean([value for _, value in swapped if value is not None]),
    }


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None of nothing, as with the swapped names of a single class."""
    return sum(values) / len(values) if values else None


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table in percent with a mean per trunk over the sets that can be swapped."""
    columns = ("ap", "ap_swapped", "ap_composed", "ap_composed_swapped")
    lines = [
        "| trunk | set | AP | names swapped | unseen compositions | swapped |",
        "| :-- | :-- | --: | --: | --: | --: |",
    ]
    for trunk in dict.fromkeys(row["trunk"] for row in rows):
        mine = [row for row in rows if row["trunk"] == trunk]
        able = [row for row in mine if row["ap_swapped"] is not None]
        summary = {column: mean([row[column] for row in able if row[column] is not None]) for column in columns}
        for row in [*mine, {"trunk": trunk, "dataset": f"mean of {len(able)} sets that can be swapped", **summary}]:
            cells = ("–" if row[column] is None else f"{100 * row[column]:.1f}" for column in columns)
            lines.append(f"| {trunk} | {row['dataset']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
