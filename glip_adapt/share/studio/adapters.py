"""Adapters that lie in the folder of the pictures they were made of: ``adapter``, ``adapter-2`` and so on."""

from __future__ import annotations

import re
from pathlib import Path

from glip_adapt.adapters.storage import DESCRIPTION_FILE

ADAPTER = "adapter"
PAGE_FILE = "index.html"  # of what to expect

_NAME = re.compile(rf"{ADAPTER}(?:-([0-9]+))?")


def adapters_in(folder: Path) -> list[str]:
    """Return the names of the folders of adapters in a folder, the newest first."""
    names = [path.parent.name for path in folder.glob(f"{ADAPTER}*/{DESCRIPTION_FILE}")]
    numbers = {name: int(match[1] or 1) for name in names if (match := _NAME.fullmatch(name))}
    return sorted(numbers, key=lambda name: -numbers[name])
