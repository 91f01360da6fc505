"""One long job at a time in the background: it tells how far it is, and can be stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from glip_adapt.core.errors import GlipAdaptError

logger = logging.getLogger(__name__)

_EXPECTED = (GlipAdaptError, ValueError, OSError, RuntimeError, MemoryError)
_MOST_POINTS = 300  # of the curve of losses


class BusyError(GlipAdaptError):
    """Another job is under way."""


class StoppedError(GlipAdaptError):
    """The job was asked to stop."""


class Job:
    """What a job tells while it runs, and what came of it.

    Attributes:
        kind: load, adapt or suggest.
        state: running, done, stopped or failed.
        message: what it does now, or why it failed.
        done, total: how much of that is done; a total of 0 means that it is not known.
        losses: of the training steps so far.
        result: JSON; None unless it is done.
    """

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number, self.state, self.message = kind, number, "running", ""
        self.done = self.total = 0
        self.losses: list[float] = []
        self.result: Any = None
        self._is_asked_to_stop = threading.Event()

    def tell(self, message: str, done: int = 0, total: int = 0) -> None:
        """Say how far the job is; StoppedError if it shall stop."""
        self.message, self.done, self.total = message, done, total
        if self._is_asked_to_stop.is_set():
            raise StoppedError("Stopped.")

    def add_loss(self, loss: float, is_first: bool) -> None:
        """Add the loss of a step to the curve of this training."""
        if is_first:
            self.losses = []
        self.losses.append(loss)
        if len(self.losses) > _MOST_POINTS:
            self.losses = self.losses[::2]

    def stop(self) -> None:
        """Have the job stop the next time that it tells something."""
        self._is_asked_to_stop.set()

    def run(self, function: Callable[[Job], Any]) -> None:
        """Run a function to its end, whatever that is."""
        try:
            self.result = function(self)
            self.state, self.message = "done", ""
        except StoppedError:
            self.state, self.message = "stopped", "Stopped; nothing was saved."
        except _EXPECTED as error:
            logger.info("A job failed", exc_info=True)
            self.state, self.message = "failed", str(error) or type(error).__name__
        except Exception as error:  # a defect; the page must not wait for ever
            logger.exception("A job of the studio failed")
            self.state, self.message = "failed", f"{type(error).__name__}: {error}. The terminal shows more."

    def to_json(self) -> dict[str, Any]:
        """Return what the page shows of it."""
        shown = ("kind", "number", "state", "message", "done", "total", "losses", "result")
        return {name: getattr(self, name) for name in shown} | {"stopping": self._is_asked_to_stop.is_set()}


class Jobs:
    """The job that runs, or the last one that ran."""

    def __init__(self) -> None:
        self.current: Job | None = None
        self._guard = threading.Lock()
        self._count = 0

    def start(self, kind: str, function: Callable[[Job], Any]) -> Job:
        """Start a job in a thread of its own; BusyError if one is under way."""
        with self._guard:
            self.check_idle()
            self._count += 1
            job = self.current = Job(kind, self._count)
        threading.Thread(target=job.run, args=(function,), name=f"studio-{kind}", daemon=True).start()
        return job

    def check_idle(self) -> None:
        """Raise BusyError if a job is under way."""
        if self.current is not None and self.current.state == "running":
            what = {"load": "loaded", "adapt": "adapted", "suggest": "used to look for pictures"}[self.current.kind]
            raise BusyError(f"The detector is being {what}. Wait until that is done; labels can be drawn meanwhile.")

    def stop(self) -> None:
        """Ask the job that runs to stop."""
        if self.current is not None:
            self.current.stop()
