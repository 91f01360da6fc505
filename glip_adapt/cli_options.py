"""Options that verbs of several files share, and what they turn into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

TrunkName = Annotated[str, typer.Option("--trunk", help="Name from `glip-adapt ls trunks`.")]
AdaptersTrunk = Annotated[
    str | None,
    typer.Option("--trunk", help="Name from `glip-adapt ls trunks`; by default the adapter's own, else glip-nano."),
]
Checkpoint = Annotated[Path | None, typer.Option(help="Local weights: public .pth or .safetensors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Vocabulary = Annotated[Path | None, typer.Option(help="Local vocab.txt of bert-base-uncased.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", file_okay=False, help="Folder that keeps frozen features for later runs too.")
]


def feature_cache(folder: Path | None) -> Any:
    """Return a cache in memory, or one that leaves everything in ``folder``, from where it is memory-mapped."""
    from glip_adapt import FeatureCache

    return FeatureCache() if folder is None else FeatureCache(folder=folder, memory_bytes=0)


def open_trunk(
    name: str | None, checkpoint: Path | None, vocabulary: Path | None, device: str, adapter: Path | None = None
) -> Any:
    """Return the trunk that the options name; without a name, that of the adapter in a folder, or glip-nano."""
    from glip_adapt import load_trunk
    from glip_adapt.adapters.base import read_description

    if name is None:
        name = "glip-nano" if adapter is None else read_description(adapter).trunk.name
    return load_trunk(name, checkpoint=checkpoint, vocabulary=vocabulary, device=device)
