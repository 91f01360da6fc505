"""Options that several verbs share, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

TrunkName = Annotated[
    str, typer.Option("--trunk", help="Pretrained detector, from `glip-adapt ls trunks`; glip-t for photographs.")
]
AdaptersTrunk = Annotated[
    str | None,
    typer.Option(
        "--trunk",
        help="Pretrained detector, from `glip-adapt ls trunks`; default: that of the adapter, without one glip-nano.",
    ),
]
DatasetName = Annotated[
    str, typer.Argument(help="Folder of a dataset, or a name from `glip-adapt ls datasets`.", show_default=False)
]
Classes = Annotated[str, typer.Option(help='Class names separated by commas, such as "raccoon, dog".')]
Wording = Literal["names", "official"]
Prompts = Annotated[
    Wording, typer.Option(help="Wording of the classes: their names, or the manual prompts of the paper.")
]
ShortSide = Annotated[
    int | None,
    typer.Option(min=32, help="Resize the shorter side of each image to this many pixels; default: that of the trunk."),
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Local file with the weights, .pth or .safetensors, instead of a download.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Vocabulary = Annotated[Path | None, typer.Option(help="Local vocab.txt of bert-base-uncased, instead of a download.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the CUDA GPU if there is one.")]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", file_okay=False, help="Folder that keeps features of images for later runs.")
]


def feature_cache(folder: Path | None) -> Any:
    """Return a cache in memory, or one that leaves everything in ``folder``, from where it is memory-mapped."""
    from glip_adapt import FeatureCache

    return FeatureCache() if folder is None else FeatureCache(folder=folder, memory_bytes=0)


def open_trunk(
    name: str | None, checkpoint: Path | None, vocabulary: Path | None, device: str | None, adapter: Path | None = None
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
    device: str | None,
    adapter: Path | None,
    classes: Sequence[Any] | None,
) -> Any:
    """Return an adapter or a baked model from a folder, or without a folder a zero-shot model for the classes.

    Args:
        trunk: its name; None for that of the adapter, or glip-nano.
        checkpoint: local weights.
        vocabulary: local ``vocab.txt``.
        device: where the network goes; None for the GPU if there is one.
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


def worded(data: Any, prompts: Wording) -> Any:
    """Return the classes of a dataset, worded by its official prompts if these are asked for and it has some."""
    return (data.prompts if prompts == "official" else None) or data.classes


def view_of(view: Any, short_side: int | None) -> Any:
    """Return the view of a trunk, with another short side if one is given."""
    if short_side is None:
        return view
    return replace(view, short_side=short_side, max_long_side=max(view.max_long_side, short_side))


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]
