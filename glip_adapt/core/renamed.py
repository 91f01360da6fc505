"""Attributes that had another name say what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def renamed(**instead: str) -> Callable[[Any, str], Any]:
    """Return a ``__getattr__`` for a class, whose errors name the replacement: ``renamed(glip="model.network")``."""

    def missing(self: Any, name: str) -> Any:
        hint = f"; write {instead[name]} instead" if name in instead else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    return missing
