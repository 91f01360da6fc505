"""Adapters that lie in the folder of the pictures they were made of: ``adapter``, ``adapter-2`` and so on."""

from __future__ import annotations

import re
from pathlib import Path

ADAPTER = "adapter"
# As in ``adapters/storage.py`` and ``share/outcome.py``, which import torch: that would hold the page up for seconds.
DESCRIPTION_FILE, PAGE_FILE = "adapter.json", "index.html"

_NAME = re.compile(rf"{ADAPTER}(?:-([0-9]+))?")


def adapters_in(folder: Path) -> list[str]:
    """Return the names of the folders of adapters in a folder, the newest first."""
    names = [path.parent.name for path in folder.glob(f"{ADAPTER}*/{DESCRIPTION_FILE}")]
    numbers = {name: int(match[1] or 1) for name in names if (match := _NAME.fullmatch(name))}
    return sorted(numbers, key=lambda name: -numbers[name])
