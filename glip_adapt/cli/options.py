"""Options that several verbs share, and how they are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from glip_adapt.cli import terminal

logger = logging.getLogger(__name__)

IMPORTING = "loading torch"  # takes seconds; shown while a verb imports what computes

TrunkName = Annotated[
    str, typer.Option("--trunk", help="Pretrained detector, from `glip-adapt ls trunks`; glip-t for photographs.")
]
_BEST = (
    "the most accurate one whose weights are on this machine, else glip-t, which is downloaded once; without a "
    "network, and for glyphs13, glip-nano"
)
BestTrunk = Annotated[
    str | None, typer.Option("--trunk", help=f"Pretrained detector, from `glip-adapt ls trunks`; default: {_BEST}.")
]
AdaptersTrunk = Annotated[
    str | None,
    typer.Option(
        "--trunk",
        help=f"Pretrained detector, from `glip-adapt ls trunks`; default: that of the adapter. Without one, {_BEST}.",
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
InPrecision = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(
        "--precision", help="Of large products; default: float32. `glip-adapt doctor` says whether bfloat16 is faster."
    ),
]
Sizes = Annotated[
    str,
    typer.Option(help='Look at each image in several sizes and merge the boxes: short sides, "640, 800" pixels.'),
]
Flip = Annotated[bool, typer.Option("--flip", help="Look at each image mirrored as well.")]
Tile = Annotated[
    int | None,
    typer.Option(
        min=32,
        help="For small objects: look at square tiles of the image as well, with sides of so many pixels of it.",
    ),
]
Overlap = Annotated[float, typer.Option(min=0, max=0.9, help="Part of a tile that the next one shows too.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Local file with the weights, .pth or .safetensors, or the folder of `hf download`, instead of a download."
    ),
]
# Every verb that prints results for people takes it. Standard output then holds one JSON value and nothing else, also
# where files are written beside; progress, warnings and errors go to standard error. After an error of the verb as a
# whole, exit code 1, it is empty. Paths are strings as they were given; a number that JSON lacks is null.
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output, for programs.")]
Vocabulary = Annotated[Path | None, typer.Option(help="Local vocab.txt of bert-base-uncased, instead of a download.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the CUDA GPU if there is one.")]
Masks = Annotated[
    str | None,
    typer.Option(
        "--masks",
        help="Cut the objects out by SAM or SAM 2: a folder that transformers saved, or an id of the Hub, such as "
        "facebook/sam2.1-hiera-tiny.",
    ),
]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", file_okay=False, help="Folder that keeps features of images for later runs.")
]


def feature_cache(folder: Path | None) -> Any:
    """Return a cache in memory, or one that leaves everything in ``folder``, from where it is memory-mapped."""
    from glip_adapt import FeatureCache

    return FeatureCache() if folder is None else FeatureCache(folder=folder, memory_bytes=0)


def open_trunk(
    name: str | None,
    checkpoint: Path | None,
    vocabulary: Path | None,
    device: str | None,
    adapter: Path | None = None,
    *,
    dataset: str | None = None,
) -> Any:
    """Return the trunk that the options name, or the one to take without a name; say what is downloaded.

    Without a name it is that of the adapter, glip-nano for a synthetic dataset, the one whose file ``checkpoint`` is,
    or ``best_trunk()``. Where this leaves glip-nano, or the Hub cannot be reached, a warning says what glip-nano is.

    Args:
        name: one of ``TRUNKS``.
        checkpoint: local weights, a file or a folder.
        vocabulary: local ``vocab.txt``.
        device: where the network goes; None for the GPU if there is one.
        adapter: folder saved by ``adapt``.
        dataset: name or folder of the dataset that the trunk is for.
    """
    with terminal.working(IMPORTING):
        from glip_adapt import load_trunk
        from glip_adapt.trunks.catalogue import best_trunk
        from glip_adapt.trunks.released import PACKAGED
        from glip_adapt.trunks.weights import HubUnreachableError

    def load(name: str) -> Any:
        with terminal.working(f"loading {name}", hidden=_is_downloaded(name, checkpoint)):  # that has a bar of its own
            return load_trunk(name, checkpoint=checkpoint, vocabulary=vocabulary, device=device)

    if name is None:
        name = _implied_trunk(checkpoint, adapter, dataset)
    if name is not None:
        return load(name)
    name, why = best_trunk(device)
    if name != PACKAGED:
        try:
            return load(name)
        except HubUnreachableError as error:
            why = str(error)
    logger.warning(
        "%s So %s is used, which only knows rendered pictograms and finds nothing useful in photographs. For a real "
        "detector, name its files with --trunk glip-t --checkpoint FILE --vocabulary FILE, or connect to a network.",
        *(why, PACKAGED),
    )
    return load_trunk(PACKAGED, device=device)  # it has a vocabulary of its own


def _implied_trunk(checkpoint: Path | None, adapter: Path | None, dataset: str | None) -> str | None:
    """Return the trunk that other options imply, or None."""
    from glip_adapt.adapters.storage import read_description
    from glip_adapt.trunks.released import PACKAGED

    if adapter is not None:
        return read_description(adapter).trunk.name
    if checkpoint is not None:
        return _trunk_of_file(checkpoint)
    if dataset is not None and Path(dataset).parent.name == "glyphs13":
        return PACKAGED
    return None


def _trunk_of_file(checkpoint: Path) -> str:
    """Return the trunk of local weights by the name of their file; glip-t for a name that is not known.

    Raises:
        ValueError: if several trunks have a file of that name, and no folder has the name of a repository.
    """
    from glip_adapt.trunks.released import DEFAULT, TRUNKS

    stems = {entry.stem for entry in (checkpoint.iterdir() if checkpoint.is_dir() else [checkpoint])}
    known = [name for name, spec in TRUNKS.items() if stems & {name, Path(spec.public_file or name).stem}]
    if len(known) > 1:
        folders = {folder.rpartition("--")[2] for folder in checkpoint.absolute().parts}  # the Hub's cache: owner--name
        known = [name for name in known if TRUNKS[name].repository.rpartition("/")[2] in folders] or known
    if len(known) > 1:
        raise ValueError(f"{checkpoint} may be one of {', '.join(known)}. Say which with --trunk.")
    return known[0] if known else DEFAULT


def _is_downloaded(name: str, checkpoint: Path | None) -> bool:
    """Return whether the weights of a trunk have to be downloaded, and say how large they are if that is known."""
    from glip_adapt.core.downloads import cached, hub_cache, hub_is_offline
    from glip_adapt.trunks.released import trunk_spec

    spec = trunk_spec(name)
    if checkpoint or not spec.public_file or hub_is_offline() or cached(spec.repository, spec.public_file) is not None:
        return False
    if spec.download_gb:
        terminal.note(f"{name}: {spec.download_gb:g} GB are downloaded once, into {hub_cache()}.")
    return True


def open_model(
    trunk: str | None,
    checkpoint: Path | None,
    vocabulary: Path | None,
    device: str | None,
    adapter: Path | None,
    classes: Sequence[Any] | None,
    *,
    dataset: str | None = None,
    names_per_caption: int | None = None,
) -> Any:
    """Return an adapter or a baked model from a folder, or without a folder a zero-shot model for the classes.

    Args:
        trunk: its name; None for the choice of ``open_trunk``.
        checkpoint: local weights.
        vocabulary: local ``vocab.txt``.
        device: where the network goes; None for the GPU if there is one.
        adapter: folder saved by ``adapt`` or ``bake``; None for zero-shot.
        classes: names or prompts; with an adapter they must be those that it was trained for, or be left out.
        dataset: name or folder of the dataset that the model is for.
        names_per_caption: most class names in a caption of a zero-shot model.

    Raises:
        ValueError: if they are not.
    """
    with terminal.working(IMPORTING):
        from glip_adapt import attach, load_adapter, load_baked
    if adapter is not None and (adapter / "baked.json").is_file():
        with terminal.working(f"loading {adapter}"):
            baked = load_baked(adapter, device)
        names = tuple(entry if isinstance(entry, str) else entry.name for entry in classes or ())
        if names and names != baked.class_names:
            raise ValueError(
                f"The baked model in {adapter} detects {', '.join(baked.class_names)}, but {', '.join(names)} was "
                "asked for. Use the classes that it was trained for, in their order."
            )
        return baked
    loaded = open_trunk(trunk, checkpoint, vocabulary, device, adapter, dataset=dataset)
    if adapter is not None:
        return load_adapter(adapter, trunk=loaded, classes=classes or None)
    return attach(loaded, "zero_shot", classes=classes or (), settings={"names_per_caption": names_per_caption})


def open_grounder(
    trunk: str | None,
    checkpoint: Path | None,
    vocabulary: Path | None,
    device: str | None,
    adapter: Path | None,
    sentence: Any = None,
) -> Any:
    """Return a model that finds the phrases of a sentence, by an adapter or zero-shot; arguments as ``open_model``.

    Without a sentence it takes one by ``for_sentence``.

    Raises:
        ValueError: if the adapter is baked, or its tensors belong to a caption of classes.
    """
    with terminal.working(IMPORTING):
        from glip_adapt import adapt, load_adapter
    if adapter is not None and (adapter / "baked.json").is_file():
        raise ValueError(
            f"The baked model in {adapter} has no text encoder to read a sentence with. Name the adapter that it was "
            "made from, or leave --adapter out."
        )
    loaded = open_trunk(trunk, checkpoint, vocabulary, device, adapter)
    grounder = adapt(loaded, "zero_shot") if adapter is None else load_adapter(adapter, trunk=loaded)
    return grounder if sentence is None else grounder.for_sentence(sentence)


def open_segmenter(checkpoint: str | None, device: str | None) -> Any:
    """Return the segmenter that ``--masks`` names, or None without one."""
    if checkpoint is None:
        return None
    with terminal.working(IMPORTING):
        from glip_adapt import load_segmenter
    return load_segmenter(checkpoint, device)


def worded(data: Any, prompts: Wording) -> Any:
    """Return the classes of a dataset, worded by its official prompts if these are asked for and it has some."""
    return (data.prompts if prompts == "official" else None) or data.classes


def view_of(view: Any, short_side: int | None, precision: str | None = None) -> Any:
    """Return the view of a trunk, with another precision or another short side if one is given."""
    view = replace(view, precision=precision or view.precision)
    if short_side is None:
        return view
    return replace(view, short_side=short_side, max_long_side=max(view.max_long_side, short_side))


def several_views(sizes: str, flip: bool, tile: int | None, overlap: float) -> Any:
    """Return the views that options ask for, or None if they ask for nothing but one."""
    from glip_adapt import Views

    given = [part.strip() for part in sizes.split(",") if part.strip()]
    if not all(part.isdigit() and int(part) >= 32 for part in given):
        raise typer.BadParameter(
            f'expected whole numbers from 32, such as "640, 800", got {sizes!r}', param_hint="--sizes"
        )
    views = Views(sizes=tuple(map(int, given)), flip=flip, tile=tile, overlap=overlap)
    return None if views == Views(overlap=overlap) else views


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]
