"""How much does the choice of a state flatter a method? Three protocols of few-shot detection side by side.

    glip-adapt bench benchmarks/plans/glyphs13_few_val.toml --out runs/glyphs13_few_val
    python -m benchmarks.protocols runs/glyphs13_few_val          # --restore: fill the folder with committed records

Papers that follow GLIP keep the state that is best on all validation images (glyphs13.jsonl). FT-FSOD (arXiv
2603.28182) takes as many of them per class as there are images to learn from: the plan above. Who has nothing but the
labelled images holds some of them out in turn (glyphs13_without_val.jsonl).

Each protocol shows an AP of its own: the best one on the images that chose, or what cross-validation expects. It is
set against the test AP of the same state, and both against zero-shot AP of the same images, as images differ in
difficulty. Writes results/glyphs13_few_val.jsonl (one record a line) and the table between ``<!-- protocols -->`` and
``<!-- /protocols -->`` in README.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.strong import difference, mean, put, read_lines, shown
from benchmarks.without_val import restore
from glip_adapt import attach, evaluate, load_dataset, load_trunk
from glip_adapt.bench.executor import selection_split
from glip_adapt.bench.plan import ProtocolConfig, RunKey
from glip_adapt.bench.records import read_records, to_json
from glip_adapt.engine.cache import FeatureCache

RESULTS = Path(__file__).resolve().parent / "results"
NAME = "glyphs13_few_val"
METHODS = ("prompt", "lora", "full")
PROTOCOLS = {  # what chooses → records
    "all of val": "glyphs13",
    "few of val": NAME,
    "cross-validation": "glyphs13_without_val",
}

Cell = tuple[str, int, int]
"""Dataset, shots, seed."""


@dataclass(frozen=True)
class Chosen:
    """A finished run in points of AP: what its protocol shows, and what test images say."""

    shown: float
    shown_start: float
    test: float
    test_start: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="results folder of the plan")
    parser.add_argument("--restore", action="store_true", help="fill the folder with the committed records, no more")
    arguments = parser.parse_args()
    if arguments.restore:
        restore(RESULTS / f"{NAME}.jsonl", arguments.runs)
        return
    records = sorted((r for r in read_records(arguments.runs) if r.status == "done"), key=lambda r: r.key.name)
    lines = [json.dumps(to_json(record), ensure_ascii=False) + "\n" for record in records]
    (RESULTS / f"{NAME}.jsonl").write_text("".join(lines), encoding="utf-8")
    contents = {title: cells_of(read_lines(RESULTS / f"{name}.jsonl")) for title, name in PROTOCOLS.items()}
    complete = sorted(set.intersection(*({cell for _, cell in of} for of in contents.values())))
    zero = zero_shot(complete)
    put("protocols", table({title: chosen(title, of, complete, zero) for title, of in contents.items()}))


def cells_of(records: Iterable[dict[str, Any]]) -> dict[tuple[str, Cell], dict[str, Any]]:
    """Return the finished runs by method and cell."""
    found = {}
    for record in records:
        key = record["key"]
        if record["status"] == "done" and key["method"] in METHODS:
            found[key["method"], (key["dataset"], key["shots"], key["seed"])] = record
    return found


def zero_shot(cells: Iterable[Cell]) -> dict[tuple[str, Cell], float]:
    """Return zero-shot AP in points, by protocol and cell, on the images that choose; and on those of ``test``."""
    trunk, cache = load_trunk("glip-nano"), FeatureCache()
    protocols = {"all of val": ProtocolConfig(), "few of val": ProtocolConfig(selection="best_on_few_val")}
    scored: dict[str, float] = {}  # by name of the split, as most cells share theirs
    found = {}
    for cell in track(cells, "zero-shot"):
        name, shots, seed = cell
        data = load_dataset(name)
        model = attach(trunk, "zero_shot", classes=data.classes)
        key = RunKey("glip-nano", name, "full", shots, seed)
        splits = {title: selection_split(data, key, protocol) for title, protocol in protocols.items()}
        for title, split in {**splits, "test": data.test}.items():
            assert split is not None
            if split.name not in scored:
                scored[split.name] = 100 * (evaluate(model, split, cache=cache).ap or 0.0)
            found[title, cell] = scored[split.name]
    return found


def chosen(
    title: str,
    records: Mapping[tuple[str, Cell], dict[str, Any]],
    cells: Iterable[Cell],
    zero: Mapping[tuple[str, Cell], float],
) -> dict[tuple[str, Cell], Chosen]:
    """Return the runs of a protocol by method and cell, as far as it shows an AP."""
    found = {}
    for method in METHODS:
        for cell in cells:
            record = records.get((method, cell))
            if record is None:
                continue
            held_out = record["cross_validated"]
            here = held_out["expected_ap"] if held_out else record["metrics"]["val_ap"]
            start = held_out["start_ap"] if held_out else zero[title, cell] / 100
            if here is not None and start is not None:
                test = 100 * record["metrics"]["ap"]
                found[method, cell] = Chosen(100 * here, 100 * start, test, zero["test", cell])
    return found


def table(found: Mapping[str, Mapping[tuple[str, Cell], Chosen]]) -> str:
    """Return, by shots, method and protocol, the gains over zero-shot that are shown and that test images confirm."""
    lines = ["| shots | method | chosen by | cells | test AP | gain shown | gain on test | flattered by |"]
    lines += ["|---" * 8 + "|"]
    common = set.intersection(*(set(runs) for runs in found.values()))
    for shots in sorted({cell[1] for _, cell in common}):
        for method in METHODS:
            cells = sorted(cell for name, cell in common if name == method and cell[1] == shots)
            if not cells:
                continue
            for title, runs in found.items():
                seen = {cell: runs[method, cell].shown - runs[method, cell].shown_start for cell in cells}
                true = {cell: runs[method, cell].test - runs[method, cell].test_start for cell in cells}
                test = mean({cell: runs[method, cell].test for cell in cells}, cells)
                row = f"{len(cells)} | {test:.1f} | {mean(seen, cells):+.1f} | {mean(true, cells):+.1f}"
                lines.append(f"| {shots} | {method} | {title} | {row} | {shown(difference(seen, true, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
