"""One thread that computes, for many that ask: requests that come at about the same time are answered together."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Batcher(Generic[Item, Result]):
    """Collects items from any thread into batches, and has them computed in a thread of its own.

    A batch begins with the first item that waits. It takes what comes within ``wait_seconds``, and at most ``most``;
    items that came while the last batch was computed are there already.
    """

    def __init__(
        self, compute: Callable[[Sequence[Item]], Sequence[Result]], *, most: int, wait_seconds: float
    ) -> None:
        """Start the thread.

        Args:
            compute: returns a result for each of 1 to ``most`` items; an error is that of each of them.
            most: items in a batch.
            wait_seconds: for further items.
        """
        self._compute, self._most, self._wait_seconds = compute, most, wait_seconds
        self._queue: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> Future[Result]:
        """Return the result to come of an item; cancelled before its turn, it is not computed."""
        future: Future[Result] = Future()
        self._queue.put((item, future))
        return future

    def close(self) -> None:
        """End the thread after the items that were submitted."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._collect()
            if wanted := [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]:
                self._answer(wanted)

    def _collect(self) -> tuple[list[tuple[Item, Future[Result]]], bool]:
        """Return the next items, and whether more may come."""
        batch: list[tuple[Item, Future[Result]]] = []
        last = float("inf")
        while len(batch) < self._most:
            try:
                entry = self._queue.get(timeout=max(0.0, last - time.monotonic()) if batch else None)
            except queue.Empty:
                break
            if entry is None:
                return batch, False
            last = min(last, time.monotonic() + self._wait_seconds)
            batch.append(entry)
        return batch, True

    def _answer(self, batch: list[tuple[Item, Future[Result]]]) -> None:
        """Compute a batch; if that fails, each item by itself, so that one does not take the others with it."""
        try:
            results = self._compute([item for item, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            logger.warning("A batch of %d failed; each is computed by itself: %s", len(batch), error)
            for entry in batch:
                self._answer([entry])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
