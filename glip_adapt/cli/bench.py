"""The verbs ``bench``, ``report`` and ``quickstart``: parse, call one library function, print."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import IMPORTING, AsJson, CacheFolder, Device, Vocabulary
from glip_adapt.core.files import written_whole
from glip_adapt.core.plain_text import plain

bench_app = typer.Typer()

Workers = Annotated[int, typer.Option(min=1, help="Processes that share the runs; the numbers stay the same.")]


@bench_app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/quickstart"),
    full: Annotated[bool, typer.Option("--full", help="All numbers of shots, three seeds: takes hours.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the runs; default: one per core.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try everything on synthetic images: three methods on thirteen datasets, in about five minutes, no download.

    Ends with a table, a plot and a strip of images.

    Example: glip-adapt quickstart
    """
    with terminal.working(IMPORTING):
        from glip_adapt.bench.quickstart import NOTE, SHOTS, draw_strip, quickstart_plan
        from glip_adapt.bench.report.write import write_report

    results = out / ("full" if full else "results")
    summary = _run_plan(quickstart_plan(full), results, workers=workers or os.cpu_count() or 1)
    written = write_report(results, NOTE)
    strip = results / "report" / "strip.png"
    image = draw_strip(results, SHOTS, "Synthetic images: the best boxes of each method, as many as there are objects")
    with written_whole(strip) as temporary:
        image.save(temporary)
    if as_json:
        terminal.print_json(asdict(summary) | _paths(written) | {"strip": str(strip)})
    else:
        _say_summary(summary, results)
        _say_report(written)
        terminal.say(str(strip))
    raise typer.Exit(1 if summary.failed else 0)


@bench_app.command()
def bench(
    plan: Annotated[
        Path,
        typer.Argument(
            help="TOML file with trunks, datasets, methods, shots and seeds; examples in benchmarks/plans/."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results; finished runs in it are skipped.")],
    workers: Workers = 1,
    ray: Annotated[
        str | None, typer.Option(help="Put the workers on a Ray cluster: its address, auto or local.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs, with their memory, and their time if some are done.")
    ] = False,
    cache: CacheFolder = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Run a benchmark plan, or continue one; several processes may share a folder. Exit code 1 if a run failed.

    Example: glip-adapt bench benchmarks/plans/real_photos.toml --out runs/real_photos --workers 2
    """
    from glip_adapt.bench.benchmark import read_plan

    if dry_run:
        _print_preview(plan, out, workers, vocabulary, as_json)
        return
    checked = read_plan(plan)  # before anything heavy is imported
    with terminal.working(IMPORTING):
        from glip_adapt.trunks.catalogue import choose_device
    places = {"device": str(choose_device(device)), "vocabulary": vocabulary, "cache": cache}
    summary = _run_plan(checked, out, where=str(plan), workers=workers, ray=ray, **places)
    if as_json:
        terminal.print_json(asdict(summary))
    else:
        _say_summary(summary, out)
    raise typer.Exit(1 if summary.failed else 0)


@bench_app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Results folder of `bench` or `quickstart`.")],
    note: Annotated[str, typer.Option(help="Sentence above the tables and below the figures.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write tables, figures and a web page (index.html) from the results of a benchmark.

    They have confidence intervals and paired tests.

    Example: glip-adapt report runs/real_photos
    """
    with terminal.working(f"drawing the report of {folder}"):
        from glip_adapt.bench.report.write import write_report

        written = write_report(folder, note)
    if as_json:
        terminal.print_json(_paths(written))
    else:
        _say_report(written)


def _run_plan(plan: Any, out: Path, **given: Any) -> Any:
    """Run a plan under a progress bar and return its summary; ``given`` are arguments of ``run_benchmark``."""
    from glip_adapt.bench.benchmark import run_benchmark

    with terminal.progress_bar() as progress:
        bar = _RunsBar(progress)
        return run_benchmark(plan, out, on_start=bar.start, on_step=bar.step, on_finish=bar.finish, **given)


def _say_summary(summary: Any, out: Path) -> None:
    terminal.say(f"{summary.done} runs done, {summary.skipped} were there already, {summary.failed} failed → {out}")


def _print_preview(plan: Path, out: Path, workers: int, vocabulary: Path | None, as_json: bool) -> None:
    """Print the runs of a plan with what they will take, then the sum and what is missing."""
    from glip_adapt.bench.benchmark import preview_benchmark, read_plan

    runs, missing = preview_benchmark(read_plan(plan), out, where=str(plan), vocabulary=vocabulary)
    rows: list[dict[str, Any]] = [
        {
            "run": run.key.name,
            "state": "no data" if run.key.dataset in missing and run.state != "done" else run.state,
            "minutes": None if run.seconds is None else round(run.seconds / 60, 2),
        }
        for run in runs
    ]
    if not as_json:
        shown = [{name: "unknown" if value is None else str(value) for name, value in row.items()} for row in rows]
        terminal.print_rows(str(plan), shown, as_json=False)  # at once: memory may take longer
    with terminal.working("measuring the memory of small training steps", hidden=as_json):
        room = [
            {"memory, GB": _gigabytes(run.memory.total), "features, GB": _gigabytes(run.feature_bytes)} for run in runs
        ]
    if as_json:
        rows = [row | gigabytes for row, gigabytes in zip(rows, room, strict=True)]
        terminal.print_json({"runs": rows, "missing": missing})
        return
    steps = {
        (run.key.trunk, run.key.method): {
            "trunk": run.key.trunk,
            "method": run.key.method,
            "memory, GB": _gigabytes(run.memory.total),
            "features of an image, MB": run.memory.features / 1e6,
        }
        for run in runs
    }
    terminal.print_rows("a training step", [steps[key] for key in sorted(steps)], as_json=False, decimals=2)
    left = [run for run in runs if run.state != "done"]
    known = [run.seconds for run in left if run.seconds is not None]
    hours = timedelta(seconds=round(sum(known) / workers))
    time = f"about {hours} (h:mm:ss) for {len(known)} of them, " if known else ""
    unknown = f"time unknown for {len(left) - len(known)}, " if len(known) < len(left) else ""
    peak = max((run.memory.total for run in left), default=0)
    terminal.say(
        f"{len(runs)} runs, {len(runs) - len(left)} done, {len(left)} to do: {time}{unknown}"
        f"up to {peak / 1e9:.1f} GB in each of {workers} workers."
    )
    features = [run.feature_bytes for run in left if run.feature_bytes is not None]
    if features:
        terminal.say(
            f"Features of all images of a run take {median(features) / 1e9:.1f} GB in the middle and "
            f"{max(features) / 1e9:.1f} GB at most. Without --cache 2 GB stay in memory, with it 20 GB on disk; the "
            "rest is computed at each use."
        )
    for why in missing.values():
        terminal.say(why)


def _gigabytes(size: int | None) -> float | None:
    """Return a number of bytes as gigabytes for a table; None stays."""
    return None if size is None else round(size / 1e9, 2)


def _say_report(written: Any) -> None:
    terminal.say(written.markdown.read_text(encoding="utf-8"))
    for file in written.paths:
        terminal.say(str(file))


def _paths(written: Any) -> dict[str, Any]:
    """Return the paths of a report as text, by what they hold."""
    paths = asdict(written)
    return {name: list(map(str, path)) if isinstance(path, tuple) else str(path) for name, path in paths.items()}


class _RunsBar:
    """Shows the runs of a plan: one bar for all, one for the steps of each under way, and a line for each result."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._runs = bar.add_task("runs", total=None)
        self._steps: dict[str, Any] = {}

    def start(self, key: Any, over: int, total: int) -> None:
        self._bar.update(self._runs, completed=over, total=total)
        if key.name not in self._steps:  # else it is tried again
            self._steps[key.name] = self._bar.add_task(plain(key.name), total=None)

    def step(self, key: Any, step: Any, total: int) -> None:
        terminal.show_step(self._bar, self._steps[key.name], key.name, step, total)

    def finish(self, record: Any) -> None:
        result = (
            f"AP {terminal.percent(record.metrics.ap)}" if record.metrics else f"failed: {record.error.splitlines()[0]}"
        )
        terminal.note(f"{record.key.name}  {result}")
        if (task := self._steps.pop(record.key.name, None)) is not None:
            self._bar.remove_task(task)
        self._bar.advance(self._runs)
