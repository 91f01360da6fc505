"""Work ahead of the network: images are decoded and resized in threads while a GPU computes."""

from __future__ import annotations

import os
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


def ahead(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Generator[Result]:
    """Yield ``function(item)`` for each item, in order; beside a GPU, threads work on the next ones meanwhile.

    Items are drawn in the caller's thread, up to ``AHEAD`` of them early. An error is raised when its turn comes. Time
    that the caller waits counts as the stage "decoding".

    Beside a network on the CPU there are no threads: it takes all cores, and OpenMP lets its own threads sleep between
    operations once there are more of others, which made a training step of GLIP-T a quarter slower.

    Args:
        function: what is to be done for an item; on a GPU it runs in another thread.
        items: one after the other; there may be no end of them.
        device: of the network.
    """
    if device.type == "cpu":
        for item in items:
            with stage("decoding"):
                result = function(item)
            yield result
        return
    source = iter(items)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="feeding") as pool:
        waiting = deque(pool.submit(function, item) for item in islice(source, AHEAD))
        try:
            while waiting:
                with stage("decoding"):
                    result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(source, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
