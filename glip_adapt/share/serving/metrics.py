"""Numbers of a service, and their text for Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of buckets for durations."""
IMAGES = (1, 2, 4, 8, 16)
"""Upper bounds of buckets for the images of a batch."""

_Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts, and distributions in buckets; any thread may add to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, _Labels]] = Counter()
        self._buckets: dict[str, Sequence[float]] = {}
        self._help: dict[str, tuple[str, str]] = {}

    def describe(self, name: str, text: str, buckets: Sequence[float] = ()) -> None:
        """Add a metric: a counter, or a distribution over buckets with these upper bounds."""
        self._help[name] = ("histogram" if buckets else "counter", text)
        if buckets:
            self._buckets[name] = buckets

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name, _sorted(labels)] += amount  # type: ignore[assignment]

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a distribution."""
        own = _sorted(labels)
        with self._lock:
            for bound in self._buckets[name]:
                self._counts[f"{name}_bucket", (*own, ("le", f"{bound:g}"))] += value <= bound
            self._counts[f"{name}_bucket", (*own, ("le", "+Inf"))] += 1
            self._counts[f"{name}_count", own] += 1
            self._counts[f"{name}_sum", own] += value  # type: ignore[assignment]

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Return all numbers as Prometheus reads them.

        Args:
            gauges: name → explanation and present value.
        """
        with self._lock:
            counts = dict(self._counts)
        lines: list[str] = []
        for name, (kind, text) in self._help.items():
            own = [(key, labels, value) for (key, labels), value in counts.items() if _base(key, kind) == name]
            lines += _lines(name, kind, text, own)
        for name, (text, value) in gauges.items():
            lines += _lines(name, "gauge", text, [(name, (), value)])
        return "".join(f"{line}\n" for line in lines)


def _base(key: str, kind: str) -> str:
    return key.rpartition("_")[0] if kind == "histogram" else key


def _lines(name: str, kind: str, text: str, values: Iterable[tuple[str, _Labels, float]]) -> list[str]:
    numbers = [f"{key}{_braces(labels)} {value:.10g}" for key, labels, value in values]
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *numbers]


def _braces(labels: _Labels) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{','.join(pairs)}}}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _sorted(labels: Mapping[str, str]) -> _Labels:
    return tuple(sorted(labels.items()))
