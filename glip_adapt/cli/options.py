"""Options that verbs of several files share, and what they turn into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

TrunkName = Annotated[str, typer.Option("--trunk", help="Name from `glip-adapt ls trunks`.")]
AdaptersTrunk = Annotated[
    str | None,
    typer.Option("--trunk", help="Name from `glip-adapt ls trunks`; by default the adapter's own, else glip-nano."),
]
Classes = Annotated[str, typer.Option(help='Comma-separated class names, such as "raccoon, dog".')]
ShortSide = Annotated[
    int | None,
    typer.Option(min=32, help="Shorter side as the network sees it, pixels; by default as the trunk is used to."),
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
    from glip_adapt.adapters.storage import read_description

    if name is None:
        name = "glip-nano" if adapter is None else read_description(adapter).trunk.name
    return load_trunk(name, checkpoint=checkpoint, vocabulary=vocabulary, device=device)


def open_model(
    trunk: str | None,
    checkpoint: Path | None,
    vocabulary: Path | None,
    device: str,
    adapter: Path | None,
    classes: Sequence[Any] | None,
) -> Any:
    """Return what detects: an adapter or a baked model from a folder, or zero-shot for the classes.

    Args:
        trunk: its name; None for that of the adapter, or glip-nano.
        checkpoint: local weights.
        vocabulary: local ``vocab.txt``.
        device: where the network goes.
        adapter: folder saved by ``adapt`` or ``bake``; None for zero-shot.
        classes: names or prompts; with an adapter they must be those that it was trained for, or be left out.

    Raises:
        ValueError: if they are not.
    """
    from glip_adapt import attach, load_adapter, load_baked

    if adapter is not None and (adapter / "baked.json").is_file():
        baked = load_baked(adapter, device)
        names = tuple(entry if isinstance(entry, str) else entry.name for entry in classes or ())
        if names and names != baked.class_names:
            raise ValueError(
                f"The baked model in {adapter} detects {', '.join(baked.class_names)}, but {', '.join(names)} was "
                "asked for. Use the classes that it was trained for, in their order."
            )
        return baked
    loaded = open_trunk(trunk, checkpoint, vocabulary, device, adapter)
    if adapter is not None:
        return load_adapter(adapter, trunk=loaded, classes=classes or None)
    return attach(loaded, "zero_shot", classes=classes or ())


def view_of(shown: Any, short_side: int | None) -> Any:
    """Return the view of a trunk, with another short side if one is given."""
    if short_side is None:
        return shown
    return replace(shown, short_side=short_side, max_long_side=max(shown.max_long_side, short_side))


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]
