"""Names of classes in scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def distinct_names(categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return category id → name, with the id where several categories have one name."""
    counts = Counter(entry["name"] for entry in categories)
    return {e["id"]: e["name"] if counts[e["name"]] == 1 else f"{e['name']} (category {e['id']})" for e in categories}
