"""What people see while and after a verb runs: tables, progress bars, messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

console = Console()
stderr = Console(stderr=True)  # progress and errors; standard output holds results only


def print_rows(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows of equal keys as a table or as a JSON list."""
    if as_json:
        console.print_json(json.dumps(rows))
        return
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"{v:.4f}" if isinstance(v, float) else str(v)) for v in row.values()))
    console.print(table)


def print_error(message: str) -> None:
    """Print an expected error on standard error."""
    stderr.print(Text.assemble(("error: ", "bold red"), message))


def percent(ap: float | None) -> str:
    """Return an AP in [0, 1] as a percentage."""
    return "undefined" if ap is None else f"{100 * ap:.1f}"


def progress_bar() -> Progress:
    """Return a bar with counts and remaining time, on standard error."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=stderr
    )


@contextmanager
def bytes_bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows bytes done, rate and remaining time of one step after the other."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=stderr) as bar:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:  # what an earlier try left does not count into the rate
                tasks[step] = bar.add_task(f"{title}: {step}", total=total, completed=done)
            bar.update(tasks[step], completed=done, total=total)

        yield show


@contextmanager
def training_bar(title: str) -> Iterator[tuple[Any, Any]]:
    """Yield callbacks that show step, loss, rate and remaining time, and each validation."""
    with progress_bar() as bar:
        task = bar.add_task(title, total=None)
        yield (
            lambda step, total: show_step(bar, task, title, step, total),
            lambda v: bar.console.print(f"step {v.step}: val AP {percent(v.ap)}{' (best)' if v.is_best else ''}"),
        )


def show_step(bar: Progress, task: TaskID, title: str, step: Any, total: int) -> None:
    """Move a bar to a training step."""
    rate = 1 / step.seconds if step.seconds else 0
    bar.update(task, completed=step.step, total=total, description=f"{title}  loss {step.loss:.3f}  {rate:.1f} steps/s")
