"""Print lines, tables, progress bars and messages.

Text may come from files of strangers: nothing is read as markup, and no control code reaches the terminal.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

from glip_adapt.core.plain_text import plain

console = Console()
stderr = Console(stderr=True)  # progress and errors; standard output holds results only

_EXPECTED = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError)
# Libraries whose own errors say what is wrong with a file, a disk or a network; none is imported for this.
_LIBRARIES = (
    "safetensors",
    "safetensors_rust",
    "pyarrow",
    "PIL",
    "zipfile",
    "huggingface_hub",
    "httpx",
    "httpx2",
    "tokenizers",
    "ray",
)


class _Warnings(logging.Handler):
    """Prints what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        stderr.print(Text.assemble(("warning: ", "bold yellow"), plain(record.getMessage())), soft_wrap=True)


def prepare() -> None:
    """Have warnings of the library printed, and characters that a stream cannot encode replaced."""
    logging.getLogger("glip_adapt").handlers = [_Warnings(logging.WARNING)]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(text: str) -> None:
    """Print a line of results; it is wrapped by the terminal alone, so that paths stay whole."""
    console.print(Text(plain(text)), soft_wrap=True)


def note(text: str) -> None:
    """Print a line beside the results, on standard error."""
    stderr.print(Text(plain(text)), soft_wrap=True)


def print_json(content: Any) -> None:
    """Print JSON, in ASCII, on standard output."""
    console.print_json(json.dumps(content), ensure_ascii=True)


@dataclass(frozen=True)
class Column:
    """A column of a table of typed rows.

    Attributes:
        title: heading of the table, and key in JSON.
        value: row → what JSON holds.
        show: value → text of a cell; by default yes or no, – for None, and four decimals.
    """

    title: str
    value: Callable[[Any], Any]
    show: Callable[[Any], str] | None = None


def print_table(title: str, rows: Sequence[Any], columns: Sequence[Column], as_json: bool) -> None:
    """Print typed rows as a table or as a JSON list."""
    if as_json:
        print_json([{column.title: column.value(row) for column in columns} for row in rows])
        return
    cells = [[(column.show or _cell)(column.value(row)) for column in columns] for row in rows]
    _print_cells(title, [column.title for column in columns], cells, whole=1)


def print_rows(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows of equal keys as a table or as a JSON list."""
    if as_json:
        print_json(rows)
        return
    _print_cells(title, list(rows[0]) if rows else [], [[_cell(value) for value in row.values()] for row in rows])


def _print_cells(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], whole: int = 0) -> None:
    """Print a table; the names in the first ``whole`` columns are not broken."""
    table = Table(title=Text(plain(title)), title_justify="left")
    for position, name in enumerate(headings):
        table.add_column(Text(plain(name)), overflow="fold", no_wrap=position < whole)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console.print(table)


def print_error(message: str) -> None:
    """Print an expected error on standard error."""
    stderr.print(Text.assemble(("error: ", "bold red"), plain(message)), soft_wrap=True)


def explain(error: BaseException) -> str | None:
    """Return the message of an error that the user can mend; None for a defect of the program."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "ArrowMemoryError"):
        reason = str(error) or type(error).__name__
        return f"Memory is exhausted ({reason}). Use smaller images, batches or trunks, or fewer workers."
    if isinstance(error, _EXPECTED) or type(error).__module__.partition(".")[0] in _LIBRARIES:
        return str(error) or type(error).__name__
    return None


def percent(ap: float | None) -> str:
    """Return an AP in [0, 1] as a percentage."""
    return "undefined" if ap is None else f"{100 * ap:.1f}"


def progress_bar() -> Progress:
    """Return a bar with counts and remaining time, on standard error."""
    return Progress(_description(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=stderr)


@contextmanager
def bytes_bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows bytes done, rate and remaining time of one step after the other."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(_description(), *columns, console=stderr) as bar:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:  # what an earlier try left does not count into the rate
                tasks[step] = bar.add_task(plain(f"{title}: {step}"), total=total, completed=done)
            bar.update(tasks[step], completed=done, total=total)

        yield show


@contextmanager
def training_bar(title: str) -> Iterator[tuple[Any, Any]]:
    """Yield callbacks that show step, loss, rate and remaining time, and each validation."""
    with progress_bar() as bar:
        task = bar.add_task(plain(title), total=None)
        yield (
            lambda step, total: show_step(bar, task, title, step, total),
            lambda v: bar.console.print(f"step {v.step}: val AP {percent(v.ap)}{' (best)' if v.is_best else ''}"),
        )


def show_step(bar: Progress, task: TaskID, title: str, step: Any, total: int) -> None:
    """Move a bar to a training step."""
    rate = 1 / step.seconds if step.seconds else 0
    description = plain(f"{title}  loss {step.loss:.3f}  {rate:.1f} steps/s")
    bar.update(task, completed=step.step, total=total, description=description)


def _cell(value: Any) -> str:
    """Return the text of a cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    return "–" if value is None else str(value)


def _description() -> TextColumn:
    return TextColumn("{task.description}", markup=False)
