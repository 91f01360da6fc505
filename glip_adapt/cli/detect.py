"""The verb ``detect``: parse, call one library function, print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import (
    AdaptersTrunk,
    AsJson,
    Checkpoint,
    Classes,
    Device,
    ShortSide,
    Vocabulary,
    open_model,
    split_names,
    view_of,
)

detect_app = typer.Typer()


@detect_app.command()
def detect(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    classes: Classes = "",
    caption: Annotated[str, typer.Option(help='Instead of --classes: names separated by ". ".')] = "",
    adapter: Annotated[Path | None, typer.Option(help="Folder saved by `adapt` or `bake`.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for JSON files and annotated images.")] = Path("runs/detect"),
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Draw boxes that score at least this much.")] = 0.3,
    as_coco: Annotated[
        Path | None, typer.Option(help="COCO file to write: the boxes above the threshold as labels for training.")
    ] = None,
    short_side: ShortSide = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Find objects by name in images; write all boxes as JSON, and each image with the boxes above the threshold drawn.

    Boxes are edges in pixels: left, top, right, bottom. An image that cannot be read is named and left out; the exit
    code is then 1.

    Example: glip-adapt detect photo.jpg --classes "raccoon, dog" --trunk glip-t --checkpoint glip_tiny.pth
    """
    from glip_adapt.core.memory import peak_bytes
    from glip_adapt.share.detecting import detect_files, find_images

    if classes and caption:
        raise typer.BadParameter("give --classes or --caption, not both", param_hint="--caption")
    paths = find_images(images)
    model = open_model(trunk, checkpoint, vocabulary, device, adapter, split_names(classes) or _split_caption(caption))

    def show(result: Any) -> None:
        if result.error:
            terminal.print_error(result.error)
        elif not as_json:
            drawn = len(result.found.above(threshold))
            terminal.say(
                f"{result.image.name}: {len(result.found)} boxes, {drawn} drawn, {result.seconds:.1f} s → "
                f"{result.drawing}"
            )

    view = view_of(model.view, short_side)
    results = detect_files(model, paths, out, threshold=threshold, view=view, labels=as_coco, on_file=show)
    if as_json:
        terminal.print_json([result.to_json() for result in results])
    else:
        terminal.say(f"Peak memory {peak_bytes(model.device) / 1e9:.1f} GB.")
    raise typer.Exit(1 if any(result.error for result in results) else 0)


def _split_caption(caption: str) -> list[str]:
    """Return the names in a caption, without blanks and periods around them."""
    return [name for part in re.split(r"\.(?:\s|$)", caption) if (name := part.strip(" ."))]
