"""Write the card of a shared adapter: a README for the Hub, with facts of its training if they are known."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from glip_adapt.adapters.storage import Description, read_description, read_file_description, write_description
from glip_adapt.core.captions import build_caption
from glip_adapt.core.plain_text import plain
from glip_adapt.trunks.released import TRUNKS

FACTS_FILE = "training.json"
FACTS_VERSION = 1
PICTURE_FILE = "picture.png"

_UNKNOWN = "not stated"


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """Facts about the training of an adapter that its own file does not hold."""

    data: str
    "what it was trained on"
    shots: int | Literal["all"]
    "images per class"
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    "by name, in [0, 1]"


@dataclass(frozen=True, kw_only=True)
class _FactsFile:
    """The content of ``training.json``."""

    format_version: int = FACTS_VERSION
    sha256: str
    "of the adapter.safetensors that the facts are about"
    facts: TrainingFacts


def write_facts(facts: TrainingFacts, folder: str | Path) -> None:
    """Write ``training.json`` beside the adapter saved in ``folder``.

    Raises:
        FileNotFoundError, AdapterMismatchError: as ``read_description``.
    """
    about = _FactsFile(sha256=read_description(folder).sha256, facts=facts)
    write_description(about, Path(folder) / FACTS_FILE)


def read_facts(folder: str | Path) -> TrainingFacts | None:
    """Return the facts of ``training.json`` in ``folder``; None without it, or if it is about another adapter.

    Raises:
        FileNotFoundError: if the folder holds no adapter.
        AdapterMismatchError: if a file is not one that this version reads.
    """
    path = Path(folder) / FACTS_FILE
    if not path.is_file():
        return None
    about = read_file_description(_FactsFile, path, (FACTS_VERSION,), "training")
    return about.facts if about.sha256 == read_description(folder).sha256 else None


def build_card(
    repository: str,
    description: Description,
    facts: TrainingFacts | None = None,
    *,
    licence: str | None = None,
    has_picture: bool = False,
) -> str:
    """Return the README of an adapter in Markdown, with the metadata block that the Hub reads.

    Args:
        repository: its name on the Hub.
        description: from its ``adapter.json``.
        facts: how it was trained.
        licence: of the adapter, in the Hub's short form, ``"mit"`` for example.
        has_picture: whether ``picture.png`` is beside it.

    Raises:
        ValueError: if a metric has the name of another row of the table.
    """
    trunk = description.trunk
    picture = f"![Detections]({PICTURE_FILE})\n\n" if has_picture else ""
    table = _rows(description, facts, licence)
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in table.items())
    return f"""{_metadata(description, licence)}
# {_cell(repository.rpartition("/")[2])}

A `{_code(description.method)}` adapter of {description.trained_parameters:,} numbers for the detector
`{_code(trunk.name)}`, made with glip_adapt. It detects nothing without exactly that trunk.

{picture}| what | value |
|---|---|
{rows}

## Use

```python
from glip_adapt import from_hub

model = from_hub({json.dumps(repository)})
found = model.predict("photo.jpg", threshold=0.3)
```

From the shell: `glip-adapt pull {_code(repository)} --out adapter`, then
`glip-adapt detect photo.jpg --adapter adapter`.
"""


def _metadata(description: Description, licence: str | None) -> str:
    """Return the block of YAML that a card begins with; every JSON string is valid in it."""
    trunk = description.trunk.name
    released = TRUNKS.get(trunk)
    values: dict[str, object] = {
        "library_name": "glip_adapt",
        "pipeline_tag": "object-detection",
        "tags": [trunk, "few-shot", "adapter", description.method],
    }
    if licence is not None:
        values["license"] = licence
    if released is not None and released.public_file is not None:
        values["base_model"] = released.repository
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items())
    return f"---\n{lines}\n---"


def _rows(description: Description, facts: TrainingFacts | None, licence: str | None) -> dict[str, str]:
    """Return name → value of the card's table."""
    trunk = description.trunk
    released = TRUNKS.get(trunk.name)
    settings = ", ".join(f"{key} = {json.dumps(value)}" for key, value in description.config.items())
    before = {
        "trunk": f"{trunk.name}, SHA-256 of its weights {trunk.checksum}",
        "licence of the trunk": released.licence if released else _UNKNOWN,
        "method": f"{description.method} ({settings})" if settings else description.method,
        "classes, in label order": ", ".join(prompt.name for prompt in description.classes),
        "caption": build_caption(description.classes).text,
        "trained on": facts.data if facts else _UNKNOWN,
        "shots": str(facts.shots) if facts else _UNKNOWN,
        "seed": str(facts.seed) if facts else _UNKNOWN,
    }
    after = {"SHA-256 of adapter.safetensors": description.sha256, "licence": licence or _UNKNOWN}
    metrics = {name: f"{100 * value:.1f} %" for name, value in facts.metrics.items()} if facts else {}
    if taken := sorted(metrics.keys() & (before | after).keys()):
        raise ValueError(f"The card has another row of the name {taken[0]!r}. Give the metric another name.")
    return before | (metrics or {"metrics": _UNKNOWN}) | after


def _cell(value: str) -> str:
    """Escape text for one cell of a table in Markdown, in one line."""
    return re.sub(r"([\\|\[\]*_!`~:])", r"\\\1", html.escape(" ".join(plain(value).split()), quote=False))


def _code(value: str) -> str:
    """Escape text for code between backticks, in one line."""
    return " ".join(plain(value).split()).replace("`", "'")
