"""The verbs ``bench``, ``report`` and ``quickstart``: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from glip_adapt import terminal
from glip_adapt.cli_options import CacheFolder, Device, Vocabulary, feature_cache

bench_app = typer.Typer()


@bench_app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/quickstart"),
    full: Annotated[bool, typer.Option("--full", help="0, 1, 3, 5, 10 shots and all, three seeds: hours.")] = False,
) -> None:
    """Compare zero-shot and three methods on thirteen synthetic sets, with no download: about ten minutes.

    Example: glip-adapt quickstart
    """
    import torch

    from glip_adapt.bench.quickstart import NOTE, SHOTS, quickstart_plan
    from glip_adapt.bench.strip import draw_strip

    torch.set_num_threads(1)  # a second one makes this small trunk slower
    results = out / ("full" if full else "results")
    failed = _run_plan(quickstart_plan(full), results)
    _print_report(results, NOTE)
    strip = results / "report" / "strip.png"
    draw_strip(results, SHOTS, "Synthetic pictures: the best boxes of each method, as many as there are objects").save(
        strip
    )
    terminal.console.print(Text(str(strip)), soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


@bench_app.command()
def bench(
    plan: Annotated[Path, typer.Argument(help="TOML file; see benchmarks/plans/.")],
    out: Annotated[Path, typer.Option(help="Results folder; runs that it holds are skipped.")],
    cache: CacheFolder = None,
    vocabulary: Vocabulary = None,
    device: Device = "cpu",
) -> None:
    """Run or resume a plan; exit code 1 if a run failed.

    Example: glip-adapt bench benchmarks/plans/real_photos.toml --out runs/real_photos
    """
    from glip_adapt.bench import read_plan

    failed = _run_plan(read_plan(plan), out, device, vocabulary, cache)
    raise typer.Exit(1 if failed else 0)


@bench_app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Results folder of `bench`.")],
    note: Annotated[str, typer.Option(help="Sentence that heads the table and stands below the figure.")] = "",
) -> None:
    """Write tables and the data-efficiency plot from the records.

    Example: glip-adapt report runs/real_photos
    """
    _print_report(folder, note)


def _run_plan(
    plan: Any, out: Path, device: str = "cpu", vocabulary: Path | None = None, cache: Path | None = None
) -> int:
    """Run a plan under a progress bar and return how many runs failed."""
    from glip_adapt.bench import run_benchmark

    with terminal.progress_bar() as bar:
        runs, steps = bar.add_task("runs", total=None), bar.add_task("steps", total=None)

        def on_start(key: Any, position: int, total: int) -> None:
            bar.update(runs, completed=position - 1, total=total, description=f"runs: {key.name}")

        def on_finish(record: Any) -> None:
            ap = (
                f"AP {terminal.percent(record.metrics.ap)}"
                if record.metrics
                else f"failed: {record.error.splitlines()[0]}"
            )
            bar.console.print(Text(f"{record.key.name}  {ap}"))

        summary = run_benchmark(
            plan,
            out,
            device=device,
            vocabulary=vocabulary,
            cache=feature_cache(cache),
            on_start=on_start,
            on_step=lambda step, total: terminal.show_step(bar, steps, "steps", step, total),
            on_finish=on_finish,
        )
    terminal.console.print(
        f"{summary.done} runs done, {summary.skipped} were there already, {summary.failed} failed → {out}"
    )
    return summary.failed


def _print_report(folder: Path, note: str) -> None:
    from glip_adapt.bench.report import write_report

    files = write_report(folder, note)
    terminal.console.print(Text(files.markdown.read_text(encoding="utf-8")), soft_wrap=True)
    for file in (files.csv, files.markdown, *files.figures):
        terminal.console.print(Text(str(file)), soft_wrap=True)
