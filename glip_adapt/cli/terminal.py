"""Print lines, tables, progress bars and messages.

Text may come from files of strangers: nothing is read as markup, and no control code reaches the terminal.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from rich import progress
from rich.console import Console
from rich.live import Live
from rich.progress import Progress, TaskID
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from glip_adapt.core.plain_text import plain

console = Console()
stderr = Console(stderr=True)  # progress and errors; standard output holds results only

_EXPECTED = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError)
# Libraries whose own errors say what is wrong with a file, a disk or a network; none is imported for this.
_LIBRARIES = (
    "safetensors", "safetensors_rust", "pyarrow", "PIL", "zipfile", "huggingface_hub", "httpx", "httpx2", "tokenizers",
    "ray",
)  # fmt: skip


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


@contextmanager
def muted(is_silent: bool) -> Iterator[None]:
    """Print nothing within, whoever prints, if ``is_silent``."""
    if not is_silent:
        yield
        return
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


def say(text: str) -> None:
    """Print a line of results; it is wrapped by the terminal alone, so that paths stay whole."""
    console.print(Text(plain(text)), soft_wrap=True)


def note(text: str) -> None:
    """Print a line beside the results, on standard error."""
    stderr.print(Text(plain(text)), soft_wrap=True)


def print_json(content: Any) -> None:
    """Print JSON, in ASCII, on standard output; numbers that JSON lacks become null."""
    console.print_json(json.dumps(_finite(content), allow_nan=False), ensure_ascii=True)


def print_rows(
    title: str,
    rows: Iterable[Mapping[str, Any]],
    as_json: bool,
    *,
    shown: Mapping[str, Callable[[Any], str]] | None = None,
    decimals: int = 4,
    whole: bool = False,
    spare: Iterable[str] = (),
) -> None:
    """Print rows of equal headings → values as a table or as a JSON list.

    A table shows yes or no for a truth value, and – for None.

    Args:
        title: stands above the table.
        rows: may be none.
        as_json: whether to print JSON.
        shown: heading → text of a value in the table, where that is not the usual one.
        decimals: of the floats in the table.
        whole: whether the names in the first column are not broken.
        spare: headings that a table leaves out, the first one first, on a terminal too narrow for all; a line says so.
    """
    rows, shown = list(rows), shown or {}
    if as_json:
        print_json(rows)
        return
    columns = {
        name: [plain(shown[name](row[name]) if name in shown else _cell(row[name], decimals)) for row in rows]
        for name in (rows[0] if rows else ())
    }
    left_out = []
    for name in spare if rows else ():
        if _readable_width(columns) > console.width:
            left_out.append(name)
            del columns[name]
    table = Table(title=Text(plain(title)), title_justify="left")
    for position, name in enumerate(columns):
        table.add_column(Text(plain(name)), overflow="fold", no_wrap=whole and position == 0)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    console.print(table)
    if left_out:
        say(f"A wider terminal, or --json, shows also: {', '.join(left_out)}.")


def _readable_width(columns: Mapping[str, Iterable[str]]) -> int:
    """Return the width of a table whose columns, but for the first one, are broken after 18 characters."""
    widest = [max(len(part) for part in (*name.split(), *cells)) for name, cells in columns.items()]
    return widest[0] + sum(min(width, 18) for width in widest[1:]) + 3 * len(widest) + 1


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
    return _bar(progress.MofNCompleteColumn())


@contextmanager
def bytes_bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows bytes done, rate and remaining time of one step after the other."""
    with _bar(progress.DownloadColumn(), progress.TransferSpeedColumn()) as bar:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:  # what an earlier try left does not count into the rate
                tasks[step] = bar.add_task(plain(f"{title}: {step}"), total=total, completed=done)
            bar.update(tasks[step], completed=done, total=total)

        yield show


@contextmanager
def files_bar(
    title: str, total: int | None, *, what: str = "file", hidden: bool = False
) -> Iterator[Callable[[], None]]:
    """Yield a callback that counts a file, and show rate and remaining time; the bar vanishes at the end."""
    columns = (progress.MofNCompleteColumn(), _Rate(what))
    # Elsewhere than on a terminal, rich would leave an empty line.
    with _bar(*columns, transient=True, disable=hidden or not stderr.is_terminal) as bar:
        task = bar.add_task(plain(title), total=total)
        yield lambda: bar.advance(task)


@contextmanager
def working(what: str, *, hidden: bool = False) -> Iterator[None]:
    """Show on a terminal what is under way and cannot be counted, such as an import of seconds; it leaves no line."""
    if hidden or not stderr.is_terminal:
        yield
        return
    # Standard output stays as it is: else results would leave the file that they are written to.
    live = Live(Spinner("dots", Text(f"{plain(what)} …")), console=stderr, transient=True, redirect_stdout=False)
    with live:
        yield


class _Rate(progress.ProgressColumn):
    """Files per second, or seconds per file."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def render(self, task: progress.Task) -> Text:
        rate = task.finished_speed or task.speed
        if not rate:
            return Text("")
        return Text(f"{rate:.1f} {self.what}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.what}")


def show_step(bar: Progress, task: TaskID, title: str, step: Any, total: int) -> None:
    """Move a bar to a training step."""
    rate = 1 / step.seconds if step.seconds else 0
    description = plain(f"{title}  loss {step.loss:.3f}  {rate:.1f} steps/s")
    bar.update(task, completed=step.step, total=total, description=description)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _cell(value: Any, decimals: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return "–" if value is None else str(value)


def _bar(*columns: progress.ProgressColumn, transient: bool = False, disable: bool = False) -> Progress:
    return Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        *columns,
        progress.TimeRemainingColumn(),
        console=stderr,
        transient=transient,
        disable=disable,
        redirect_stdout=sys.stdout.isatty(),  # else results would leave the file that they are written to
    )
