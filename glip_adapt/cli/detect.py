"""The verb ``detect``: parse, call one library function, print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import (
    IMPORTING,
    AdaptersTrunk,
    AsJson,
    Checkpoint,
    Classes,
    Device,
    Flip,
    InPrecision,
    Masks,
    Overlap,
    ShortSide,
    Sizes,
    Tile,
    Vocabulary,
    open_grounder,
    open_model,
    open_segmenter,
    several_views,
    split_names,
    view_of,
)

detect_app = typer.Typer()


@detect_app.command()
def detect(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders of them, or patterns in quotes: 'photos/*.jpg', 'photos/**'."),
    ],
    classes: Classes = "",
    caption: Annotated[
        str,
        typer.Option(
            help="Instead of --classes: a sentence, with what to find in brackets, '\\[a man] with \\[an umbrella]'; "
            'without brackets its noun phrases (extra `phrases`). Or names separated by ". ".'
        ),
    ] = "",
    adapter: Annotated[Path | None, typer.Option(help="Folder saved by `adapt` or `bake`.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for JSON files and annotated images.")] = Path("runs/detect"),
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Show boxes that score at least this much; default: the thresholds of the adapter for each class, "
            "without any 0.3.",
            show_default=False,
        ),
    ] = None,
    as_coco: Annotated[Path | None, typer.Option(help="COCO file to write: the shown boxes as labels.")] = None,
    as_csv: Annotated[Path | None, typer.Option(help="CSV file to write: a row for each shown box.")] = None,
    as_cvat: Annotated[
        Path | None, typer.Option(help="XML file to write: the shown boxes, to upload to a task of CVAT.")
    ] = None,
    as_yolo: Annotated[
        Path | None,
        typer.Option(
            help="New folder in YOLO format: labels of the shown boxes, links to the images.", file_okay=False
        ),
    ] = None,
    masks: Masks = None,
    short_side: ShortSide = None,
    sizes: Sizes = "",
    flip: Flip = False,
    tile: Tile = None,
    overlap: Overlap = 0.2,
    precision: InPrecision = None,
    trunk: AdaptersTrunk = None,
    checkpoint: Checkpoint = None,
    vocabulary: Vocabulary = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Find objects by name in images; write all boxes as JSON, and each image with the shown boxes drawn.

    Boxes are edges in pixels of the upright image: left, top, right, bottom. Those of a sentence have their phrase and
    its span; the drawing has the sentence below, its phrases in the colours of their boxes. With --masks, the shown
    boxes have the mask of their object as well, in the JSON, in the drawing and in the file of --as-coco. An image that
    cannot be read is named and left out; the exit code is then 1.

    Example: glip-adapt detect photo.jpg --classes "raccoon, dog" --trunk glip-t --checkpoint glip_tiny.pth
    """
    if classes and caption:
        raise typer.BadParameter("give --classes or --caption, not both", param_hint="--caption")
    from glip_adapt import sentence_caption

    views = several_views(sizes, flip, tile, overlap)
    if not (classes or caption or adapter):
        raise typer.BadParameter("name what to find, write a --caption, or name an --adapter", param_hint="--classes")
    names = split_names(classes) or _names_in(caption)
    sentence = sentence_caption(caption) if caption and not names else None
    with terminal.working(IMPORTING, hidden=as_json):
        from glip_adapt.core.memory import peak_bytes
        from glip_adapt.share.detecting import detect_files, find_images
    paths, weights = find_images(images), (trunk, checkpoint, vocabulary, device, adapter)
    segmenter = open_segmenter(masks, device)
    model = open_grounder(*weights, sentence) if sentence else open_model(*weights, names)

    with terminal.files_bar("detect", len(paths), hidden=as_json) as advance:

        def show(result: Any) -> None:
            advance()
            if result.error:
                terminal.print_error(result.error)
            elif not as_json:
                counts = f"{len(result.found)} boxes, {len(result.shown)} shown, {result.seconds:.1f} s"
                terminal.say(f"{result.image.name}: {counts} → {result.drawing}")

        labels: dict[str, Any] = {"as_coco": as_coco, "as_csv": as_csv, "as_cvat": as_cvat, "as_yolo": as_yolo}
        view = view_of(model.view, short_side, precision)
        seen: dict[str, Any] = {"threshold": threshold, "view": view, "views": views, "segmenter": segmenter}
        results = detect_files(model, paths, out, on_file=show, **seen, **labels)
    if as_json:
        terminal.print_json([result.to_json() for result in results])
    else:
        for place in filter(None, labels.values()):
            terminal.say(f"labels → {place}")
        terminal.say(f"Peak memory {peak_bytes(model.device) / 1e9:.1f} GB.")
    raise typer.Exit(1 if any(result.error for result in results) else 0)


def _names_in(caption: str) -> list[str]:
    """Return the names in a caption, without blanks and periods around them; none if it is a sentence."""
    names = [name for part in re.split(r"\.(?:\s|$)", caption) if (name := part.strip(" ."))]
    is_sentence = "[" in caption or (len(names) == 1 and len(names[0].split()) > 1)
    return [] if is_sentence else names
