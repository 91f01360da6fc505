"""Seconds by stage of long work, such as training and scoring, without handing a clock through every call.

    with recorded() as seconds:
        fit(model, train, val)
    seconds  # {"training": 41.2, "frozen features": 8.4, "validation": 12.0, "scoring": 0.3, "decoding": 0.1}

A stage inside another one counts for itself only, so the seconds add up. Work on a GPU is counted where the host waits
for it. Other threads are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class _Clock:
    """Charges the time that passes to the innermost stage under way."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def enter(self, stage: str) -> None:
        self._charge()
        self._open.append(stage)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            stage = self._open[-1]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now


_clock: ContextVar[_Clock | None] = ContextVar("_clock", default=None)


@contextmanager
def recorded() -> Iterator[dict[str, float]]:
    """Yield a mapping from stage to seconds, which grows while stages of this thread run; it replaces an outer one."""
    clock = _Clock()
    token = _clock.set(clock)
    try:
        yield clock.seconds
    finally:
        _clock.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Charge the time meanwhile to a stage, if anyone records."""
    clock = _clock.get()
    if clock is None:
        yield
        return
    clock.enter(name)
    try:
        yield
    finally:
        clock.leave()
