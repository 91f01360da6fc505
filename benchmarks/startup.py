"""Seconds from the start of a verb to its first output, and to its end; medians over several processes.

    python benchmarks/startup.py --before OLD_CHECKOUT

Each verb runs on a pseudo-terminal, so that progress is shown as a user sees it. A verb with a detector is stopped when
its bar of images or steps appears. With ``--before``, the same verbs of another checkout run in turn with those of this
one. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parents[1]
PLAN = 'trunks = ["glip-nano"]\ndatasets = ["glyphs13/Dice"]\nmethods = ["prompt"]\nshots = [0, 1]\nseeds = [3]\n'
VERBS = (  # with what the bar shows, for those with a detector
    ("--version", None),
    ("--help", None),
    ("adapt --help", None),
    ("ls trunks", None),
    ("ls datasets", None),
    ("ls methods", None),
    ("doctor", None),
    ("data check glyphs13/Dice", None),
    ("data convert glyphs13/Dice --to yolo --out converted-{run}", None),
    ("bench plan.toml --out absent --dry-run", None),
    ("report results", None),
    ("detect images --classes one --trunk glip-nano --out detected", r"/3 "),
    ("adapt glyphs13/Dice --trunk glip-nano --method prompt --shots 1 --out adapted-{run}", r"\d/[\d?]"),
)
VISIBLE = re.compile(r"[^\s\x1b]")
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9])")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each verb and checkout")
    parser.add_argument("--only", default="", help="verbs that begin with this")
    given = parser.parse_args(arguments)
    checkouts = [given.before.resolve(), HERE] if given.before else [HERE]
    names = [f"{moment}{which}" for moment in ("first output", "end, or bar") for which in (", before", "")]
    columns = [name for name in names if given.before or "before" not in name]
    print(f"| verb | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder))
        for verb, bar in VERBS:
            if verb.startswith(given.only):
                cells = _medians(verb, bar, checkouts, given.repeats, Path(folder))
                print(f"| `{verb.format(run=1)}` | {' | '.join(cells)} |", flush=True)


def _medians(verb: str, bar: str | None, checkouts: Sequence[Path], repeats: int, folder: Path) -> list[str]:
    """Return the cells of a row: of each column the medians of the checkouts."""
    times: dict[Path, list[tuple[float, float]]] = {checkout: [] for checkout in checkouts}
    for repeat in range(repeats + 1):
        for number, checkout in enumerate(checkouts):
            measured = _run(verb.format(run=f"{number}-{repeat}"), bar, checkout, folder)
            if repeat:  # the first one reads the files of the libraries
                times[checkout].append(measured)
    rows = [[statistics.median(column) for column in zip(*times[c], strict=True)] for c in checkouts]
    return [f"{seconds:.2f}" for column in zip(*rows, strict=True) for seconds in column]


def _prepare(folder: Path) -> None:
    """Write a dataset, images, a plan and results into a folder."""
    command = [sys.executable, "-m", "glip_adapt", "data", "export", "glyphs13/Dice", "--out", "."]
    subprocess.run(command, cwd=folder, env=_environment(HERE), check=True, capture_output=True)
    (folder / "plan.toml").write_text(PLAN)
    (folder / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    command = [sys.executable, "-m", "glip_adapt", "bench", "plan.toml", "--out", "results"]
    subprocess.run(command, cwd=folder, env=_environment(HERE), check=True, capture_output=True)


def _environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "TERM": "xterm"}


def _run(verb: str, bar: str | None, checkout: Path, folder: Path) -> tuple[float, float]:
    """Return the seconds to the first visible character, and to the bar; without a bar, to the end."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "glip_adapt", *shlex.split(verb)]
    started, first, seen = time.perf_counter(), 0.0, ""
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=_environment(checkout)
    )
    os.close(theirs)
    try:
        while part := os.read(ours, 65536):
            seen += part.decode(errors="replace")
            shown = ESCAPES.sub("", seen)
            if not first and VISIBLE.search(shown):
                first = time.perf_counter() - started
            if bar and re.search(bar, shown):
                return first, time.perf_counter() - started
    except OSError:  # Linux says so when the other side is closed
        pass
    finally:
        if bar:
            process.kill()
        code = process.wait()
        os.close(ours)
    if bar or (code and verb != "--version"):  # the option is new
        raise RuntimeError(f"{verb} failed: {seen}")
    return first, time.perf_counter() - started


if __name__ == "__main__":
    main()
