"""Work ahead of the network: images are decoded and resized in threads while it computes."""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

from glip_adapt.core.timing import stage

THREADS = min(4, os.cpu_count() or 1)  # Pillow decodes without the interpreter's lock; four keep a large GPU busy
AHEAD = 2 * THREADS  # results that wait at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Yield ``function(item)`` for each item, in order, and work on the next ones in threads meanwhile.

    Items are drawn in the caller's thread, up to ``AHEAD`` of them early. An error is raised when its turn comes. Time
    that the caller waits counts as the stage "decoding". The function must not call ``ahead``: all share the threads.
    """
    source = iter(items)
    waiting = deque(_threads().submit(function, item) for item in islice(source, AHEAD))
    try:
        while waiting:
            with stage("decoding"):
                result = waiting.popleft().result()
            waiting.extend(_threads().submit(function, item) for item in islice(source, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Return threads in which torch computes without more threads, whose teams would compete with the network."""
    count, started = torch.get_num_threads(), threading.Barrier(THREADS + 1)

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="feeding", initializer=start)
    for _ in range(THREADS):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(count)  # what a thread sets is the default of later threads, too
    return pool
