"""Memory of a step of every released trunk and method: compare what is stored with what is measured, or store it.

    python benchmarks/memory.py                    # of all trunks; exit code 1 if a row differs
    python benchmarks/memory.py glip-t --write     # measure glip-t and store it; the rows of other trunks stay

`glip-adapt bench --dry-run` reads the file, `glip_adapt/assets/step_memory.json`, instead of measuring. Weights are
random, settings those of the trunk's published recipe; a method that a trunk does not take has no row. The figures are
those of a CPU, and the same each time: every trunk has a process of its own, in which zero-shot comes first and counts
what a network keeps for later images, such as anchors. All take a quarter of an hour of a CPU core and 7 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from glip_adapt.adapters import ADAPTERS, build_adapter
from glip_adapt.adapters.protocol import Stage
from glip_adapt.core.config import to_mapping
from glip_adapt.core.files import written_whole
from glip_adapt.engine.memory import measure_step
from glip_adapt.engine.step_memory import CLASSES, STORED, StoredStep, read_steps
from glip_adapt.trunks.catalogue import random_trunk
from glip_adapt.trunks.released import TRUNKS, trunk_spec


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trunks", nargs="*", metavar="TRUNK", help=f"one of {', '.join(TRUNKS)}; all without")
    parser.add_argument("--write", action="store_true", help="store what is measured")
    given = parser.parse_args(arguments)
    names = given.trunks or [*TRUNKS]
    # Who writes all rows needs none of the old ones, which may be damaged.
    stored = () if given.write and not given.trunks else read_steps(STORED)
    measured: list[StoredStep] = []
    for rows in measure_trunks(names):
        measured += rows
        if given.write:  # after each trunk, as it may take minutes
            now = {row.trunk for row in measured}
            write_rows([*(row for row in stored if row.trunk in TRUNKS and row.trunk not in now), *measured])
    if given.write:
        return 0
    return compare([row for row in stored if row.trunk in names or row.trunk not in TRUNKS], measured)


def measure_trunks(names: Iterable[str]) -> Iterator[list[StoredStep]]:
    """Yield the rows of each trunk; trunks that differ only in their weights are measured once."""
    done: dict[str, list[StoredStep]] = {}
    for name in names:
        alike = next((other for other in done if have_one_network(name, other)), None)
        if alike is not None:
            done[name] = [replace(row, trunk=name) for row in done[alike]]
        else:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                done[name] = process.submit(measure_trunk, name).result()
        print(f"{name}: {len(done[name])} rows", flush=True)
        yield done[name]


def have_one_network(name: str, other: str) -> bool:
    """Say whether two trunks are of one size, with the same settings of methods."""
    one, two = trunk_spec(name), trunk_spec(other)
    return (one.family, one.config, one.settings) == (two.family, two.config, two.settings)


def measure_trunk(name: str) -> list[StoredStep]:
    """Return the rows of a trunk: one per method, two where recomputing makes a difference."""
    trunk, rows = random_trunk(name), []
    for method in ADAPTERS:
        adapter = build_adapter(method, trunk.spec.settings.get(method, {}))
        settings = to_mapping(adapter)
        modes = (False,) if adapter.stage is Stage.NONE else (False, True)
        try:
            steps = {again: measure_step(trunk, method, again, settings) for again in modes}
        except ValueError as error:
            print(f"{name}, {method}: no row. {error}", flush=True)
            continue
        for recompute, step in steps.items() if len({*steps.values()}) > 1 else [(None, steps[False])]:
            print(f"{name}, {method}, recompute {recompute}: {step.large.activations / 1e6:.1f} MB", flush=True)
            rows.append(StoredStep(trunk=name, method=method, settings=settings, recompute=recompute, step=step))
    return rows


def write_rows(rows: Iterable[StoredStep]) -> None:
    """Write the file: sorted, one row a line."""
    lines = [json.dumps(to_mapping(row)) for row in sorted(rows, key=place)]
    with written_whole(STORED) as temporary:
        temporary.write_text(f'{{"classes": {CLASSES}, "rows": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def compare(stored: Iterable[StoredStep], measured: Iterable[StoredStep]) -> int:
    """Print the rows that differ; return 1 if there are any."""
    before, now = ({place(row): row for row in rows} for rows in (stored, measured))
    differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    for key in differing:
        print(f"{', '.join(key)}\n  stored    {before.get(key)}\n  measured  {now.get(key)}")
    print(f"{len({*before, *now})} rows, {len(differing)} differ")
    return 1 if differing else 0


def place(row: StoredStep) -> tuple[str, str, str]:
    """Return what rows are sorted by; no two rows of a file share it."""
    return row.trunk, row.method, f"recompute {row.recompute}"


if __name__ == "__main__":
    sys.exit(main())
