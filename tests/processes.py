"""Processes of tests: forked, so that none spends seconds on its imports."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from typing import Any

FORK = multiprocessing.get_context("fork")


def start(function: Callable[..., Any], *arguments: Any, count: int = 1) -> list[ForkProcess]:
    """Return ``count`` processes that call ``function`` at the same time."""
    barrier = FORK.Barrier(count)
    children = [FORK.Process(target=_call, args=(barrier, function, arguments)) for _ in range(count)]
    for child in children:
        child.start()
    return children


def exit_codes(function: Callable[..., Any], *arguments: Any, count: int = 1) -> list[int | None]:
    """Return how ``count`` processes end that call ``function`` at the same time; 0 is without an error."""
    children = start(function, *arguments, count=count)
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def _call(barrier: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    barrier.wait()
    function(*arguments)
